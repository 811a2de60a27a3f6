"""Small results of every algorithm with a version, from fixed inputs: `python -m tests.golden.results` writes them anew to results.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import TrainingConfig
from chameleon_ray.corpus.quality import quality_of
from chameleon_ray.identity import VERSIONS
from chameleon_ray.mixing.methods import METHODS
from chameleon_ray.mixing.text_quality import TextQuality, factors
from tests.fakes import make_context

FILE = Path(__file__).with_name("results.json")
ROWS = {"web": 400, "books": 90, "code": 120, "math": 33, "news": 7}
FIXED = {"web": 0.4, "books": 0.3, "code": 0.1, "math": 0.1, "news": 0.1}

Result = tuple[str, list[float]]  # version of what made it, numbers


def results(folder: Path) -> dict[str, Callable[[], Result]]:
    """Name -> how to compute it; `folder` is for files in between."""
    found: dict[str, Callable[[], Result]] = {f"mixture {name}": lambda name=name: _mixture(name) for name in METHODS}
    of_models = {name: lambda make=make: make(folder) for name, make in {"model": _model, "embeddings": _embeddings, "losses": _losses}.items()}
    return {**found, "tokenizer": lambda: _tokenizer(folder), **of_models, "quality": _quality, "clusters": _clusters, "settled": _settled}


def _mixture(name: str) -> Result:
    settings: dict[str, Any] = {"regmix": {"num_proxies": 64, "samples": 1000, "top": 16}, "fixed": {"weights": FIXED}}.get(name, {})
    method = METHODS[name](**settings)
    context = make_context(ROWS)
    mixture = method.fit(context)
    rule = next((job.rule for job in context.backend.jobs if job.rule), None)
    version = f"mixture {VERSIONS['mixture']}, method {method.version}{f', rule {rule.version}' if rule else ''}"
    return version, [*mixture.weights.values(), *(mixture.scores or {}).values(), *(mixture.weights_stderr or {}).values()]


def _corpus(folder: Path) -> TokenCorpus:
    from tests.corpora import make_corpus

    return make_corpus(folder / "corpus")


def _tokenizer(folder: Path) -> Result:
    """The first digits of a tokenizer's identity."""
    return f"tokenizer {VERSIONS['tokenizer']}", [float(int(_corpus(folder).tokenizer_sha256[:12], 16))]


def _quality() -> Result:
    """What a sample of text shows, and by how much Chameleon then counts domains."""
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta", "epsilon"], (12, 40))
    found = quality_of([" ".join(row) for row in [*words, *words[:3]]])
    texts = {"good": TextQuality(2.7, 0.02, 0.5), "plain": TextQuality(3.1, 0.0, 0.4), "poor": TextQuality(9.0, found.repeated, 0.1)}
    version = f"corpus {VERSIONS['corpus']}, method {METHODS['chameleon'].version}"
    return version, [float(found.sample_bytes), found.compression, found.repeated, *factors(texts, list(texts)).values()]


def _model(folder: Path) -> Result:
    """The order of the data, and what three steps of training make of it."""
    from chameleon_ray.models.hardware import detect
    from chameleon_ray.training.plan import MixturePlan
    from chameleon_ray.training.worker import train_proxy

    corpus = _corpus(folder)
    weights = {"alpha": 0.5, "beta": 0.3, "gamma": 0.2}
    plan = MixturePlan(weights, corpus.rows(), 3)
    rows, _ = plan.take(plan.start(), 200)
    training = TrainingConfig(model={"layers": 2, "heads": 2, "width": 16}, steps=3, batch_rows=8, learning_rate=1e-2, min_learning_rate=1e-3)
    losses = train_proxy(TrainJob("swarm", training, weights, 3), corpus, "valid", 1 << 20, "digest", detect(False, "fp32")).losses
    order = [float((part * np.arange(1, 201)).sum()) for part in (rows.domain, rows.row, rows.epoch)]
    return f"model {VERSIONS['model']}, proxy {VERSIONS['proxy']}", [*order, *losses.values()]


