"""The rules of the architecture, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "chameleon_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = [path for folder in ("chameleon_ray", "analysis", "jobs", "tests") for path in sorted((REPOSITORY / folder).rglob("*.py"))]


# From the ground up: a file imports only from its own floor or from those before it. Folders follow the data.
FLOORS = (
    *(
        "errors",
        "hub",
        "cache",
        "storage",
        "settings",
        "presets",
        "corpus_config",
        "config",
        "limits",
        "tensors",
        "records",
        "counts",
        "artifacts",
        "mixture",
        "progress",
        "backend",
        "identity",
    ),
    *("ray_session", "ray_progress"),
    *("mixing", "experiment", "corpus", "models", "embedding", "training", "evaluation", "report"),
    *("places", "discovery", "fitting", "results", "changes", "transfer", "pipeline", "ray_trials", "ray_backend", "dry_backend", "pace", "dry_run"),
    *("__init__", "ray_doctor", "terminal", "first_file", "cli_dry", "cli_init", "cli_judge", "cli_regmix", "cli", "__main__"),
)
# What takes long to import, or need not be there: it may be imported inside a function, and so may our own modules that need it.
HEAVY = {"ray", "torch", "transformers", "deepspeed", "datasets", "tokenizers", "lightgbm", "scipy", "umap", "matplotlib", "botocore"}
HEAVY |= {"huggingface_hub", "gguf", "peft"}
MODULES = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}


@cache
def imports_of(module: str) -> dict[str, bool]:
    """What a module of ours imports, whole names -> whether only inside functions."""
    found: dict[str, bool] = {}

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                names = [full if (full := f"{child.module}.{alias.name}") in MODULES else str(child.module) for alias in child.names]
            for name in names:
                found[name] = found.get(name, True) and inside
            visit(child, inside or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    visit(ast.parse(MODULES[module].read_text()), False)
    return found


def floor_of(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


@cache
def is_heavy(module: str) -> bool:
    """Whether importing it imports something heavy."""
    if module not in MODULES:
        return module.split(".")[0] in HEAVY
    return any(is_heavy(name) for name, inside in imports_of(module).items() if not inside)


def test_every_file_stands_on_a_floor() -> None:
    assert {module.split(".")[1] for module in MODULES if "." in module} <= set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_go_up(module: str) -> None:
    upward = [name for name in imports_of(module) if name in MODULES and floor_of(name) > floor_of(module)]
    assert upward == []


def test_imports_never_go_in_a_circle() -> None:
    order = TopologicalSorter({module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES})
    assert len(list(order.static_order())) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_heavy_is_imported_inside_a_function(module: str) -> None:
    light = [name for name, inside in imports_of(module).items() if inside and not is_heavy(name)]
    assert light == []


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
    mathematics = [module for module in MODULES if module.split(".")[1:2] in (["mixing"], ["report"])]
    code = f"import sys, {', '.join(mathematics)}; print([m for m in ('ray', 'torch', 'deepspeed', 'transformers') if m in sys.modules])"
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
