"""The text that every Python environment carries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from chameleon_ray.corpus import python_environment
from chameleon_ray.corpus.documents import Document
from chameleon_ray.corpus.python_environment import DOMAINS, document_bytes, environment_files
from chameleon_ray.corpus.readers import read_part
from chameleon_ray.corpus.sources import parts_of, plan_sources
from chameleon_ray.corpus_config import CorpusConfig

BYTES = 300_000


@pytest.fixture(scope="module")
def chosen() -> dict[str, list[Path]]:
    return environment_files(BYTES)


def test_at_least_six_domains_with_the_text_asked_for(chosen: dict[str, list[Path]]) -> None:
    assert len(chosen) >= 6
    assert [domain for domain in DOMAINS if domain in chosen] == list(chosen)
    for domain, files in chosen.items():
        sizes = [len(document_bytes(file)) for file in files]
        assert sum(sizes) >= 100_000, domain
        assert sum(sizes[:-1]) < BYTES, f"{domain}: more was taken than asked for"
        assert min(sizes) >= 200, domain


def test_every_file_is_text_and_in_one_domain(chosen: dict[str, list[Path]]) -> None:
    files = [file for group in chosen.values() for file in group]
    assert len(set(files)) == len(files)
    contents = [document_bytes(file) for file in files]
    assert len(set(contents)) == len(contents)
    for file, content in zip(files, contents, strict=True):
        assert "\0" not in content.decode(), file
        assert file.stat().st_size <= 200_000, file
        assert not {"__pycache__", "tests", "chameleon_ray"} & set(file.parts[-6:]), file


def test_the_choice_is_deterministic_fast_and_grows_by_appending(chosen: dict[str, list[Path]]) -> None:
    started = time.perf_counter()
    again = environment_files(BYTES)
    seconds = time.perf_counter() - started
    assert again == chosen
    assert seconds < 15, "a walk over the environment, not one per domain: about 1.5 s on two idle cores"
    smaller = environment_files(100_000)
    first = next(iter(smaller))
    assert chosen[first][: len(smaller[first])] == smaller[first]


def test_rules_on_a_made_up_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    text = "some words that are long enough to count as a document; " * 5
    files = {
        library / "json.py": text + "1",
        library / "test" / "test_json.py": text + "2",
        packages / "a" / "core.py": text + "3",
        packages / "a" / "copy.py": text + "3",
        packages / "a" / "short.py": "pass",
        packages / "a" / "nul.py": text + "\0",
        packages / "a" / "include" / "a.hpp": text + "4",
        packages / "a" / "__pycache__" / "core.py": text + "5",
        packages / "a-1.dist-info" / "METADATA": "Name: a\nVersion: 1\n\n" + text + "6",
        packages / "a-1.dist-info" / "licenses" / "LICENSE": text + "7",
        packages / "b-1.dist-info" / "METADATA": "Name: b\n\n" + text + "8",
        packages / "b-1.dist-info" / "direct_url.json": '{"dir_info": {"editable": true}}',
        packages / "chameleon_ray" / "cli.py": text + "9",
        packages / "chameleon_ray-1.dist-info" / "METADATA": "Name: c\n\n" + text + "10",
        packages / "a" / "table.json": text * 300,
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (packages / "a" / "latin.py").write_bytes(text.encode() + b"\xe9")
    monkeypatch.setattr("sysconfig.get_path", lambda key: str(library if key == "stdlib" else packages))

    monkeypatch.setattr(python_environment, "_MIN_DOMAIN_BYTES", 100)  # so that no domain is full, or too small, before every file was looked at

    chosen = environment_files(1 << 20)

    names = {domain: [path.relative_to(library).as_posix() for path in paths] for domain, paths in chosen.items()}
    core = names.pop("python_packages")
    assert core in (["site-packages/a/core.py"], ["site-packages/a/copy.py"])
    assert names == {
        "python_library": ["json.py"],
        "cpp_headers": ["site-packages/a/include/a.hpp"],
        "package_metadata": ["site-packages/a-1.dist-info/METADATA"],
        "licenses": ["site-packages/a-1.dist-info/licenses/LICENSE"],
    }
    assert document_bytes(packages / "a-1.dist-info" / "METADATA").startswith(b"some words")


def test_the_python_environment_is_a_plan_of_documents() -> None:
    corpus = CorpusConfig.model_validate({"domains_from": {"python_environment": True, "bytes_per_domain": 100_000}})
    sources = plan_sources(corpus)
    parts = parts_of(sources)
    assert len({part.origin.domain for part in parts}) >= 6
    items = [item for part in parts for item in read_part(part, corpus.text_column)]
    assert all(isinstance(item, Document) for item in items)
    assert len(items) == sum(len(source.files) for source in sources)
    assert [source.fingerprint for source in plan_sources(corpus)] == [source.fingerprint for source in sources]
