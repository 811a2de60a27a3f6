"""The rules of the architecture, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "chameleon_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = [path for folder in ("chameleon_ray", "analysis", "jobs", "tests") for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_ray_is_imported_only_at_the_edge() -> None:
    guilty = [str(path.relative_to(REPOSITORY)) for path in SOURCES if "ray" in imported(path) and not path.name.startswith("ray_")]
    assert guilty == []


def test_the_mathematics_imports_neither_ray_nor_torch() -> None:
    code = "import sys, chameleon_ray.mixing, chameleon_ray.report; print([m for m in ('ray', 'torch', 'deepspeed', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_import_of_the_package_is_light() -> None:
    heavy = ("ray", "torch", "deepspeed", "transformers", "umap", "datasets")
    code = f"import sys, chameleon_ray, chameleon_ray.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_stay_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_no_pickle_and_no_remote_code() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not {"pickle", "joblib", "dill"} & imported(path), path
        for word in ("torch.load(", "allow_pickle=True", "trust_remote_code=True", "shell=True", "yaml.load("):
            assert word not in text, (path, word)


def test_nothing_is_left_to_do() -> None:
    for path in SOURCES:
        for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
            assert word not in path.read_text(), (path, word)


def test_modules_do_nothing_when_imported() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign, ast.If)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or isinstance(node, allowed), (path, node.lineno)
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), (path, node.lineno)


def test_public_things_have_docstrings() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), (path, node.name)
