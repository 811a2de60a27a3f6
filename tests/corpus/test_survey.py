"""`chameleon init`: what is found at a place, and a file that reads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.benchmarks.text_store import TextStore
from chameleon_ray.cli import main
from chameleon_ray.corpus.survey import Survey, survey
from chameleon_ray.experiment import load_experiment
from chameleon_ray.first_file import Machine, experiment_text, num_clusters
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend

LONG = "some words of a document that is long enough to be told from a name or a title "


def records(count: int = 60, name: str = "", **more: object) -> list[dict[str, object]]:
    return [{"text": f"{name} {i} {LONG * (1 + i % 3)}", **more} for i in range(count)]


def write(path: Path, found: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(found)), path)
        return
    data = "".join(json.dumps(record) + "\n" for record in found).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_domains_by_folder_with_splits(tmp_path: Path) -> None:
    for name in ("wiki", "books"):
        for split in ("train", "valid"):
            write(tmp_path / "data" / name / f"{split}-00000-of-00001.jsonl.gz", records(name=name))
    found = survey(str(tmp_path / "data"))
    assert list(found.domains) == ["books", "wiki"]
    assert found.domains["wiki"].files == (str(tmp_path / "data/wiki/train-00000-of-00001.jsonl.gz"),)
    assert found.domains["wiki"].heldout == (str(tmp_path / "data/wiki/valid-00000-of-00001.jsonl.gz"),)


def test_many_files_are_patterns(tmp_path: Path) -> None:
    for name in ("wiki", "books"):
        for i in range(5):
            write(tmp_path / name / "deep" / f"part-{i:05d}.parquet", records(name=name))
    write(tmp_path / "books" / "deep" / "more" / "part-00000.parquet", records())
    write(tmp_path / "books" / ".hidden" / "x.parquet", records())
    found = survey(str(tmp_path))
    assert found.domains["wiki"].files == (f"{tmp_path}/wiki/deep/*.parquet",)
    assert found.domains["books"].files == (f"{tmp_path}/books/deep/**/*.parquet",)
    assert (found.domains["books"].num_files, found.domains["books"].heldout) == (6, ())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("wiki.jsonl", "books.jsonl"), ["books", "wiki"]),
        (("wiki-00.jsonl", "wiki-01.jsonl", "books_0.jsonl"), ["books", "wiki"]),
        (("wiki-train.jsonl", "wiki-valid.jsonl", "books-train.jsonl", "books-valid.jsonl"), ["books", "wiki"]),
        (("train/wiki.jsonl", "valid/wiki.jsonl", "train/books.jsonl"), ["books", "wiki"]),
        (("part-00000.jsonl", "part-00001.jsonl"), ["all"]),
        (("train.jsonl", "valid.jsonl"), ["all"]),
    ],
)
def test_domains_by_file_name(tmp_path: Path, names: Sequence[str], expected: list[str]) -> None:
    for name in names:
        write(tmp_path / name, records(name=name))
    found = survey(str(tmp_path))
    assert list(found.domains) == expected
    held = {name for name, text in found.domains.items() if text.heldout}
    assert held == (set() if not any("valid" in name for name in names) else {"wiki"} if "train/books.jsonl" in names else set(expected))


def test_folders_of_text_files(tmp_path: Path) -> None:
    for name in ("letters", "recipes"):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{name} no {i}.txt").write_text(LONG)
    found = survey(str(tmp_path))
    assert {name: text.num_files for name, text in found.domains.items()} == {"letters": 3, "recipes": 3}
    assert list(survey(str(tmp_path / "letters")).domains) == ["all"], "names of documents are no domains"


@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz", "parquet"])
def test_domains_by_column(tmp_path: Path, extension: str) -> None:
    mixed = [{"id": f"{i}", "content": f"{i} {LONG * 2}", "meta": {"source": ["wiki", "books", "code"][i % 3], "url": f"http://{i}"}} for i in range(120)]
    for i in range(2):
        write(tmp_path / f"{i}.{extension}", mixed[i::2])
    found = survey(str(tmp_path))
    assert (found.column, found.text_column) == ("meta.source", "content")
    assert found.values is not None and set(found.values) == {"wiki", "books", "code"}
    assert found.files == (f"{tmp_path}/*.{extension}",)


@pytest.mark.parametrize("place", ["{0}/one/wiki.jsonl", "{0}/one/*.jsonl"])
def test_a_file_or_a_pattern(tmp_path: Path, place: str) -> None:
    write(tmp_path / "one" / "wiki.jsonl", records())
    assert survey(place.format(tmp_path)).domains["all"].files == (f"{tmp_path}/one/wiki.jsonl",)


def test_an_object_store() -> None:
    with TextStore(3, 4, 2).serve():
        found = survey("s3://text")
    assert {name: (text.files, text.num_files) for name, text in found.domains.items()} == {
        f"domain-{i:05d}": ((f"s3://text/domain-{i:05d}/*.jsonl{'' if i % 2 else '.gz'}",), 4) for i in range(3)
    }


def test_a_data_set_in_other_formats(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text("text,lang\n" + "".join(f"{LONG} {i},{'de' if i % 2 else 'fr'}\n" for i in range(40)))
    assert survey(str(tmp_path / "set")).data_set == str(tmp_path / "set")


def test_places_of_which_nothing_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.tar.xz").write_bytes(b"\0")
    write(tmp_path / "numbers" / "a.jsonl", [{"x": i} for i in range(9)])
    write(tmp_path / "one" / "a.jsonl", records())
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "novel.txt").write_text(f"{LONG} " * 10_000)
    for place, message in (
        ("nowhere", "nowhere: there is nothing here; give a folder, a file, s3://… , gs://… or the name of a data set"),
        ("pictures", "pictures: no files in known formats (found 3 .tar.xz; known: .jsonl"),
        ("one", "too little to find some in; put domains in folders of their own"),
        ("novel", "novel: nothing divides it into domains, and 1 text files, each one document, are too few to find some among"),
        ("numbers", "numbers: no record has a column of strings, found x; give text in JSON lines or Parquet"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["init", place])
        assert stopped.value.code == 2
        told = " ".join(capsys.readouterr().err.split())
        assert message.replace("… ,", "…,") in told, told
        assert not (tmp_path / "experiment.yaml").exists()


def test_a_file_that_is_there_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("name: kept\n")
    with pytest.raises(SystemExit) as stopped:
        main(["init", str(tmp_path), "--out", str(tmp_path / "mine.yaml")])
    assert stopped.value.code == 2
    assert "mine.yaml exists already; give another name, or remove it" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "mine.yaml").read_text() == "name: kept\n"


@pytest.mark.parametrize("by", ["folder", "column"])
def test_the_file_runs_as_it_is(tmp_path: Path, in_process: Callable[[int], None], by: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("wiki: a", "no"):
        more = {} if by == "folder" else {"domain": name}
        write(tmp_path / "data" / (f"{name}/a.jsonl" if by == "folder" else f"part-{len(name)}.jsonl"), records(300, name, **more))
    out = tmp_path / "mine.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(["init", str(tmp_path / "data"), "--out", str(out)])
    assert stopped.value.code in (0, None)
    assert "2 domains by" in capsys.readouterr().out
    experiment = load_experiment(out, [f"storage={tmp_path}/runs", "corpus.tokenizer.train.vocab_size=400"])
    assert "#" in out.read_text() and yaml.safe_load(out.read_text())["name"] == "data"
    corpus = RayBackend(experiment.storage, experiment.resources, Reporter.silent()).tokenize(experiment.corpus, 0, experiment.reads)
    assert set(corpus.names) == {"wiki: a", "no"}
    assert all(counts.is_measured for counts in corpus.domains.values())


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_the_file_is_for_the_machine(tmp_path: Path, gpus: int) -> None:
    for name in ("wiki", "books"):
        write(tmp_path / name / "a.jsonl", records())
    found: Survey = survey(str(tmp_path))
    path = tmp_path / "mine.yaml"
    path.write_text(experiment_text(str(tmp_path), found, Machine(gpus, 8), "mine.yaml"))
    experiment = load_experiment(path)
    assert experiment.resources.gpus_per_worker == (1 if gpus else 0)
    assert experiment.resources.num_workers == max(1, gpus)
    assert (experiment.base.model.preset == "684M") == (gpus == 8)


def test_text_that_is_written_as_python_prints_bytes_is_seen(tmp_path: Path) -> None:
    for name in ("fr", "de"):
        write(tmp_path / "data" / f"{name}.parquet", [{**record, "text": str(f"{record['text']} \u00e9".encode())} for record in records(name=name)])
    found = survey(str(tmp_path / "data"))
    assert found.bytes_literals
    path = tmp_path / "mine.yaml"
    path.write_text(experiment_text(str(tmp_path / "data"), found, Machine(0, 2), "mine.yaml"))
    assert load_experiment(path).corpus.bytes_literals


def test_domains_are_to_be_found_where_nothing_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one" / "a.jsonl", records(3000))
    out = tmp_path / "mine.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(["init", str(tmp_path / "one"), "--out", str(out)])
    assert stopped.value.code in (0, None)
    assert "nothing labels it: 5 domains will be found among its documents" in capsys.readouterr().out
    clusters = load_experiment(out).corpus.domains_from.clusters
    assert clusters.k == 5 and clusters.of == (f"{tmp_path}/one/a.jsonl",) and clusters.embed == "proxy"
    assert num_clusters(10**12) == 100 and num_clusters(20_000_000) == 40


def test_a_data_set_that_nothing_divides(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text("text\n" + "".join(f"{LONG} {i}\n" for i in range(4000)))
    path = tmp_path / "mine.yaml"
    path.write_text(experiment_text(str(tmp_path / "set"), survey(str(tmp_path / "set")), Machine(0, 2), "mine.yaml"))
    clusters = load_experiment(path).corpus.domains_from.clusters
    assert clusters.huggingface.path == str(tmp_path / "set") and not clusters.of
