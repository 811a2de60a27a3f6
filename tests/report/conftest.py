"""Made-up results of an experiment, with every number chosen by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chameleon_ray.artifacts import Cost, DocumentLosses, Embeddings, SplitLosses, TokenCorpus
from chameleon_ray.counts import DomainCounts, SplitCounts
from chameleon_ray.evaluation.measurements import perplexity_measurements
from chameleon_ray.experiment import parse_experiment
from chameleon_ray.mixture import Mixture
from chameleon_ray.report import ReportData

Perplexities = Mapping[str, Sequence[Sequence[float]]]
MEASUREMENTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("method", "task", "split", "domain", "metric")),
        ("seed", pa.int64()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("n", pa.int64()),
        ("documents", pa.int64()),
    ]
)


def corpus(names: Sequence[str], unigram_entropy_nats: float = 7.0) -> TokenCorpus:
    counts = DomainCounts(
        train=SplitCounts(1200, 640_000, 2_380_000, (1000, 250)),
        valid=SplitCounts(60, 32_000, 119_000, (62,)),
        test=SplitCounts(61, 33_000, 122_000, (64,)),
        text_bytes=2_500_000,
        duplicates=3,
        skipped={"empty": 2},
        unigram_entropy_nats=unigram_entropy_nats,
    )
    return TokenCorpus("corpus", "0" * 12, tuple(names), dict.fromkeys(names, counts), 512, 8192, 0, "f" * 64)


def measurements(names: Sequence[str], perplexities: Perplexities, stderr: float = 0.5) -> pa.Table:
    """perplexities: method -> one row of domain perplexities per seed. A misleading "valid" split is added."""
    rows: list[dict[str, Any]] = []
    for method, by_seed in perplexities.items():
        for seed, values in enumerate(by_seed):
            common = {"method": method, "seed": seed, "task": "perplexity", "n": 1000, "documents": 61}
            losses = np.log(np.asarray(values, dtype=np.float64))
            for name, value, loss in zip(names, values, losses, strict=True):
                test = {**common, "split": "test", "domain": name}
                rows.append({**test, "metric": "perplexity", "value": float(value), "stderr": stderr})
                rows.append({**test, "metric": "loss_nats", "value": float(loss), "stderr": stderr / float(value)})
                rows.append({**test, "metric": "bits_per_byte", "value": float(loss) / 2.5, "stderr": stderr / float(value) / 2.5})
                rows.append({**common, "split": "valid", "domain": name, "metric": "perplexity", "value": 1.0, "stderr": 0.0})
            average = {**common, "split": "test", "domain": "all"}
            rows.append({**average, "metric": "mean_perplexity", "value": float(np.mean(values)), "stderr": stderr})
            rows.append({**average, "metric": "mean_loss_nats", "value": float(losses.mean()), "stderr": None})
            rows.append({**average, "metric": "mean_bits_per_byte", "value": float(losses.mean()) / 2.5, "stderr": None})
    return pa.Table.from_pylist(rows, schema=MEASUREMENTS_SCHEMA)


def even_losses(names: Sequence[str], perplexities: Perplexities, num_documents: int = 20) -> dict[tuple[str, int], SplitLosses]:
    """Losses by document with these perplexities: every document of a domain has the same loss per token, so all noise lies in the seeds."""
    document, tokens = np.arange(num_documents), np.arange(100, 100 + num_documents)
    return {
        (method, seed): {"test": {name: DocumentLosses(document, tokens * np.log(value), tokens) for name, value in zip(names, values, strict=True)}}
        for method, by_seed in perplexities.items()
        for seed, values in enumerate(by_seed)
    }


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
    return Embeddings(tuple(names), means * counts[:, :, None], counts, 3)


def document_losses(
    names: Sequence[str], shifts: Mapping[str, float], num_seeds: int = 3, seed_sd: float = 0.005, document_sd: float = 0.05, num_documents: int = 60
) -> dict[tuple[str, int], SplitLosses]:
    """shifts: method -> nats per token that it adds everywhere. Noise: of every run, and of every method and document."""
    draws = np.random.default_rng(1)
    document = np.arange(num_documents)
    found: dict[tuple[str, int], SplitLosses] = {(method, seed): {"valid": {}, "test": {}} for method in shifts for seed in range(num_seeds)}
    of_run = {run: draws.normal(0, seed_sd) for run in found}
    for name in names:
        tokens = draws.integers(50, 400, num_documents)
        hardness = 3 + draws.normal(0, 0.3, num_documents)
        for method, shift in shifts.items():
            taste = draws.normal(0, document_sd, num_documents)
            for seed in range(num_seeds):
                nats = tokens * (hardness + taste + shift + of_run[method, seed])
                found[method, seed]["test"][name] = DocumentLosses(document, nats, tokens)
                found[method, seed]["valid"][name] = DocumentLosses(document, tokens * 1.0, tokens)
    return found


def histories(names: Sequence[str], finals: Mapping[str, Mapping[str, float]], steps: int = 200, every: int = 20) -> pa.Table:
    """finals: method -> weights that `mean` reaches along a straight line from uniform."""
    rows = []
    for method, final in finals.items():
        for step in range(every, steps + 1, every):
            for name in names:
                mean = 1 / len(names) + (final[name] - 1 / len(names)) * step / steps
                rows.append({"method": method, "step": step, "domain": name, "weight": final[name], "mean": mean})
    return pa.Table.from_pylist(rows)


def sweep(names: Sequence[str], label: str = "chameleon") -> pa.Table:
    """Three points; at point i the first domain takes 0.1 i from the last."""
    rows = []
    for i, ridge in enumerate((0.1, 1.0, 10.0)):
        for name in names:
            weight = 1 / len(names) + 0.1 * i * ((name == names[0]) - (name == names[-1])) / len(names)
            head = {"point": f"ridge.relative={ridge}, temperature.relative=0.7", "label": label, "domain": name}
            rows.append({**head, "weight": weight, "stderr": 0.01, "tokens": 2_048_000, "flops": 1.0e15, "seconds": 12.5})
    return pa.Table.from_pylist(rows)


SHIFTS = {"uniform": 0.0, "chameleon": -0.04, "doremi": 0.03, "doge": -0.06, "regmix": -0.039}
COSTS = {
    "chameleon": Cost(2_048_000, 1.5e17, 83.25, 1.36e17),
    "doremi": Cost(41_000_000, 1.9e18, 1200.0, 1.34e18),
    "doge": Cost(20_500_000, 9.1e17, 900.0, 6.68e17),
    "regmix": Cost(262_000_000, 1.5e18, 5400.0, 1.2e18),
}


@pytest.fixture(scope="session")
def many_methods(make_data: Callable[..., ReportData]) -> Callable[..., ReportData]:
    """Several methods with losses by document, histories, a sweep and a failure; `shifts` says how good each is."""

    def make(names: Sequence[str] = ("books", "code", "news", "web"), shifts: Mapping[str, float] = SHIFTS, num_seeds: int = 3, **changes: Any) -> ReportData:
        draws = np.random.default_rng(0)
        weights = {method: dict(zip(names, draws.dirichlet(np.full(len(names), 3.0)).tolist(), strict=True)) for method in shifts}
        weights["uniform"] = dict.fromkeys(names, 1 / len(names))
        mixtures = {
            label: Mixture(label, weights[label], ledger={label: COSTS.get(label, Cost())}, provenance={"settings": {"own": label}}) for label in shifts
        }
        chameleon = make_data({}, names=names).mixtures["chameleon"]
        if "chameleon" in mixtures:
            mixtures["chameleon"] = replace(chameleon, ledger={"chameleon": COSTS["chameleon"]}, provenance={"settings": {"variant": "paper"}})
        losses = document_losses(names, shifts, num_seeds)
        fields = {
            "mixtures": mixtures,
            "measurements": pa.concat_tables(perplexity_measurements(method, seed, found, corpus(names)) for (method, seed), found in losses.items()),
            "curves": curves(dict.fromkeys(shifts, num_seeds), names),
            "losses": losses,
            "histories": histories(names, {label: weights[label] for label in shifts if label != "uniform"}),
            "sweep": sweep(names),
            "failures": {"doremi, seed 2": "the loss is not a number at step 117; lower base.learning_rate"},
        }
        return make_data({}, names=names, **{**fields, **changes})

    return make


@pytest.fixture
def embeddings_of() -> Callable[..., Embeddings]:
    return embeddings


@pytest.fixture(scope="session")
def tested(make_data: Callable[..., ReportData]) -> Callable[[Perplexities], ReportData]:
    """The same perplexities with losses by document beside them."""
    return lambda perplexities: make_data(perplexities, losses=even_losses(("books", "code"), perplexities))


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
            ledger={"chameleon": Cost(2_048_000, 1.5e17, 83.25, 1.36e17)},
            details={"eigenvalues": [6.0, *[2.0] * (k - 1)], "effective_dimension": 1.25, "affinity": affinity},
        )
        document = {
            "name": "made-up",
            "corpus": {"domains": {name: {"files": ["a.txt"]} for name in names}},
            "proxy": {"model": {"preset": "cpu-tiny"}, "steps": 10},
            "base": {"model": {"preset": "cpu-tiny"}, "steps": 1100},
        }
        fields = {
            "experiment": parse_experiment(document),
            "corpus": corpus(names),
            "mixtures": {"uniform": uniform, "chameleon": chameleon},
            "measurements": measurements(names, perplexities),
            "curves": curves({method: len(seeds) for method, seeds in perplexities.items()}, names),
            "embeddings": embeddings(names, num_groups=4),
            "seconds": {"corpus": 12.34, "weights": 3725.0},
        }
        return ReportData(**{**fields, **changes})

    return make
