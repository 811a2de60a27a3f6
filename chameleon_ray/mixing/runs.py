"""From swarms to what regressors learn from: one table of runs, of models of one size or several, with how alike the domains are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regressors.regressor import Array, Runs
from chameleon_ray.mixing.swarm import MEAN, Swarm

ONE_SIZE = 1.0
NEARNESS = 0.5
THE_RUNS = "the runs"
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def runs_of(swarms: Mapping[float, Swarm], target: str = MEAN, embeddings: Embeddings | None = None, more: Sequence[str] = ()) -> tuple[list[str], Runs]:
    """The domains in the order of their names, without what all these begin with (`the_pile_`), and the runs of all sizes.

    Args:
        swarms: parameters of the models -> their runs, all of the same domains and targets.
        target: one of the swarms' targets, or `mean` for all of them.
        embeddings: of some of the domains, by their names with or without that beginning.
        more: domains that no run has any of; they come last.
    Raises:
        UserError: what `Swarm.columns` raises.
    """
    first = next(iter(swarms.values()))
    domains, shared = sorted(first.domains), prefix(first.domains)
    names = [*(name.removeprefix(shared) for name in domains), *more]
    targets = [name.removeprefix(shared) for name in targets_of(first, target)]
    columns = [swarm.columns(target) for swarm in swarms.values()]
    ratios = [np.pad(swarm.ratios[:, [swarm.domains.index(name) for name in domains]], ((0, 0), (0, len(more)))) for swarm in swarms.values()]
    parameters = np.repeat(np.array(list(swarms), dtype=np.float64), [len(part) for part in ratios])
    own = tuple(names.index(name) if name in names else -1 for name in targets)
    alike = None if embeddings is None else _alike(targets, names, embeddings, shared)
    return names, Runs(np.concatenate(ratios), np.concatenate(columns), own, parameters, alike)


def targets_of(swarm: Swarm, target: str) -> list[str]:
    """The targets that `mean` is the mean of, in the order of their names; another target by itself."""
    return sorted(swarm.targets) if swarm.target(target) == MEAN else [swarm.target(target)]


def _alike(targets: Sequence[str], names: Sequence[str], embeddings: Embeddings, shared: str) -> Array:
    """[m, k] exp(-|x_i - x_j|^2 / (h times its median over pairs of domains)), h = .5; not a number where one of the two has no embedding."""
    place = {name.removeprefix(shared): i for i, name in enumerate(embeddings.names)}
    means = embeddings.means
    usual = float(np.median(_distances(means, means)[np.triu_indices(len(means), 1)])) if len(means) > 1 else 0.0
    unknown = np.full(means.shape[1], np.nan)
    rows, columns = (np.array([means[place[name]] if name in place else unknown for name in asked]) for asked in (targets, names))
    distances = _distances(rows, columns)
    return np.exp(-distances / (NEARNESS * usual)) if usual > 0 else np.where(np.isnan(distances), np.nan, 1.0)


def _distances(rows: Array, columns: Array) -> Array:
    """[m, k] squared; row by row, since all differences at once would be as large as m k p."""
    return np.stack([((columns - row) ** 2).sum(axis=1) for row in rows])


def by_parameters(swarms: Mapping[str, Swarm]) -> dict[float, Swarm]:
    """Size -> runs as parameters -> runs; the size of a single swarm may be any name.

    Raises:
        UserError: a size that says no number, or swarms with other domains or targets.
    """
    if len(swarms) == 1:
        return dict(zip([ONE_SIZE], swarms.values(), strict=True))
    first, *others = swarms.values()
    for size, other in zip(list(swarms)[1:], others, strict=True):
        check_same(first, other, f"--swarm of {size}")
    return {parameters_of(size, "--sizes"): swarm for size, swarm in swarms.items()}


def check_same(first: Swarm, other: Swarm, where: str) -> None:
    """Raise `UserError` unless two swarms have the same domains and targets; `where` names the second."""
    for what, mine, theirs in (("domain", first.domains, other.domains), ("target", first.targets, other.targets)):
        if odd := sorted(set(mine) ^ set(theirs)):
            raise UserError(f"{where}: {what} {odd[0]!r} is in only one of it and the first; give both the same columns, or judge them one by one")


def joined(swarms: Sequence[Swarm]) -> Swarm:
    """Runs of one model size from several files; ids may repeat between them.

    Raises:
        UserError: files with other domains or targets.
    """
    first = swarms[0]
    for other in swarms[1:]:
        check_same(first, other, "--swarm: the second of one size")
    runs = tuple(f"{i}/{run}" for i, swarm in enumerate(swarms) for run in swarm.runs)
    ratios = np.concatenate([swarm.ratios[:, [swarm.domains.index(name) for name in first.domains]] for swarm in swarms])
    metrics = np.concatenate([swarm.metrics[:, [swarm.targets.index(name) for name in first.targets]] for swarm in swarms])
    return Swarm(runs, first.domains, ratios, first.targets, metrics)


def by_size(swarms: Sequence[Swarm], sizes: str | None) -> dict[str, Swarm]:
    """Size -> runs, in the order given, those of one size together.

    Args:
        sizes: of each swarm, with commas; may be left out for a single one.
    Raises:
        UserError: sizes that are not given for each.
    """
    names = [name.strip() for name in sizes.split(",")] if sizes else [THE_RUNS] * len(swarms)
    if sizes is None and len(swarms) > 1:
        raise UserError(f"--sizes: {len(swarms)} swarms are given; say the model size of each, as in --sizes 1M,60M")
    if len(names) != len(swarms) or not all(names):
        raise UserError(f"--sizes: {sizes!r} names {len(names)} sizes for {len(swarms)} swarms; give one for each, with commas")
    found: dict[str, list[Swarm]] = {}
    for name, swarm in zip(names, swarms, strict=True):
        found.setdefault(name, []).append(swarm)
    return {name: joined(together) for name, together in found.items()}


def prefix(names: Sequence[str]) -> str:
    """The words, each with its underscore, that all names begin with."""
    words = [name.split("_")[:-1] for name in names]
    shared = 0
    while all(len(each) > shared for each in words) and len({each[shared] for each in words}) == 1:
        shared += 1
    return "".join(f"{word}_" for word in words[0][:shared])


def parameters_of(size: str, where: str) -> float:
    """The number of parameters that 60M, 1B or 1.2B says.

    Raises:
        UserError: it says none; `where` names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", size.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"{where}: {size!r} is no model size; write parameters as in 1M, 60M, 1.2B")
    return float(found[1]) * UNITS[found[2].upper()]
