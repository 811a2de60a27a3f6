"""Targets: measured by every model, trained on by none, and refused when they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.chunks import chunks_of
from chameleon_ray.corpus.rows import RowReader
from tests.corpus.test_scatter import GOOD, Refused, decoded, lines, prose, section, tokenized

LETTERS = prose("letters", 30)


def with_target(folder: Path, **target: Any) -> dict[str, Any]:
    """A corpus of one domain, which has copies of some letters, and letters as the target."""
    content = section(folder, {"good": {"files": lines([*prose("good", 60), *LETTERS[:10]])}, "letters": {"files": lines(LETTERS)}}, row_tokens=64)
    letters = content["domains"].pop("letters")
    return {**content, "targets": {"letters": {**letters, **target}}}


def test_a_target_is_measured_and_never_trained_on(in_process: Callable[[int], None], tmp_path: Path) -> None:
    corpus = tokenized(tmp_path / "runs", with_target(tmp_path))
    assert (corpus.names, corpus.targets, corpus.measured, corpus.heldout) == (("good",), ("letters",), ("good",), ("good", "letters"))
    counts = corpus.domains["letters"]
    assert (counts.train.documents, counts.train.rows, counts.quality) == (0, 0, None)
    assert counts.valid.documents + counts.test.documents == 30
    train = decoded(corpus, "train", "good")
    assert not any(text[:30] in train for text in LETTERS), "not even the copies that a domain has"
    assert corpus.domains["good"].duplicates == 10
    assert set(corpus.rows()) == {"good"} and set(corpus.rows("valid")) == {"good", "letters"}
    assert {chunk.domain for chunk in chunks_of(corpus, ["m"], ["train"], 8)} == {"good"}
    assert {chunk.domain for chunk in chunks_of(corpus, ["m"], ["test"], 8)} == {"good", "letters"}
    assert len(RowReader(corpus, "test").read("letters", np.arange(1))) == 1
    assert TokenCorpus.load(corpus.address) == corpus
    good = corpus.domains["good"]
    assert good.quality is not None and good.quality.sample_bytes > 0
    for split in (good.train, good.valid, good.test, counts.valid):
        assert 1 < split.text_bytes / split.tokens < 6


def test_bytes_are_those_of_the_documents(in_process: Callable[[int], None], tmp_path: Path) -> None:
    corpus = tokenized(tmp_path / "runs", with_target(tmp_path))
    counts = corpus.domains["letters"]
    assert counts.valid.text_bytes + counts.test.text_bytes == sum(len(text.encode()) for text in LETTERS)
    bounded = tokenized(tmp_path / "runs", {**with_target(tmp_path), "heldout_tokens": 100}).domains["letters"].valid
    assert bounded.tokens == 100 and bounded.text_bytes == pytest.approx(100 * counts.valid.text_bytes / counts.valid.tokens, rel=0.2)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"targets": {"good": {"files": ["x.jsonl"]}}}, "corpus: targets.good is also a domain; a target is never trained on: choose another name"),
        ({"targets": {"letters": {"files": []}}}, "corpus.targets.letters: give either files or huggingface"),
        ({"targets": {"letters": {"files": ["nowhere-*.jsonl"]}}}, "corpus.targets.letters.files[0]: 'nowhere-*.jsonl' matches no file"),
    ],
)
def test_bad_targets_are_refused(refused: Refused, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    assert told in refused({**section(tmp_path, {"good": GOOD}), **change})


def test_a_target_without_enough_text_is_refused(refused: Refused, tmp_path: Path) -> None:
    content = section(tmp_path, {"good": GOOD, "few": {"files": lines(["only one letter"] * 3)}})
    few = content["domains"].pop("few")
    assert refused({**content, "targets": {"few": few}}).startswith("corpus.targets.few: too little text to be measured: two distinct documents are needed")


def test_a_target_that_is_a_domains_text_is_refused(refused: Refused, tmp_path: Path) -> None:
    content = section(tmp_path, {"good": GOOD})
    address = content["domains"]["good"]["files"][0]
    same = refused({**content, "targets": {"mine": {"files": [address]}}})
    assert same == f"corpus.targets.mine: {address} is the text of domain 'good' too; a target is never trained on, leave it out of one of them"
    (tmp_path / "copy.jsonl").write_bytes(Path(address).read_bytes())
    assert f"(a copy of {address})" in refused({**content, "targets": {"mine": {"files": [str(tmp_path / "copy.jsonl")]}}})


def test_a_targets_unusable_documents_are_a_targets(refused: Refused, tmp_path: Path) -> None:
    content = section(tmp_path, {"good": GOOD, "bad": {"files": lines(["a\0b"] * 5)}})
    bad = content["domains"].pop("bad")
    assert refused({**content, "targets": {"bad": bad}}).startswith("corpus.targets.bad: 5 of 5 documents cannot be used")


def test_held_out_rows_are_taken_at_even_distances(in_process: Callable[[int], None], tmp_path: Path) -> None:
    corpus = tokenized(tmp_path / "runs", with_target(tmp_path))
    rows = corpus.rows("valid")["letters"]
    assert rows > 6
    (found,) = (chunk for chunk in chunks_of(corpus, ["m"], ["valid"], 64, rows_at_most=3) if chunk.domain == "letters")
    assert found.numbers().tolist() == [0, rows // 3, 2 * rows // 3]
    for most, expected in ((None, list(range(rows))), (rows - 1, [i * rows // (rows - 1) for i in range(rows - 1)])):
        chunks = [chunk for chunk in chunks_of(corpus, ["m"], ["valid"], 2, rows_at_most=most) if chunk.domain == "letters"]
        assert [number for chunk in chunks for number in chunk.numbers().tolist()] == expected
    first = [chunk for chunk in chunks_of(corpus, ["m"], ["train"], 2, rows_at_most=3) if chunk.domain == "good"]
    assert [number for chunk in first for number in chunk.numbers().tolist()] == [0, 1, 2], "train rows are stored shuffled"


def test_a_discovered_domain_of_the_same_name_is_refused(refused: Refused, tmp_path: Path) -> None:
    lines_of = "".join(f'{{"text": "{text}", "kind": "{kind}"}}\n' for kind in ("a", "b") for text in prose(kind, 40))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(lines_of)
    content = section(tmp_path, {"good": GOOD})
    target = content.pop("domains")["good"]
    content |= {"domains_from": {"huggingface": str(tmp_path / "set"), "domain_column": "kind"}, "targets": {"b": target}}
    assert refused(content).startswith("corpus.targets.b: a domain has that name too, and a target is never trained on")
