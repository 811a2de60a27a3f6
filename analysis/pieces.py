"""What comparisons of the same methods found with different seeds, kept beside the tables that are made of it: hours of work may be cut in pieces, on
several machines, and only these few kilobytes have to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chameleon_ray.artifacts import DocumentLosses, SplitLosses
from chameleon_ray.errors import UserError
from chameleon_ray.evaluation.measurements import document_table, losses_of
from chameleon_ray.pipeline import Comparison

BEFORE = "before"
LOSSES, WEIGHTS, SETTING = "losses.parquet", "weights.parquet", b"setting"
RUN = ("method", "seed", "precision", "target")


@dataclass(frozen=True)
class Pieces:
    """Runs of several seeds.

    Attributes:
        setting: what they have in common, in words.
        losses: method, seed, precision, target (whether the domain is one that nothing is trained on), split, domain, document, nats, tokens; method
            "before" is the model that all go on from.
        weights: method, seed, domain, weight, stderr; one fit for every seed, or the first seed's alone.
    """

    setting: str
    losses: pa.Table
    weights: pa.Table

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted(self.losses["seed"].unique().to_pylist())

    @property
    def methods(self) -> list[str]:
        """That base models were trained for."""
        return [label for label in self.weights["method"].unique().to_pylist() if pc.any(pc.equal(self.losses["method"], label)).as_py()]

    def names(self, *, targets: bool) -> list[str]:
        """The domains that were measured, or the targets."""
        return self.losses.filter(pc.equal(self.losses["target"], targets))["domain"].unique().to_pylist()

    def runs(self, split: str) -> dict[tuple[str, int], dict[str, DocumentLosses]]:
        """(method, seed) -> domain -> losses by document."""
        found = {}
        for key in self.losses.group_by(["method", "seed"], use_threads=False).aggregate([]).to_pylist():
            here = pc.and_(pc.equal(self.losses["method"], key["method"]), pc.equal(self.losses["seed"], key["seed"]))
            found[key["method"], key["seed"]] = losses_of(self.losses.filter(here))[split]
        return found

    def with_newer(self, newer: Pieces) -> Pieces:
        """Both, with the newer runs where a seed is in both.

        Raises:
            UserError: they were set otherwise, or measured on other documents.
        """
        if newer.setting != self.setting:
            raise UserError(f"name: what was found by this name had another setting ({self.setting}), and this has: {newer.setting}; give it another name")
        if _documents(self.losses) != _documents(newer.losses):
            raise UserError("name: what was found by this name was measured on other documents or in other tokens; give the experiment another name")
        kept = (table.filter(pc.invert(pc.is_in(table["seed"], pa.array(newer.seeds)))) for table in (self.losses, self.weights))
        return Pieces(self.setting, *(pa.concat_tables(both) for both in zip(kept, (newer.losses, newer.weights), strict=True)))

    def save(self, folder: Path) -> None:
        """Write both tables."""
        folder.mkdir(parents=True, exist_ok=True)
        for table, name in ((self.losses, LOSSES), (self.weights, WEIGHTS)):
            pq.write_table(table.replace_schema_metadata({SETTING: self.setting.encode()}), folder / name, compression="zstd")

    @staticmethod
    def load(folder: Path) -> Pieces:
        """Read back."""
        losses, weights = (pq.read_table(folder / name) for name in (LOSSES, WEIGHTS))
        return Pieces(losses.schema.metadata[SETTING].decode(), losses, weights)


def pieces_of(found: Comparison, setting: str) -> Pieces:
    """What a comparison found."""
    targets = tuple(found.data.corpus.targets)
    runs = [(label, seed, found.data.precisions[label, seed], losses) for (label, seed), losses in found.data.losses.items()]
    if found.data.before_losses:
        runs += [(BEFORE, seed, "", found.data.before_losses) for seed in found.data.experiment.seeds]
    rows = [
        {"method": label, "seed": seed, "domain": domain, "weight": weight, "stderr": (mixture.weights_stderr or {}).get(domain)}
        for (label, seed), mixture in found.fits.items()
        for domain, weight in mixture.weights.items()
    ]
    schema = pa.schema([("method", pa.string()), ("seed", pa.int64()), ("domain", pa.string()), ("weight", pa.float64()), ("stderr", pa.float64())])
    return Pieces(setting, pa.concat_tables(_rows(*run, targets) for run in runs), pa.Table.from_pylist(rows, schema))


def _rows(label: str, seed: int, precision: str, losses: SplitLosses, targets: Sequence[str]) -> pa.Table:
    table = document_table(losses)
    is_target = pc.is_in(table["domain"], pa.array(targets, pa.string()))
    values = (pa.array([label] * len(table)), pa.array([seed] * len(table), pa.int64()), pa.array([precision] * len(table)), is_target)
    return pa.table([*values, *table.columns], names=[*RUN, *table.column_names])


def _documents(losses: pa.Table) -> set[tuple[str, str, int, int]]:
    return set(zip(*(losses[name].to_pylist() for name in ("split", "domain", "document", "tokens")), strict=True))
