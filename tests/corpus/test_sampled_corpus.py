"""A corpus of which only what is needed is read, from an object store that makes terabytes of text as they are asked for."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis.benchmarks.text_store import BLOCK_BYTES, TextStore
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import Reads
from chameleon_ray.config import Resources
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.corpus.tokenizer import load_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.records import read_record
from tests.corpus.conftest import run_in_process

TOKENS = 150_000
HELDOUT_TOKENS = 10_000
READS = Reads(TOKENS)


def corpus_of(store: TextStore, folder: Path, reads: Reads | None = READS, **changes: Any) -> TokenCorpus:
    content = {
        "domains": {name: {"files": [pattern]} for name, pattern in store.patterns().items()},
        "tokenizer": {"train": {"vocab_size": 1000, "bytes_per_domain": 50_000}},
        "row_tokens": 128,
        "heldout_tokens": HELDOUT_TOKENS,
        **changes,
    }
    return RayBackend(str(folder), Resources(), Reporter.silent()).tokenize(CorpusConfig.model_validate(content), 0, reads)


@pytest.fixture(scope="module")
def store() -> Iterator[TextStore]:
    """Ten terabytes in 2,500 files a domain; two domains are compressed, two are not."""
    with TextStore(domains=4, files=2500, blocks=16_000).serve() as serving:
        assert serving.text_bytes > 10e12
        yield serving


@pytest.fixture(scope="module")
def corpus(store: TextStore, tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    store.sent_bytes = 0
    with pytest.MonkeyPatch.context() as patch:
        run_in_process(patch)
        return corpus_of(store, tmp_path_factory.mktemp("sampled"))


def test_what_is_read_of_ten_terabytes(store: TextStore, corpus: TokenCorpus) -> None:
    counts = corpus.domains["domain-00000"]
    assert store.sent_bytes < 5e6, "of four domains"
    for name, found in corpus.domains.items():
        assert found.train.tokens > 0.98 * TOKENS, name
        assert found.train.tokens < 1.8 * TOKENS, "stretches are whole, and documents too"
        assert HELDOUT_TOKENS * 0.8 < found.valid.tokens <= HELDOUT_TOKENS
    assert counts.excerpt is not None
    assert counts.excerpt.files_read >= 2
    assert counts.excerpt.num_files == 2500


def test_what_there_is_of_it_all_is_estimated(store: TextStore, corpus: TokenCorpus) -> None:
    each = store.files * store.blocks * BLOCK_BYTES
    for name, found in corpus.domains.items():
        excerpt = found.excerpt
        assert excerpt is not None and excerpt.tokens is not None and excerpt.text_bytes is not None and excerpt.stderr_tokens is not None
        assert excerpt.text_bytes == pytest.approx(0.99 * each, rel=0.02), name
        assert excerpt.share == pytest.approx(excerpt.read_bytes / excerpt.text_bytes)
        tokens_per_byte = found.train.tokens / found.train.text_bytes
        assert excerpt.tokens == pytest.approx(excerpt.text_bytes * tokens_per_byte, rel=0.02)
        assert excerpt.stderr_tokens < 0.05 * excerpt.tokens
    assert corpus.tokens()["domain-00000"] > 1e11


def test_the_record_lists_what_was_read(corpus: TokenCorpus) -> None:
    content = read_record(corpus.address)["content"]
    assert 0 < content["domains"]["domain-00000"]["excerpt"]["share"] < 1e-6
    sources = content["sources"]
    read = corpus.domains["domain-00001"].excerpt
    assert read is not None
    assert sum(entry["domain"] == "domain-00001" for entry in sources) == read.files_read
    assert all(entry["size_bytes"] > 0 and entry["fingerprint"] for entry in sources)


def rows_of(corpus: TokenCorpus) -> list[Any]:
    return [RowReader(corpus, split).read(name, np.arange(rows)).tokens for split in ("train", "valid") for name, rows in corpus.rows(split).items()]


def test_the_sample_does_not_depend_on_the_cluster(store: TextStore, corpus: TokenCorpus, tmp_path: Path, in_process: Callable[[int], None]) -> None:
    in_process(7)
    other = corpus_of(store, tmp_path / "other")
    assert corpus.digest == other.digest
    assert all(np.array_equal(a, b) for a, b in zip(rows_of(corpus), rows_of(other), strict=True))


def test_more_tokens_keep_the_text_that_was_read(store: TextStore, corpus: TokenCorpus, tmp_path: Path, in_process: Callable[[int], None]) -> None:
    def documents(found: TokenCorpus) -> set[str]:
        tokenizer, _ = load_tokenizer(found.tokenizer_address)
        rows = [row.tolist() for part in rows_of(found) for row in part]
        return {number for row in rows for number in re.findall(r"[0-9a-f]{16}", tokenizer.decode(row))}

    larger = corpus_of(store, tmp_path / "larger", Reads(2 * TOKENS))
    assert larger.digest != corpus.digest
    before, after = documents(corpus), documents(larger)
    assert len(before & after) > 0.8 * len(before), "but for documents whose number lies on the border of two rows, and those held out and not used"
    assert len(after) > 1.3 * len(before)


def test_a_repeated_corpus_reads_nothing(store: TextStore, corpus: TokenCorpus, in_process: Callable[[int], None]) -> None:
    store.sent_bytes = 0
    again = corpus_of(store, Path(corpus.address).parents[1])
    assert (again.digest, store.sent_bytes) == (corpus.digest, 0)


def write_texts(folder: Path, num_files: int, documents: int) -> str:
    folder.mkdir()
    for i in range(num_files):
        lines = [json.dumps({"text": f"document {i} {j} " + "of some words and some more " * (j % 9)}) for j in range(documents)]
        (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
    return f"{folder}/*.jsonl"


def of_folder(folder: Path, pattern: str, reads: Reads | None, **changes: Any) -> TokenCorpus:
    content = {
        "domains": {"web": {"files": [pattern]}},
        "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 1000}},
        "row_tokens": 16,
        "heldout_tokens": 200,
        **changes,
    }
    return RayBackend(str(folder), Resources(), Reporter.silent()).tokenize(CorpusConfig.model_validate(content), 0, reads)


def test_a_sample_larger_than_the_source_is_all_of_it(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    pattern = write_texts(tmp_path / "texts", 3, 400)
    whole, larger = of_folder(tmp_path / "a", pattern, None), of_folder(tmp_path / "b", pattern, Reads(10**9))
    assert whole.digest == larger.digest, "how much is wanted does not matter where all is read"
    assert larger.domains["web"].excerpt is None
    some = of_folder(tmp_path / "c", pattern, Reads(2000))
    assert some.digest != whole.digest
    assert some.domains["web"].excerpt is not None


def test_what_is_short_of_the_tokens_asked_for_is_said(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    def said(folder: Path, wanted: int, pattern: str) -> str:
        console = Console(file=io.StringIO(), width=400)
        content = {"domains": {"web": {"files": [pattern]}}, "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 1000}}, "row_tokens": 16}
        config = CorpusConfig.model_validate({**content, "tokens_per_domain": wanted, "heldout_tokens": 200})
        RayBackend(str(folder), Resources(), Reporter(console)).tokenize(config, 0, Reads(wanted))
        return console.file.getvalue()  # type: ignore[attr-defined]

    pattern = write_texts(tmp_path / "texts", 3, 400)
    assert "fewer than corpus.tokens_per_domain (1,000,000,000), all that there is: web" in said(tmp_path / "a", 10**9, pattern)
    assert "fewer than" not in said(tmp_path / "b", 200, pattern)
    folder = tmp_path / "copies"
    folder.mkdir()
    (folder / "0.jsonl").write_text("".join(json.dumps({"text": f"the same {i % 5} again and again"}) + "\n" for i in range(40_000)))
    told = said(tmp_path / "c", 100_000, f"{folder}/*.jsonl")
    assert "fewer than corpus.tokens_per_domain (100,000), for copies and held-out text" in told
    assert "raise it if that is too little: web" in told


def test_fewer_files_than_workers(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    pattern = write_texts(tmp_path / "texts", 1, 3000)
    one = of_folder(tmp_path / "one", pattern, Reads(2000))
    in_process(7)
    seven = of_folder(tmp_path / "seven", pattern, Reads(2000))
    assert one.domains["web"].excerpt == seven.domains["web"].excerpt is not None
    assert all(np.array_equal(a, b) for a, b in zip(rows_of(one), rows_of(seven), strict=True))


def test_what_only_a_library_reads_is_sampled_too(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    """Files of a data set that are read as a stream: its beginning, from which nothing tells how much there is."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        lines = [f'"document {number} {i} of some words and some more"' for i in range(30_000)]
        (tmp_path / "data" / f"{number}.csv").write_text("\n".join(["text", *lines]) + "\n")
    domains = {"web": {"huggingface": {"path": str(tmp_path / "data")}}}
    some = of_folder(tmp_path / "some", "", Reads(2000), domains=domains)
    assert some.domains["web"].excerpt is not None and 2000 <= some.domains["web"].train.tokens < 200_000
    whole = of_folder(tmp_path / "whole", "", Reads(10**9), domains=domains)
    assert whole.domains["web"].excerpt is None and whole.domains["web"].train.documents > 55_000


