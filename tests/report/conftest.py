"""Made-up results of an experiment, with every number chosen by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Cost, DomainCounts, Embeddings, Mixture, SplitCounts, TokenCorpus
from chameleon_ray.config import parse_experiment
from chameleon_ray.report import ReportData

Perplexities = Mapping[str, Sequence[Sequence[float]]]
SCORES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("method", "task", "split", "domain", "metric")),
        ("seed", pa.int64()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("n", pa.int64()),
    ]
)


def corpus(names: Sequence[str], unigram_entropy_nats: float = 7.0) -> TokenCorpus:
    counts = DomainCounts(
        train=SplitCounts(1200, 640_000, (1000, 250)),
        valid=SplitCounts(60, 32_000, (62,)),
        test=SplitCounts(61, 33_000, (64,)),
        text_bytes=2_500_000,
        duplicates=3,
        skipped={"empty": 2},
        unigram_entropy_nats=unigram_entropy_nats,
    )
    return TokenCorpus("corpus", "0" * 12, tuple(names), dict.fromkeys(names, counts), 512, 8192, 0, "f" * 64)


def scores(names: Sequence[str], perplexities: Perplexities, stderr: float = 0.5) -> pa.Table:
    """perplexities: method -> one row of domain perplexities per seed. A misleading "valid" split is added."""
    rows: list[dict[str, Any]] = []
    for method, by_seed in perplexities.items():
        for seed, values in enumerate(by_seed):
            common = {"method": method, "seed": seed, "task": "perplexity", "n": 1000}
            losses = np.log(np.asarray(values, dtype=np.float64))
            for name, value, loss in zip(names, values, losses, strict=True):
                test = {**common, "split": "test", "domain": name}
                rows.append({**test, "metric": "perplexity", "value": float(value), "stderr": stderr})
                rows.append({**test, "metric": "loss_nats", "value": float(loss), "stderr": stderr / float(value)})
                rows.append({**common, "split": "valid", "domain": name, "metric": "perplexity", "value": 1.0, "stderr": 0.0})
            average = {**common, "split": "test", "domain": "all"}
            rows.append({**average, "metric": "mean_perplexity", "value": float(np.mean(values)), "stderr": stderr})
            rows.append({**average, "metric": "mean_loss_nats", "value": float(losses.mean()), "stderr": None})
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def curves(methods: Mapping[str, int], names: Sequence[str], steps: int = 6) -> pa.Table:
    """methods: label -> number of seeds. loss = 5 / sqrt(step) + seed."""
    rows = [
        {"method": method, "seed": seed, "step": step, "domain": domain, "loss": 5 / step**0.5 + seed}
        for method, num_seeds in methods.items()
        for seed in range(num_seeds)
        for step in range(1, steps + 1)
        for domain in ("all", *names)
    ]
    schema = pa.schema([("method", pa.string()), ("seed", pa.int64()), ("step", pa.int64()), ("domain", pa.string()), ("loss", pa.float64())])
    return pa.Table.from_pylist(rows, schema=schema)


def embeddings(names: Sequence[str], num_groups: int = 32, width: int = 6) -> Embeddings:
    """Every domain's groups lie around its own centre; only the first `num_groups` groups hold samples."""
    draws = np.random.default_rng(0)
    counts = np.zeros((len(names), 32), dtype=np.int64)
    counts[:, :num_groups] = 4
    means = 5 * draws.normal(size=(len(names), 1, width)) + draws.normal(size=(len(names), 32, width))
    return Embeddings(tuple(names), means * counts[:, :, None], counts, 3, Cost())


@pytest.fixture
def embeddings_of() -> Callable[..., Embeddings]:
    return embeddings


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    def make(perplexities: Perplexities, names: Sequence[str] = ("books", "code"), **changes: Any) -> ReportData:
        k = len(names)
        tilted = np.arange(1, k + 1) / (k * (k + 1) / 2)
        affinity = {"names": list(names), "values": [[4.0 if i == j else 1.0 for j in range(k)] for i in range(k)]}
        uniform = Mixture("uniform", dict.fromkeys(names, 1 / k))
        chameleon = Mixture(
            "chameleon",
            dict(zip(names, tilted.tolist(), strict=True)),
            scores={name: 0.25 + i / 100 for i, name in enumerate(names)},
            weights_stderr=dict.fromkeys(names, 0.012),
            scores_stderr=dict.fromkeys(names, 0.03),
            cost=Cost(2_048_000, 1.36e17, 83.25),
            details={"eigenvalues": [6.0, *[2.0] * (k - 1)], "effective_dimension": 1.25, "affinity": affinity},
        )
        document = {
            "name": "made-up",
            "corpus": {"domains": {name: {"files": ["a.txt"]} for name in names}},
            "proxy": {"model": {"preset": "cpu-tiny"}, "steps": 10},
            "base": {"model": {"preset": "cpu-tiny"}, "steps": 10},
        }
        fields = {
            "experiment": parse_experiment(document),
            "corpus": corpus(names),
            "mixtures": {"uniform": uniform, "chameleon": chameleon},
            "scores": scores(names, perplexities),
            "curves": curves({method: len(seeds) for method, seeds in perplexities.items()}, names),
            "embeddings": embeddings(names, num_groups=4),
            "seconds": {"corpus": 12.34, "weights": 3725.0},
        }
        return ReportData(**{**fields, **changes})

    return make
