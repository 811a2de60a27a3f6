"""The two data sets of the paper's finetuning, in local folders of their layout: configurations and splits, folders, markers, and terms to accept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chameleon_ray.corpus.documents import Document
from chameleon_ray.corpus.sources import manifest, parts_of, plan_documents, plan_sources
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.experiment import load_experiment
from chameleon_ray.identity import corpus_digest
from tests.corpus.test_data_sets import offline  # noqa: F401
from tests.corpus.test_sources import corpus_of, read, texts

REPOSITORY = Path(__file__).resolve().parents[2]
MARKED = "\n_START_ARTICLE_\n{0}\n_START_SECTION_\nDebut\n_START_PARAGRAPH_\nUn paragraphe.{0}_NEWLINE_Un autre."


@pytest.fixture
def wiki40b(tmp_path: Path, offline: None) -> str:  # noqa: F811
    """Two languages, three splits."""
    folder, configs = tmp_path / "wiki40b", []
    for language in ("fr", "de"):
        for split in ("train", "validation", "test"):
            rows = [{"wikidata_id": f"Q{i}", "text": MARKED.format(f"{language} {split} {i}"), "version_id": "1"} for i in range(3)]
            if language == "de":  # as the hub has it for every language but English
                rows = [{key: str(f"{value}, K{quote}ln".encode()) for key, value in row.items()} for row, quote in zip(rows, ("ö", "'", '"'), strict=True)]
            path = folder / language / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
        splits = [{"split": split, "path": f"{language}/{split}-*"} for split in ("train", "validation", "test")]
        configs.append({"config_name": language, "data_files": splits})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return str(folder)


def of_job(job: str, path: str, names: tuple[str, ...]) -> CorpusConfig:
    """The corpus of a job with local folders in place of the hub's name."""
    corpus = load_experiment(REPOSITORY / "jobs" / job).corpus.model_dump(
        mode="json", include={"domains", "text_column", "bytes_literals", "replace", "row_tokens"}
    )
    corpus["domains"] = {name: corpus["domains"][name] for name in names}
    for source in corpus["domains"].values():
        source["huggingface"]["path"] = path
    return CorpusConfig.model_validate(corpus)


def test_wiki40b_is_read_by_language_without_its_markers_and_its_own_splits_are_held_out(wiki40b: str) -> None:
    corpus = of_job("finetune_wiki40b.yaml", wiki40b, ("fr", "de"))
    sources = plan_sources(corpus)
    items = [item for item in read(parts_of(sources)) if isinstance(item, Document)]
    assert [(item.domain, item.heldout) for item in items] == [*[("fr", False)] * 3, *[("fr", True)] * 6, *[("de", False)] * 3, *[("de", True)] * 6]
    assert items[0].text == "fr train 0\n\nDebut\nUn paragraphe.fr train 0\nUn autre."
    assert items[3].text.startswith("fr validation 0") and items[6].text.startswith("fr test 0")
    german = [item.text for item in items if item.domain == "de" and not item.heldout]
    assert german == [f"de train {i}\n\nDebut\nUn paragraphe.de train {i}\nUn autre., K{quote}ln" for i, quote in enumerate("ö'\"")]
    stored = corpus.model_copy(update={"bytes_literals": False})
    assert texts(read(parts_of(plan_sources(stored))))[9].startswith("b'\\n_START_ARTICLE_"), "what would be trained on otherwise"
    (entry,) = manifest(sources[0], sources[0].files)
    assert json.loads(json.dumps(entry))["replace"] == [list(pair) for pair in corpus.replace.items()]
    kept = corpus.model_copy(update={"replace": {}})
    assert "_START_SECTION_" in texts(read(parts_of(plan_sources(kept))))[0]
    known = [("fr", False, source.fingerprint) for source in sources]
    turned = corpus.model_copy(update={"replace": dict(reversed(corpus.replace.items()))})
    assert len({corpus_digest(each, known, "tokenizer", 0) for each in (corpus, kept, turned, stored)}) == 4, "also their order counts"


