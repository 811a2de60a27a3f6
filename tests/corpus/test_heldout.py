"""What is held out: no copy of it is trained on, bounds hold to the token, and a domain with too little text is trained on and not measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from chameleon_ray.artifacts import SPLITS, TokenCorpus
from chameleon_ray.cli import main
from chameleon_ray.config import Resources
from chameleon_ray.corpus.documents import document_hash
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.corpus.tokenizer import END_OF_DOCUMENT
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.counts import SplitCounts
from chameleon_ray.errors import UserError
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from tests.corpus.test_scatter import GOOD, Refused, decoded, lines, prose, read_all, section, tokenized


def documents_of(corpus: TokenCorpus, split: str, name: str) -> set[str]:
    """Texts of a split, without one that is cut to a few words."""
    return {text for text in decoded(corpus, split, name).split(END_OF_DOCUMENT) if len(text) > 30}


def test_copies_in_another_domain_leave_enough_to_be_measured(in_process: Callable[[int], None], tmp_path: Path) -> None:
    """The second domain's lowest hashes are copies of the first's, which would be held out there too."""
    texts = sorted(prose("shared", 30), key=document_hash)
    domains = {"first": {"files": lines(texts[:20])}, "second": {"files": lines([*texts[:10], *texts[20:]])}}
    corpus = tokenized(tmp_path / "runs", section(tmp_path, domains))
    for name, expected in (("first", (16, 2, 2)), ("second", (7, 2, 1))):
        assert tuple(corpus.domains[name].split(split).documents for split in SPLITS) == expected, "a fifth of the bytes that are left"


@pytest.mark.parametrize("seed", range(4))
def test_no_text_that_is_held_out_is_trained_on(in_process: Callable[[int], None], tmp_path: Path, seed: int) -> None:
    """Random copies within domains, between them, and of declared held-out documents, also of those that the bound leaves unused."""
    chance = np.random.default_rng(seed)
    pool = prose(f"pool {seed}", 60)
    own = {name: prose(f"{name} {seed}", 12) for name in ("split", "given", "late")}
    declared = [*prose(f"held {seed}", 15), *pool[:5]]
    domains = {
        name: {"files": lines([*texts, *chance.choice(pool, 25), *chance.choice(texts, 4), *(declared[:12] if name != "split" else [])])}
        for name, texts in own.items()
    }
    domains["given"]["heldout"] = lines(declared)
    corpus = tokenized(tmp_path / "runs", {**section(tmp_path, domains, row_tokens=64), "heldout_tokens": [1 << 20, 150][seed % 2]})
    assert corpus.unmeasured == ()
    assert (corpus.domains["given"].unused_heldout > 0) == (seed % 2 == 1)
    train = "".join(decoded(corpus, "train", name) for name in corpus.names)
    measured = [text for split in ("valid", "test") for name in corpus.names for text in documents_of(corpus, split, name)]
    assert len(measured) >= 6
    for text in {*measured, *declared}:
        assert text[:30] not in train, text


def test_the_bound_holds_to_the_token(in_process: Callable[[int], None], tmp_path: Path) -> None:
    book = " ".join(prose("book", 90))
    domains = {
        "web": {"files": lines(prose("web", 4000))},
        "books": {"files": lines([f"{i} {book}" for i in range(6)])},
        "given": {"files": lines(prose("given")), "heldout": lines(prose("held", 300))},
        "small": {"files": lines(prose("small"))},
    }
    content = {**section(tmp_path, domains, row_tokens=64), "heldout_tokens": 1000}
    corpus = tokenized(tmp_path / "runs", content)
    for name in corpus.names:
        counts = corpus.domains[name]
        for split in ("valid", "test"):
            rows = RowReader(corpus, split).read(name, np.arange(corpus.rows(split)[name]))
            assert rows.length.sum() == counts.split(split).tokens
            assert counts.split(split).tokens < 1000 if name == "small" else counts.split(split).tokens == 1000, name
        assert counts.train.rows > 0
    books, given, web = (corpus.domains[name] for name in ("books", "given", "web"))
    assert (books.valid.documents, books.test.documents, books.train.documents, books.unused_heldout) == (1, 1, 4, 0), "their first tokens are measured"
    assert given.train.documents == 40
    assert given.valid.documents + given.test.documents + given.unused_heldout == 300
    assert web.train.documents + web.valid.documents + web.test.documents + web.unused_heldout == 4000
    assert web.unused_heldout < 0.05 * 4000, "the bound in bytes keeps most of what is not measured for training"
    unbounded = tokenized(tmp_path / "runs", {**content, "heldout_tokens": 1 << 20})
    assert unbounded.digest != corpus.digest
    assert unbounded.domains["given"].unused_heldout == 0
    for name in ("web", "given"):
        measured = decoded(unbounded, "valid", name) + decoded(unbounded, "test", name)
        assert decoded(corpus, "valid", name)[:30] in measured, "lowest hashes first, whatever the bound"


def test_a_domain_too_small_to_be_measured_is_trained_on(in_process: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = [f"three {i} of the and to in is that for it as was" for i in range(3)]
    domains = {
        "good": GOOD,
        "two": {"files": lines(prose("two", 2))},
        "one held out": {"files": lines(prose("one held out")), "heldout": lines(prose("alone", 1) * 3)},
        "copies": {"files": lines([*prose("good"), *prose("copies", 2)])},
        "less than a row is left": {"files": lines(three)},
    }
    content = section(tmp_path, domains, row_tokens=32)
    corpus = RayBackend(str(tmp_path / "runs"), Resources(), Reporter(Console(stderr=True))).tokenize(CorpusConfig.model_validate(content), seed=0)
    assert corpus.measured == ("good",)
    assert corpus.unmeasured == ("two", "one held out", "copies", "less than a row is left")
    assert f"not measured, for lack of held-out text: {', '.join(corpus.unmeasured)}" in " ".join(capsys.readouterr().err.split())
    trained = {name: corpus.domains[name].train.documents for name in corpus.names}
    assert trained == {"good": trained["good"], "two": 2, "one held out": 40, "copies": 2, "less than a row is left": 3}
    for name in corpus.unmeasured:
        counts = corpus.domains[name]
        assert counts.train.rows == counts.train.tokens // 32 > 0
        assert (counts.valid, counts.test) == (SplitCounts(0, 0, 0, ()), SplitCounts(0, 0, 0, ()))
    assert [corpus.domains[name].unused_heldout for name in corpus.unmeasured] == [0, 1, 0, 0]
    assert "alone" not in decoded(corpus, "train", "one held out")
    assert len(np.unique(RowReader(corpus).read("less than a row is left", np.arange(1)).document)) == 1
    assert TokenCorpus.load(corpus.address) == corpus


@pytest.mark.parametrize(
    "bad",
    [
        {"files": lines(prose("bad", 2))},
        {"files": lines(prose("bad")), "heldout": lines(["only one"])},
        {"files": lines([*prose("good"), *prose("bad", 2)])},
        {"files": lines([f"bad {i} of the and" for i in range(3)])},
    ],
)
def test_domains_that_must_be_measured_are_refused_when_they_cannot_be(
    in_process: Callable[[int], None], refused: Refused, tmp_path: Path, bad: dict[str, bytes]
) -> None:
    content = section(tmp_path, {"good": GOOD, "bad": bad})
    message = refused({**content, "require_heldout": True})
    assert message.startswith("corpus.domains.bad: too little text to be measured: two distinct held-out documents")
    assert "add documents or heldout files, or set corpus.require_heldout to false" in message
    few = len(bad["files"].splitlines()) != 3
    assert bool(list(tmp_path.rglob("tokenizer.json"))) != few, "told before a tokenizer is trained, unless only the rows show it"
    corpus = tokenized(tmp_path / "runs", content)
    assert corpus.unmeasured == ("bad",)
    with pytest.raises(UserError, match=r"^corpus.domains.bad: too little text to be measured"):
        tokenized(tmp_path / "runs", {**content, "require_heldout": True})


def test_without_any_text_to_measure_on_there_is_a_mixture_and_no_comparison(
    in_process: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"model": {"preset": "cpu-tiny"}, "steps": 2, "batch_rows": 2}
    content = section(tmp_path, {name: {"files": lines(prose(name, 2))} for name in ("a", "b")})
    methods = {"uniform": {}, "regmix": {"num_proxies": 50}}
    experiment = {"name": "small", "storage": str(tmp_path / "runs"), "corpus": content, "proxy": training, "base": training, "methods": methods}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    for command in (["compare"], ["mix", "--method", "regmix"]):
        with pytest.raises(SystemExit) as exit_:
            main([command[0], str(tmp_path / "experiment.yaml"), *command[1:], "--json"])
        assert exit_.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: corpus: no domain has two distinct held-out documents, so that nothing can be measured; add documents")
        assert told.count("\n") == 1
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"corpora"}, "nothing was trained"
    with pytest.raises(SystemExit) as exit_:
        main(["mix", str(tmp_path / "experiment.yaml"), "--method", "uniform", "--json"])
    assert exit_.value.code == 0
    assert json.loads(capsys.readouterr().out)["weights"] == {"a": 0.5, "b": 0.5}


def test_the_order_of_files_changes_no_row(in_process: Callable[[int], None], tmp_path: Path) -> None:
    found = []
    for turn in (1, -1):
        folder = tmp_path / str(turn)
        folder.mkdir()
        content = section(folder, {name: {"files": lines((prose(name) + prose("both", 9))[::turn])} for name in ("web", "code")})
        files = [folder / f"more-{i}.jsonl" for i in range(3)]
        for i, path in enumerate(files):
            path.write_bytes(lines(prose(f"more {i}", 9)))
        content["domains"]["web"]["files"] += list(map(str, files[::turn]))
        corpus = tokenized(tmp_path / "runs", content)
        found.append([read_all(corpus, split, name).tolist() for split in SPLITS for name in corpus.names])
    assert found[0] == found[1]
