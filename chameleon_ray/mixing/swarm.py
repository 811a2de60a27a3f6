"""A swarm: many mixtures of the same domains, and what a proxy trained on each of them scored.

On disk a swarm is two CSV files joined on the run id: `ratios.csv` (`run`, then one column per domain) and `metrics.csv` (`run`, then one column
per target; lower is better). RegMix's own headers are read too: `index`, `train_<domain>`, `metric/<domain>_val_loss`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chameleon_ray import storage
from chameleon_ray.errors import UserError
from chameleon_ray.settings import nearest

Array = NDArray[np.float64]
MEAN = "mean"
PRIOR_POWER = 0.5
STRENGTHS = np.geomspace(0.1, 5.0, 15)
OVERSAMPLING = 100
MIN_RATIO = 2e-4
MAX_TIMES_PRIOR = 15.0
NEAR_DUPLICATE = 1e-5
MAX_ROUNDING = 0.02


@dataclass(frozen=True)
class Swarm:
    """Mixtures and their results.

    Attributes:
        runs: n run ids, distinct.
        domains: k names.
        ratios: [n, k] fractions of training tokens; every row lies on the simplex.
        targets: m names of what was measured: domains, and texts or tasks that are none, which a mean over domains leaves out.
        metrics: [n, m] losses, lower is better; not finite where a run failed.
    """

    runs: tuple[str, ...]
    domains: tuple[str, ...]
    ratios: Array
    targets: tuple[str, ...]
    metrics: Array

    def target(self, name: str) -> str:
        """The target that is meant by a name: itself, the same one without RegMix's prefixes and suffix, or `mean`.

        Raises:
            UserError: no such target, or two that differ only in prefixes.
        """
        if name in (MEAN, *self.targets):
            return name
        found = [target for target in self.targets if plain_target(target) == plain_target(name)]
        if len(found) == 1:
            return found[0]
        known = sorted(map(plain_target, self.targets))
        if found:
            raise UserError(f"target {name!r}: {', '.join(map(repr, found))} all match; give one of them in full")
        raise UserError(
            f"target {name!r}: nothing by that name was measured; there are {MEAN}, {', '.join(known)}{nearest(plain_target(name), (MEAN, *known))}"
        )

    @property
    def averaged(self) -> tuple[str, ...]:
        """The targets that `mean` is the mean of, in the order of their names: the losses of domains, or of everything where none is that of a domain."""
        domains = [name for name in self.targets if name in self.domains or plain_target(name) in self.domains]
        return tuple(sorted(domains or self.targets))

    def columns(self, name: str) -> Array:
        """[n, c] the losses that a target is the mean of, in the order of their names: its own, or for `mean` those of `averaged`.

        Raises:
            UserError: no such target, a value that is not finite (named by its run), or the same mean in every run.
        """
        target = self.target(name)
        chosen = [self.targets.index(each) for each in (self.averaged if target == MEAN else [target])]
        for j in chosen:
            odd = np.flatnonzero(~np.isfinite(self.metrics[:, j]))
            if odd.size:
                run, value = self.runs[int(odd[0])], float(self.metrics[odd[0], j])
                raise UserError(f"metrics: run {run!r} has {value} for {self.targets[j]!r}; leave the run out of both files, or train it again")
        found = self.metrics[:, chosen]
        means = found.mean(axis=1)
        if len(means) > 1 and np.ptp(means) == 0:
            raise UserError(f"metrics: {target!r} is {means[0]:g} in every run, so that nothing can be learned from it; choose another target")
        return found

    def losses(self, name: str) -> Array:
        """[n] one target's losses, or for `mean` their mean; raises as `columns`."""
        return self.columns(name).mean(axis=1)