def test_the_stack_is_read_by_folder(tmp_path: Path, offline: None) -> None:  # noqa: F811
    folder = tmp_path / "stack"
    for name in ("python", "c++"):
        path = folder / "data" / name / "data-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([{"content": f"{name} {i}", "hexsha": str(i), "lang": name} for i in range(3)]), path)
    corpus = of_job("finetune_stack.yaml", str(folder), ("python", "cpp"))
    items = read(parts_of(plan_sources(corpus)), "content")
    assert [(item.domain, item.text) for item in items if isinstance(item, Document)] == [
        *(("python", f"python {i}") for i in range(3)),
        *(("cpp", f"c++ {i}") for i in range(3)),
    ]
    within = {"k": 2, "huggingface": {"path": str(folder), "data_dir": "data/python"}, "within": "lang"}
    (source,) = plan_documents(corpus_of(domains_from={"clusters": within}, text_column="content"), None)
    assert len(read(parts_of([source]), "content")) == 3


def test_held_out_splits_need_a_data_set() -> None:
    with pytest.raises(ValueError, match="heldout_split is a split of the huggingface data set"):
        corpus_of({"a": {"files": ["x.jsonl"], "heldout_split": "test"}})


@pytest.fixture(params=[401, 403])
def gated_hub(request: pytest.FixtureRequest) -> Iterator[str]:
    """A hub that shows nothing to whoever asks without a token, or without having accepted terms."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"error": "Access to dataset bigcode/the-stack-dedup is restricted"}).encode()
            self.send_response(request.param)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_terms_that_nobody_accepted_are_told_with_what_to_do(gated_hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": gated_hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "chameleon_ray", "finetune", "jobs/finetune_stack.yaml", f"storage={tmp_path}/runs", "resources={}"]
    # The tokenizer is looked for first, and would be refused by this hub too.
    local = ["base.model.pretrained=" + _model(tmp_path)]
    found = subprocess.run([*command, *local], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 2, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: corpus.domains.python.huggingface: 'bigcode/the-stack-dedup' cannot be opened")
    assert line.endswith("accept its terms at https://huggingface.co/datasets/bigcode/the-stack-dedup and set a token of yours (hf auth login, or HF_TOKEN)")


@pytest.mark.parametrize("gated_hub", [401], indirect=True)
def test_a_gated_model_is_told_too(gated_hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": gated_hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    settings = ["base.model.pretrained=someone/gated", f"storage={tmp_path}/runs", "resources={}"]
    command = [sys.executable, "-m", "chameleon_ray", "finetune", "jobs/finetune_stack.yaml", *settings]
    found = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 2, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: ") and "'someone/gated' " in line
    assert line.endswith("accept its terms at https://huggingface.co/someone/gated and set a token of yours (hf auth login, or HF_TOKEN)")


def _model(tmp_path: Path) -> str:
    from tests.corpora import make_corpus
    from tests.families import publish

    return publish("llama", make_corpus(tmp_path / "corpus"), tmp_path / "model", context=512)


def test_a_file_of_settings_replaces_those_of_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("corpus.domains:\n  a: {files: [a.txt]}\n  b: {files: [b.txt]}\nbase.steps: 7\nseeds: [4]\n")
    job = REPOSITORY / "jobs/finetune_wiki40b.yaml"
    found = load_experiment(job, ["base.steps=5", f"@{tmp_path}/more.yaml", "seeds=[5]"])
    assert (tuple(found.corpus.domains), found.base.steps, found.seeds) == (("a", "b"), 7, (5,))
    (tmp_path / "more.yaml").write_text("base..steps: 7\n")
    with pytest.raises(UserError, match=r"expected key\.sub=value, found an empty part in 'base\.\.steps'"):
        load_experiment(job, [f"@{tmp_path}/more.yaml"])
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_experiment(job, ["@nowhere.yaml"])
