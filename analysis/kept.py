"""What comparisons of the same methods found with different seeds, kept beside the tables that are made of it: hours of work may be cut in pieces, on several
machines, and only these files of some tens of kilobytes have to stay. Every seed has a file of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chameleon_ray.artifacts import DocumentLosses, SplitLosses
from chameleon_ray.errors import UserError
from chameleon_ray.evaluation.measurements import document_table, losses_by_document
from chameleon_ray.pipeline import Comparison
from chameleon_ray.records import read_table, write_table
from chameleon_ray.report.data import BEFORE

SETTING, WEIGHTS_BESIDE = b"setting", b"weights"  # what a file of losses says beside them, as JSON
WEIGHTS = pa.schema([("method", pa.string()), ("seed", pa.int64()), ("domain", pa.string()), ("weight", pa.float64()), ("stderr", pa.float64())])
Setting = Mapping[str, Any]  # what seeds must have in common to stand in one table; "methods" has that of each, by label


@dataclass(frozen=True)
class Kept:
    """Runs of several seeds, each method fitted anew with each.

    Attributes:
        setting: what they have in common.
        losses: method, seed, corpus (its digest), precision, target (whether the domain is one that nothing is trained on), split, domain, document, nats,
            tokens; method `BEFORE` is the model that all go on from.
        weights: method, seed, domain, weight, stderr.
    """

    setting: Setting
    losses: pa.Table
    weights: pa.Table

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted(self.weights["seed"].unique().to_pylist())

    @property
    def methods(self) -> list[str]:
        """In the order in which they were first kept."""
        return list(self.weights["method"].unique().to_pylist())

    def names(self, *, targets: bool) -> list[str]:
        """The domains that were measured, or the targets."""
        return list(self.losses.filter(pc.equal(self.losses["target"], targets))["domain"].unique().to_pylist())

    def runs(self, split: str) -> dict[tuple[str, int], dict[str, DocumentLosses]]:
        """(method, seed) -> domain -> losses by document."""
        found, losses = {}, self.losses.filter(pc.equal(self.losses["split"], split))
        for key in losses.group_by(["method", "seed"], use_threads=False).aggregate([]).to_pylist():
            here = pc.and_(pc.equal(losses["method"], key["method"]), pc.equal(losses["seed"], key["seed"]))
            found[key["method"], key["seed"]] = losses_by_document(losses.filter(here))[split]
        return found

    def check(self, setting: Setting) -> None:
        """Raise `UserError` for runs that are set otherwise, up to methods that one of both lacks."""
        pairs = [(key, self.setting.get(key), setting.get(key)) for key in {**self.setting, **setting} if key != "methods"]
        both = [label for label in self.setting["methods"] if label in setting["methods"]]
        pairs += [(f"methods.{label}", self.setting["methods"][label], setting["methods"][label]) for label in both]
        for name, old, new in pairs:
            if old != new:
                raise UserError(f"name: what was kept by this name had another {name} ({json.dumps(old)}, and now {json.dumps(new)}); give it another name")

    def with_newer(self, newer: Kept) -> Kept:
        """Both, with the newer run where a method has one of the same seed in both. Older runs of a seed that read a corpus of another seed, or were trained in
        another number format, are left out: they are no pairs of the newer ones, since rows come in another order, or steps are rounded otherwise.

        Raises:
            UserError: they were set otherwise, or measured on other documents.
        """
        self.check(newer.setting)
        if _documents(self.losses) != _documents(newer.losses):
            raise UserError("name: what was kept by this name was measured on other documents or in other tokens; give it another name")
        again = {(row["method"], row["seed"]) for table in (newer.losses, newer.weights) for row in table.select(["method", "seed"]).to_pylist()}
        theirs: dict[int, set[tuple[str, str]]] = {}
        for (_, seed), made in newer._made().items():
            theirs.setdefault(seed, set()).add(made)
        again |= {run for run, made in self._made().items() if made not in theirs.get(run[1], {made})}
        kept = []
        for table in (self.losses, self.weights):
            old = [run not in again for run in zip(table["method"].to_pylist(), table["seed"].to_pylist(), strict=True)]
            kept.append(table.filter(pa.array(old, pa.bool_())))
        setting = {**newer.setting, "methods": {**self.setting["methods"], **newer.setting["methods"]}}
        return Kept(setting, *(pa.concat_tables(both) for both in zip(kept, (newer.losses, newer.weights), strict=True)))

    def _made(self) -> dict[tuple[str, int], tuple[str, str]]:
        """(method, seed) -> digest of the corpus that it was trained on, and number format."""
        rows = self.losses.group_by(["method", "seed", "corpus", "precision"], use_threads=False).aggregate([]).to_pylist()
        return {(row["method"], row["seed"]): (row["corpus"], row["precision"]) for row in rows}

    def save(self, folder: Path, seeds: Sequence[int]) -> None:
        """Write what there is of some seeds, each in one piece."""
        for seed in seeds:
            losses, weights = (table.filter(pc.equal(table["seed"], seed)) for table in (self.losses, self.weights))
            beside = {SETTING: json.dumps(self.setting), WEIGHTS_BESIDE: json.dumps(weights.to_pylist())}
            write_table(str(folder / f"seed-{seed:03d}.parquet"), losses.replace_schema_metadata(beside))

    @staticmethod
    def load(folder: Path) -> Kept | None:
        """Read back what there is."""
        found = None
        for file in sorted(folder.glob("seed-*.parquet")):
            losses = read_table(str(file))
            setting, weights = (json.loads(losses.schema.metadata[key]) for key in (SETTING, WEIGHTS_BESIDE))
            mine = Kept(setting, losses.replace_schema_metadata(), pa.Table.from_pylist(weights, WEIGHTS))
            found = found.with_newer(mine) if found else mine
        return found


def kept_of(found: Comparison, setting: Setting) -> Kept:
    """What a comparison found: of every base model its losses, and the weights that it was trained on."""
    data = found.data
    fits = {(label, seed): found.fits[label, data.experiment.fit_seed(seed)] for label, seed in data.losses}
    head = {"corpus": data.corpus.digest}
    runs = [({"method": label, "seed": seed, **head, "precision": data.precisions[label, seed]}, losses) for (label, seed), losses in data.losses.items()]
    if data.before_losses:
        seeds = dict.fromkeys(seed for _, seed in data.losses)
        runs += [({"method": BEFORE, "seed": seed, **head, "precision": ""}, data.before_losses) for seed in seeds]
    rows = [
        {"method": label, "seed": seed, "domain": domain, "weight": weight, "stderr": (fit.weights_stderr or {}).get(domain)}
        for (label, seed), fit in fits.items()
        for domain, weight in fit.weights.items()
    ]
    return Kept(setting, pa.concat_tables(_rows(*run, data.corpus.targets) for run in runs), pa.Table.from_pylist(rows, WEIGHTS))


def _rows(head: Mapping[str, Any], losses: SplitLosses, targets: Sequence[str]) -> pa.Table:
    table = document_table(losses)
    is_target = pc.is_in(table["domain"], pa.array(targets, pa.string()))
    columns = {name: pa.array([value] * len(table), pa.int64() if name == "seed" else pa.string()) for name, value in head.items()}
    return pa.table({**columns, "target": is_target, **{name: table[name] for name in table.column_names}})


def _documents(losses: pa.Table) -> set[tuple[str, str, int, int]]:
    return set(zip(*(losses[name].to_pylist() for name in ("split", "domain", "document", "tokens")), strict=True))