def draw_mixtures(prior: Mapping[str, float], count: int, seed: int) -> Array:
    """Mixtures that cover the simplex around a prior, from nearly one domain to nearly the prior itself.

    Draws Dirichlet(strength * p) with p ~ sqrt(prior) and strengths from 0.1 to 5 in 15 equal ratios, 100 per mixture wanted; entries under 2e-4
    become 0; no domain gets more than min(15 prior, 1); near duplicates (L1 under 1e-5) are left out; `count` of the rest are chosen.

    Deviation: the authors reject a draw over the cap, which with hundreds of domains leaves none. Here the excess goes to the draw's other domains in
    proportion, and only draws that cannot hold it are rejected.

    Args:
        prior: domain -> fraction, on the simplex; a domain with 0 is never drawn.
        seed: a domain's draws depend on its name and on this, not on the order of the domains.
    Returns:
        [count, k] in the order of `prior`.
    Raises:
        UserError: fewer than `count` distinct draws are left.
    Reference: RegMix (Liu et al. 2024) and its released code. Cost: O(100 count k) time and memory.
    """
    names = sorted(prior)
    shares = np.array([prior[name] for name in names], dtype=np.float64)  # [k]
    root = shares**PRIOR_POWER
    generator = _generator("swarm", "", seed)
    strengths = generator.choice(STRENGTHS, size=OVERSAMPLING * count)
    draws = dirichlet(names, strengths[:, None] * (root / root.sum()), OVERSAMPLING * count, seed, "swarm")
    draws = np.where(draws < MIN_RATIO, 0.0, draws)
    draws = _capped(draws / draws.sum(axis=1, keepdims=True), np.minimum(MAX_TIMES_PRIOR * shares, 1.0))
    distinct = _distinct(draws)
    if len(distinct) < count:
        raise UserError(
            f"prior: only {len(distinct)} distinct mixtures of {len(names)} domains can be drawn, {count} are wanted; "
            "lower num_proxies, or merge small domains into larger ones"
        )
    chosen = distinct[generator.choice(len(distinct), size=count, replace=False)]
    return chosen[:, [names.index(name) for name in prior]]


def dirichlet(names: Sequence[str], concentration: ArrayLike, size: int, seed: int, purpose: str) -> Array:
    """[size, k] draws from Dirichlet(concentration); the gamma variates of a domain depend on its name, the purpose and the seed only.

    Args:
        concentration: [k], or [size, k] for one of its own per draw.
    """
    shapes = np.broadcast_to(np.asarray(concentration, dtype=np.float64), (size, len(names)))
    gammas = np.stack([_generator(purpose, name, seed).standard_gamma(shapes[:, j]) for j, name in enumerate(names)], axis=1)  # [size, k]
    return np.asarray(gammas / gammas.sum(axis=1, keepdims=True))


def read_swarm(ratios_address: str, metrics_address: str) -> Swarm:
    """Join two CSV files on the run id.

    Runs are sorted by id, so that the order of the lines of neither file matters. Ratios that miss 1 by rounding are divided by their sum.

    Raises:
        UserError: no such file, no column `run` (or `index`), a run or column given twice, a run in only one file, a cell that is not a number,
            a negative ratio, ratios further than 0.02 from 1. Names file, run and remedy.
    """
    domains, ratios = _read_table(ratios_address, "train_", "")
    targets, metrics = _read_table(metrics_address, "metric/", "_val_loss")
    for run in sorted(ratios.keys() ^ metrics.keys()):
        here, there = (ratios_address, metrics_address) if run in ratios else (metrics_address, ratios_address)
        raise UserError(f"{there}: run {run!r} of {here} is missing; the two files need the same runs")
    runs = tuple(sorted(ratios, key=lambda run: (len(run), run)))
    rows = np.array([_simplex_row(ratios_address, run, domains, ratios[run]) for run in runs])
    return Swarm(runs, domains, rows, targets, np.array([metrics[run] for run in runs]))


def swarm_files(swarm: Swarm) -> dict[str, bytes]:
    """The two files that `read_swarm` reads back to the last digit: `ratios.csv` and `metrics.csv`."""
    found = {}
    for name, columns, values in (("ratios.csv", swarm.domains, swarm.ratios), ("metrics.csv", swarm.targets, swarm.metrics)):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", *columns])
        writer.writerows([run, *map(repr, row)] for run, row in zip(swarm.runs, values.tolist(), strict=True))
        found[name] = text.getvalue().encode()
    return found


