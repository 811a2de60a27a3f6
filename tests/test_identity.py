"""A digest changes with everything that changes the result, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chameleon_ray import identity
from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import EmbeddingConfig, TrainingConfig
from chameleon_ray.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256, train_tokenizer
from chameleon_ray.corpus_config import CorpusConfig
from chameleon_ray.mixing.doge import DoGERule
from chameleon_ray.mixing.doremi import DoReMiRule
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixing.settled import SettledRule
from tests.fakes import make_corpus

TEXTS = ["the quick brown fox jumps over the lazy dog, é ü", "hello world 123 foo bar"] * 40
TRAINING = TrainingConfig(model={"preset": "cpu-tiny"}, steps=10)
JOB = TrainJob("base", TRAINING, {"alpha": 0.5, "beta": 0.25, "gamma": 0.25}, 0)


@pytest.fixture
def corpus() -> TokenCorpus:
    return make_corpus({"alpha": 40, "beta": 24, "gamma": 9})


def corpus_config(column: str = "meta.source", **changes: object) -> CorpusConfig:
    found = {"huggingface": "somewhere", "domain_column": column}
    return CorpusConfig.model_validate({"domains_from": found, "tokenizer": {"pretrained": "gpt2"}, **changes})


def test_two_domain_columns_of_one_data_set_are_two_corpora() -> None:
    sources = [(None, False, "f")]
    digest = identity.corpus_digest(corpus_config(), sources, "t", 0)
    assert digest == identity.corpus_digest(corpus_config(), sources, "t", 0)
    assert digest != identity.corpus_digest(corpus_config("meta.topic"), sources, "t", 0)


@pytest.mark.parametrize("changed", [{"row_tokens": 64}, {"text_column": "content"}, {"heldout_fraction": 0.1}])
def test_what_makes_another_corpus(changed: dict[str, object]) -> None:
    sources = [(None, False, "f")]
    digest = identity.corpus_digest(corpus_config(), sources, "t", 0)
    assert digest != identity.corpus_digest(corpus_config(**changed), sources, "t", 0)
    others = [(sources, "t", 1), (sources, "u", 0), ([("a", False, "f")], "t", 0), ([(None, True, "f")], "t", 0), ([(None, False, "g")], "t", 0)]
    assert all(digest != identity.corpus_digest(corpus_config(), *other) for other in others)
    assert digest == identity.corpus_digest(corpus_config(max_repetition=4), sources, "t", 0)


def test_a_tokenizer_is_more_than_its_vocabulary() -> None:
    def trained() -> Tokenizer:
        return train_tokenizer(320, {"only": TEXTS})

    plain, other = trained(), trained()
    assert tokenizer_sha256(plain, 0) == tokenizer_sha256(other, 0)
    other.normalizer = normalizers.Lowercase()
    assert tokenizer_sha256(plain, 0) != tokenizer_sha256(other, 0)
    other = trained()
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert tokenizer_sha256(plain, 0) != tokenizer_sha256(other, 0)
    assert tokenizer_sha256(plain, 0) != tokenizer_sha256(plain, 1)


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]", "[PAD]"], show_progress=False))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "special"), [(word_pieces, {"eos_token": "[SEP]", "pad_token": "[PAD]"}), (unigram, {"eos_token": "</s>", "bos_token": "<s>"})]
)
def test_saving_a_pretrained_tokenizer_again_leaves_it_the_same(make: object, special: dict[str, str], tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=make(), **special).save_pretrained(tmp_path / "given")  # type: ignore[operator]
    given = load_tokenizer(str(tmp_path / "given"))
    save_tokenizer(*given, str(tmp_path / "saved"))
    assert tokenizer_sha256(*load_tokenizer(str(tmp_path / "saved"))) == tokenizer_sha256(*given)


def test_a_pretrained_tokenizer_keeps_its_special_tokens_and_its_template(tmp_path: Path) -> None:
    special: dict[str, Any] = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "extra_special_tokens": ["<turn>"]}
    special |= {"chat_template": "{{ messages[0].content }}!", "padding_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=unigram(), **special).save_pretrained(tmp_path / "given")
    save_tokenizer(*load_tokenizer(str(tmp_path / "given")), str(tmp_path / "saved"), like=str(tmp_path / "given"))
    given, saved = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("given", "saved"))
    assert saved.special_tokens_map == given.special_tokens_map and saved.bos_token == "<s>" and saved.all_special_tokens == given.all_special_tokens
    assert saved.apply_chat_template([{"role": "user", "content": "good"}], tokenize=False) == "good!" and saved.padding_side == "left"
    assert tokenizer_sha256(*load_tokenizer(str(tmp_path / "saved"))) == tokenizer_sha256(*load_tokenizer(str(tmp_path / "given")))


def test_a_model_is_told_by_what_changes_it(corpus: TokenCorpus) -> None:
    digest = identity.model_digest(JOB, corpus)
    same = {"micro_batch_rows": 4, "zero_stage": 2, "checkpoint_every_steps": 3}
    assert set(same) == identity.NOT_IN_DIGEST
    assert identity.model_digest(replace(JOB, training=TRAINING.model_copy(update=same), role="proxy"), corpus) == digest
    reference = TrainedModel("nowhere", "r", {}, 300, "0", Cost())
    changed = [
        replace(JOB, seed=1),
        replace(JOB, weights={**JOB.weights, "alpha": 0.4}),
        *(replace(JOB, training=TRAINING.model_copy(update=change)) for change in ({"steps": 11}, {"precision": "fp32"}, {"precision": "bf16"})),
        replace(JOB, rule=DoGERule()),
        replace(JOB, rule=DoReMiRule()),
        replace(JOB, rule=DoReMiRule(step_size=2.0)),
        replace(JOB, rule=DoReMiRule(), reference=reference),
    ]
    digests = [identity.model_digest(job, corpus) for job in changed]
    assert len({digest, *digests}) == 1 + len(changed)


@pytest.mark.parametrize("rule", [DoReMiRule, DoGERule])
def test_another_version_of_a_rule_is_another_model(rule: type, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(JOB, rule=rule())
    before = identity.model_digest(job, corpus)
    monkeypatch.setattr(rule, "version", rule.version + 1)
    assert identity.model_digest(job, corpus) != before


@pytest.mark.parametrize(("method", "rule"), [("chameleon", SettledRule), ("doremi", DoReMiRule), ("doge", DoGERule)])
def test_another_version_of_a_rule_is_another_mixture(method: str, rule: type, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity.mixture_digest(method, METHODS[method](), {"proxy": TRAINING}, corpus, 0)
    monkeypatch.setattr(rule, "version", rule.version + 1)
    assert identity.mixture_digest(method, METHODS[method](), {"proxy": TRAINING}, corpus, 0) != before


@pytest.mark.parametrize("method", METHODS)
def test_another_version_of_a_method_is_another_mixture(method: str, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = METHODS[method]
    settings = {"weights": {"alpha": 0.5, "beta": 0.25, "gamma": 0.25}} if method == "fixed" else {}
    sections = {"proxy": TRAINING, "embedding": EmbeddingConfig()}

    def digest() -> str:
        return identity.mixture_digest(method, kind(**settings), sections, corpus, 0)

    before = digest()
    monkeypatch.setattr(kind, "version", kind.version + 1)
    assert digest() != before


def chain(corpus: TokenCorpus) -> dict[str, str]:
    """Digests of what is made of each other, from a job to its report."""
    model = identity.model_digest(JOB, corpus)
    sections = {"proxy": TRAINING, "embedding": EmbeddingConfig()}
    mixture = identity.mixture_digest("chameleon", METHODS["chameleon"](), sections, corpus, 0)
    return {
        "model": model,
        "family": identity.family_digest(JOB, corpus),
        "proxy": identity.proxy_digest(JOB, corpus, "valid", 100),
        "embeddings": identity.embeddings_digest(model, corpus, 1, EmbeddingConfig()),
        "losses": identity.losses_digest(model, corpus, ("valid", "test")),
        "glance": identity.glance_digest(model, corpus, 3),
        "mixture": mixture,
        "report": identity.report_digest([mixture], [model], {"name": "x"}, {}),
    }


CHANGED = {
    "model": {"model", "family", "proxy", "embeddings", "losses", "glance", "mixture", "report"},
    "family": {"family"},
    "proxy": {"proxy", "mixture", "report"},
    "embeddings": {"embeddings", "mixture", "report"},
    "losses": {"losses", "report"},
    "glance": {"glance", "mixture", "report"},
    "mixture": {"mixture", "report"},
    "report": {"report"},
}


@pytest.mark.parametrize("kind", CHANGED)
def test_another_version_of_a_kind_is_another_of_all_that_is_made_of_it(kind: str, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain(corpus)
    assert chain(corpus) == before and len(set(before.values())) == len(before)
    monkeypatch.setitem(identity.VERSIONS, kind, identity.VERSIONS[kind] + 1)
    assert {name for name, digest in chain(corpus).items() if digest != before[name]} == CHANGED[kind]


@pytest.mark.parametrize("kind", sorted(identity.VERSIONS.keys() - CHANGED.keys()))
def test_another_version_of_what_is_read_is_another_artifact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity.digest_of(kind, {"a": 1})
    monkeypatch.setitem(identity.VERSIONS, kind, identity.VERSIONS[kind] + 1)
    assert identity.digest_of(kind, {"a": 1}) != before


def test_embeddings_are_told_by_layer_samples_and_number_format(corpus: TokenCorpus) -> None:
    specs = [EmbeddingConfig(), EmbeddingConfig(samples_per_domain=3), EmbeddingConfig(precision="fp32")]
    digests = [identity.embeddings_digest("m", corpus, layer, spec) for spec in specs for layer in (1, 2)]
    assert len(set(digests)) == len(digests)
    assert identity.embeddings_digest("m", corpus, 1, EmbeddingConfig(layer=1)) == digests[0], "the middle by its number is the middle"


@pytest.mark.parametrize("changed", [{"mixtures": ["m/0/y"]}, {"models": []}, {"experiment": {"name": "y"}}, {"failures": {"m": "told"}}])
def test_a_report_is_told_by_all_that_it_shows(changed: dict[str, Any]) -> None:
    shown: dict[str, Any] = {"mixtures": ["m/0/x"], "models": ["m/0/z"], "experiment": {"name": "x"}, "failures": {}}
    assert identity.report_digest(**shown) != identity.report_digest(**{**shown, **changed})


def test_a_kind_without_a_version_has_no_digest() -> None:
    with pytest.raises(KeyError):
        identity.digest_of("unknown", {})