def test_small_sources_are_read_whole(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    pattern = write_texts(tmp_path / "texts", 3, 400)
    assert of_folder(tmp_path / "a", pattern, Reads(100, small_bytes=1 << 20)).domains["web"].excerpt is None
    assert of_folder(tmp_path / "a", pattern, Reads(100, small_bytes=1 << 10)).domains["web"].excerpt is not None


def test_a_changed_file_is_another_source(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    pattern = write_texts(tmp_path / "texts", 3, 400)
    before = of_folder(tmp_path / "a", pattern, Reads(100))
    assert of_folder(tmp_path / "a", pattern, Reads(100)).digest == before.digest
    with (tmp_path / "texts" / "0.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert of_folder(tmp_path / "a", pattern, Reads(100)).digest != before.digest


def test_declared_held_out_text_and_targets_are_sampled_too(store: TextStore, tmp_path: Path, in_process: Callable[[int], None]) -> None:
    patterns = store.patterns()
    domains = {"web": {"files": [patterns["domain-00000"]], "heldout": [patterns["domain-00001"]]}}
    store.sent_bytes = 0
    corpus = corpus_of(store, tmp_path / "runs", domains=domains, targets={"use": {"files": [patterns["domain-00002"]]}})
    assert store.sent_bytes < 5e6
    assert corpus.rows("valid").keys() == {"web", "use"}
    assert all(HELDOUT_TOKENS * 0.8 < corpus.domains[name].valid.tokens <= HELDOUT_TOKENS for name in ("web", "use"))


def test_sampled_held_out_text_beside_text_that_is_read_whole(store: TextStore, tmp_path: Path, in_process: Callable[[int], None]) -> None:
    """Nothing is looked at to tell how many bytes make a token, and what is held out is enough all the same."""
    pattern = write_texts(tmp_path / "texts", 3, 400)
    corpus = corpus_of(store, tmp_path / "runs", domains={"web": {"files": [pattern], "heldout": [store.patterns()["domain-00001"]]}})
    counts = corpus.domains["web"]
    assert counts.excerpt is None
    assert HELDOUT_TOKENS * 0.8 < counts.valid.tokens <= HELDOUT_TOKENS


def test_estimates_are_of_train_text_where_held_out_text_comes_from_elsewhere(store: TextStore, tmp_path: Path, in_process: Callable[[int], None]) -> None:
    patterns = store.patterns()
    corpus = corpus_of(store, tmp_path / "runs", domains={"web": {"files": [patterns["domain-00001"]], "heldout": [patterns["domain-00003"]]}})
    counts = corpus.domains["web"]
    assert counts.excerpt is not None and counts.excerpt.tokens is not None and counts.excerpt.text_bytes is not None
    assert counts.excerpt.tokens == pytest.approx(counts.excerpt.text_bytes * counts.train.tokens / counts.train.text_bytes, rel=0.02)


def test_a_source_without_documents_at_its_beginning_is_refused(tmp_path: Path, in_process: Callable[[int], None]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 2000)
    with pytest.raises(UserError, match=r"^corpus\.domains\.web: no documents at the beginning of its files; check them and corpus\.text_column"):
        of_folder(tmp_path / "runs", str(tmp_path / "a.jsonl"), Reads(10))