def _embeddings(folder: Path) -> Result:
    """Pooling at the middle layer, and the groups of the samples."""
    from chameleon_ray.config import ModelConfig
    from chameleon_ray.corpus.rows import RowReader
    from chameleon_ray.embedding.groups import group_sums
    from chameleon_ray.models.architecture import middle_layer
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.hardware import detect
    from chameleon_ray.models.load import load_truncated
    from chameleon_ray.models.pooling import MeanHiddenState

    corpus = _corpus(folder)
    layers = 3
    model = build_model(ModelConfig(layers=layers, heads=2, width=16), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed=5)
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    rows = RowReader(corpus).read("alpha", np.arange(20))
    truncated = load_truncated(str(folder / "model"), middle_layer(layers), detect(False, "fp32"))
    pooled = MeanHiddenState(truncated, middle_layer(layers))(rows.tokens, rows.length).numpy()
    sums, counts = group_sums(pooled, rows.document)
    return f"embeddings {VERSIONS['embeddings']}", [float(middle_layer(layers)), *counts.astype(float).tolist(), *np.abs(sums).sum(axis=1).tolist()]


def _losses(folder: Path) -> Result:
    """By document, of some rows at even distances, as base models and the proxy are measured."""
    from chameleon_ray.config import ModelConfig
    from chameleon_ray.corpus.chunks import chunks_of
    from chameleon_ray.evaluation.worker import EvaluateWorker
    from chameleon_ray.models.build import build_model
    from chameleon_ray.models.losses import measured_rows

    corpus = _corpus(folder)
    model = build_model(ModelConfig(layers=2, heads=2, width=16), corpus.vocab_size, corpus.row_tokens, corpus.end_of_document, seed=5)
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    worker, numbers = EvaluateWorker(corpus, use_gpu=False, threads=1), list[float]()
    for chunk in chunks_of(corpus, [str(folder / "model")], ["valid"], chunk_rows=4, rows_at_most=4):
        found = worker({key: [value] for key, value in asdict(chunk).items()})
        numbers += [float(found[key][0].sum()) for key in ("document", "nats", "tokens")]
    rows = measured_rows(corpus, "valid", 4 * corpus.row_tokens)
    return f"losses {VERSIONS['losses']}, glance {VERSIONS['glance']}", [*numbers, *(float(each.sum()) for each in rows.values())]


def _clusters() -> Result:
    """Documents about three directions divided among as many centres, of which the smallest goes to its neighbour; the words that tell them apart."""
    import scipy.sparse as sp

    from chameleon_ray.embedding.clusters import MiniBatches, begin, merged, nearest, telling_words, unit

    random = np.random.default_rng(0)
    vectors = unit(np.repeat(np.eye(3, 6), (40, 30, 20), axis=0) + 0.1 * random.standard_normal((90, 6)))
    batches = MiniBatches(begin(vectors[::3], 3, seed=1), seed=1)
    batches.add(vectors)
    centres = batches.centres()
    cluster, similar = nearest(vectors, centres)
    sizes = np.bincount(cluster, minlength=3)
    told = telling_words(sp.csr_array(np.array([[9, 1, 0], [1, 8, 2]])), [10, 10], ["one", "two", "three"])
    words = [float(len(each)) for each in told]
    return f"clusters {VERSIONS['clusters']}", [*map(float, sorted(sizes)), float(similar.sum()), *map(float, merged(centres, sizes, 25.0)), *words]


def _settled() -> Result:
    """A look at a proxy's embeddings, as the rule that may end its run weighs them."""
    from chameleon_ray.backend import Seen
    from chameleon_ray.mixing.chameleon import Chameleon
    from chameleon_ray.mixing.settled import SettledRule

    random, names = np.random.default_rng(0), ("web", "books", "code")
    rule = SettledRule(Chameleon().formula, tolerance="bootstrap", every_steps=2)
    state = rule.start(names, np.full(3, 1 / 3), 8)
    counts = np.full((3, 8), 4)
    for step in (2, 4, 8):
        sums = counts[:, :, None] * (np.eye(3, 5)[:, None, :] * step + random.standard_normal((3, 8, 5)))
        state = rule.update(state, Seen(step, 0.0, {"group_sums": sums, "group_counts": counts, "layer": np.array(1)}))
    return f"rule {rule.version}", [*rule.answer(state), *state.memory["errors"].ravel(), *state.memory["reliability"], float(rule.done(state))]


def main() -> None:
    """Write every result with its version."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        content = {name: dict(zip(("version", "values"), compute(), strict=True)) for name, compute in results(Path(folder)).items()}
    lines = (f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