def _generator(purpose: str, name: str, seed: int) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(f"{purpose}/{name}".encode(), digest_size=16).digest(), "big")
    return np.random.default_rng(np.random.SeedSequence([seed, key]))


def _capped(draws: Array, caps: Array) -> Array:
    """[n', k] the rows whose non-zero entries can hold all mass under the caps [k], with what is over a cap given to the others (water-filling)."""
    rows = draws[((draws > 0) * caps).sum(axis=1) >= 1]
    held = np.zeros(rows.shape, dtype=bool)
    while (over := ~held & (rows > caps)).any():
        held |= over
        fixed = np.where(held, caps, 0.0)
        free = np.where(held, 0.0, rows)
        room = np.maximum(1 - fixed.sum(axis=1, keepdims=True), 0.0)
        rows = fixed + free * (room / np.maximum(free.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))
    return rows / rows.sum(axis=1, keepdims=True)


def _distinct(draws: Array) -> Array:
    """The draws in lexicographic order, without those that are nearly the one before them."""
    ordered = draws[np.lexsort(draws.T[::-1])]
    apart = np.abs(np.diff(ordered, axis=0)).sum(axis=1) >= NEAR_DUPLICATE
    return ordered[np.concatenate([[True], apart])[: len(ordered)]]


def plain_target(name: str) -> str:
    """A target's name without RegMix's prefixes and suffix."""
    return name.removeprefix("train_").removeprefix("metric/").removesuffix("_val_loss")


def _read_table(address: str, prefix: str, suffix: str) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """Column names and run -> numbers; prefix and suffix are RegMix's, whose id column is `index`."""
    if not storage.is_file(address):
        raise UserError(f"{address}: no such file; give a CSV file with a column 'run'")
    try:
        text = storage.read_bytes(address).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{address}: not a CSV file in UTF-8 ({error})") from None
    header = [name.strip() for name in lines[0]] if lines else []
    key = next((name for name in ("run", "index") if name in header), None)
    if key is None:
        _check_delimiter(address, text.split("\n")[0])
        raise UserError(f"{address}: no column 'run' (or 'index') in the first line; found {', '.join(header) or 'nothing'}")
    place = header.index(key)
    names = [name.removeprefix(prefix).removesuffix(suffix) if key == "index" else name for i, name in enumerate(header) if i != place]
    if not names:
        raise UserError(f"{address}: no column beside {key!r}; add one per domain")
    for name in names:
        if not name or names.count(name) > 1:
            raise UserError(f"{address}: column {name!r} is {'given twice' if name else 'without a name'}; every column needs a name of its own")
    rows: dict[str, list[float]] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError(f"{address}: line {number} has {len(cells)} cells, the header {len(header)}; mend the line")
        run = cells.pop(place).strip()
        if not run or run in rows:
            raise UserError(f"{address}: line {number}: run {run!r} {'appears twice' if run else 'is no id'}; every line needs a run id of its own")
        rows[run] = [_number(address, run, name, cell) for name, cell in zip(names, cells, strict=True)]
    if not rows:
        raise UserError(f"{address}: no runs below the header")
    return tuple(names), rows


def _check_delimiter(address: str, header: str) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if {"run", "index"} & {cell.strip(' "\r') for cell in header.split(delimiter)} and delimiter in header:
            raise UserError(f"{address}: its columns seem to be separated by {name}; save it as CSV with commas, and points in numbers")


def _number(address: str, run: str, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{address}: run {run!r} has {cell!r} for {column!r}; a number is needed") from None


def _simplex_row(address: str, run: str, domains: Sequence[str], row: Sequence[float]) -> list[float]:
    for name, value in zip(domains, row, strict=True):
        if not math.isfinite(value) or value < 0:
            raise UserError(f"{address}: run {run!r} has {value:g} for {name!r}; a ratio is a finite number that is at least 0")
    total = math.fsum(row)
    if abs(total - 1) > MAX_ROUNDING:
        raise UserError(f"{address}: run {run!r}: ratios sum to {total:g}, further than {MAX_ROUNDING} from 1; give fractions of all tokens")
    return list(row) if abs(total - 1) < 1e-12 else [value / total for value in row]
