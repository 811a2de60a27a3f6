"""From swarms to what regressors learn from: one table of runs, of models of one size or several, with how alike the domains are.

Names are compared without what all domains of a swarm begin with (`the_pile_`): a mixture, a target or an embedding may carry it or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.regressors.regressor import Array, Runs
from chameleon_ray.mixing.swarm import MEAN, Swarm, plain_target

ONE_SIZE = 1.0
NEARNESS = 0.5
MIN_COMPARED = 2
THE_RUNS = "the runs"
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def runs_of(swarms: Mapping[float, Swarm], target: str = MEAN, embeddings: Embeddings | None = None, more: Sequence[str] = ()) -> tuple[list[str], Runs]:
    """The domains in the order of their names, by their short names, and the runs of all sizes.

    Args:
        swarms: parameters of the models -> their runs, all of the same domains and targets.
        target: one of the swarms' targets, or `mean` for those that it is the mean of.
        embeddings: of some of the domains.
        more: short names of further domains; those that are no column of the runs come last.
    Raises:
        UserError: what `Swarm.columns` raises, or embeddings that are not finite or of one domain twice.
    """
    first = first_of(swarms)
    domains, shared = sorted(first.domains), prefix(first.domains)
    names = list(dict.fromkeys([*(name.removeprefix(shared) for name in domains), *more]))
    added = len(names) - len(domains)
    targets = [_target_domain(name, first, shared, names) for name in targets_of(first, target)]
    columns = [swarm.columns(target) for swarm in swarms.values()]
    ratios = [np.pad(swarm.ratios[:, [swarm.domains.index(name) for name in domains]], ((0, 0), (0, added))) for swarm in swarms.values()]
    parameters = np.repeat(np.array(list(swarms), dtype=np.float64), [len(part) for part in ratios])
    own = tuple(names.index(name) if name in names else -1 for name in targets)
    runs = Runs(np.concatenate(ratios), np.concatenate(columns), own, parameters)
    return names, replace(runs, alike=_alike(targets, names, runs, embeddings, shared))


def first_of(swarms: Mapping[float, Swarm] | Mapping[str, Swarm]) -> Swarm:
    """The first of several swarms of the same domains and targets."""
    return next(iter(swarms.values()))


def targets_of(swarm: Swarm, target: str) -> list[str]:
    """The targets that `mean` is the mean of, in the order of their names; another target by itself."""
    return list(swarm.averaged) if swarm.target(target) == MEAN else [swarm.target(target)]


def seen(swarms: Mapping[float, Swarm]) -> set[str]:
    """Short names of the domains that some run has any of."""
    first = first_of(swarms)
    shared = prefix(first.domains)
    return {name.removeprefix(shared) for name in first.domains if any(swarm.ratios[:, swarm.domains.index(name)].any() for swarm in swarms.values())}


def unseen(names: Sequence[str], swarms: Mapping[float, Swarm], embeddings: Embeddings | None, where: str) -> list[str]:
    """Of some domains, by their short names, those that no run has any of, whose embeddings stand beside those of at least two that runs have.

    Raises:
        UserError: one without an embedding, or no others to compare it with; `where` names what holds the domains.
    """
    known = seen(swarms)
    found = [name for name in names if name not in known]
    if not found:
        return []
    embedded = set(_embedded(embeddings, prefix(first_of(swarms).domains))) if embeddings is not None else set()
    if missing := [name for name in found if name not in embedded]:
        remedy = "they have no embeddings either" if embeddings is not None else "give --embeddings of these and of the others, from which to tell what they do"
        raise UserError(f"{where}: {', '.join(map(repr, missing))} in no run of the swarm, which has {', '.join(sorted(known))}; {remedy}")
    if len(known & embedded) < MIN_COMPARED:
        raise UserError(
            f"--embeddings: {', '.join(sorted(known & embedded)) or 'none'} of the swarm's domains {', '.join(sorted(known))} are embedded, so that there is "
            f"nothing to compare {', '.join(map(repr, found))} with; embed all with one model"
        )
    return found


def _target_domain(target: str, swarm: Swarm, shared: str, names: Sequence[str]) -> str:
    """The short name of the domain that a target is the loss of, or of the target where it is that of none."""
    plain = plain_target(target)
    spellings = (plain, plain.removeprefix(shared), plain.removeprefix(prefix([plain_target(name) for name in swarm.targets])))
    return next((name for name in spellings if name in names), plain.removeprefix(shared))


def _embedded(embeddings: Embeddings, shared: str) -> dict[str, int]:
    """Short name -> row."""
    found = {name.removeprefix(shared): i for i, name in enumerate(embeddings.names)}
    if len(found) < len(embeddings.names):
        raise UserError(f"--embeddings: a domain is there twice, with and without the prefix {shared!r}; embed each once")
    return found


def _alike(targets: Sequence[str], names: Sequence[str], runs: Runs, embeddings: Embeddings | None, shared: str) -> Array | None:
    """[m, k] exp(-|x_i - x_j|^2 / (h times its median over pairs of the runs' domains)), h = .5; not a number where one of the two has no embedding. None
    where fewer than two domains of the runs have one."""
    if embeddings is None:
        return None
    place = _embedded(embeddings, shared)
    rows = {name: embeddings.means_of([place[name]])[0] for name in {*targets, *names} if name in place}
    if odd := [name for name, row in rows.items() if not np.isfinite(row).all()]:
        raise UserError(f"--embeddings: that of {odd[0]!r} is not finite; embed the domains with another model")
    compared = [name for j, name in enumerate(names) if name in rows and runs.ratios[:, j].any()]
    if len(compared) < MIN_COMPARED:
        return None
    between = np.array([((rows[a] - rows[b]) ** 2).sum() for i, a in enumerate(compared) for b in compared[:i]])
    apart = between[between > 0]
    usual = float(np.median(apart)) if len(apart) else 1.0
    found = np.full((len(targets), len(names)), np.nan)
    for j, target in enumerate(targets):
        for i, name in enumerate(names):
            if target in rows and name in rows:
                found[j, i] = np.exp(-((rows[target] - rows[name]) ** 2).sum() / (NEARNESS * usual))
    return found


def by_size(swarms: Sequence[Swarm], sizes: str | None) -> dict[str, Swarm]:
    """Size -> runs, in the order given, those of one size together, however it is spelled.

    Args:
        sizes: of each swarm, with commas; may be left out for a single one.
    Raises:
        UserError: sizes that are not given for each, or that say no number.
    """
    names = [name.strip() for name in sizes.split(",")] if sizes else [THE_RUNS] * len(swarms)
    if sizes is None and len(swarms) > 1:
        raise UserError(f"--sizes: {len(swarms)} swarms are given; say the model size of each, as in --sizes 1M,60M")
    if len(names) != len(swarms) or not all(names):
        raise UserError(f"--sizes: {sizes!r} names {len(names)} sizes for {len(swarms)} swarms; give one for each, with commas")
    spelled: dict[float, str] = {}
    found: dict[str, list[Swarm]] = {}
    for name, swarm in zip(names, swarms, strict=True):
        found.setdefault(spelled.setdefault(_number(name), name), []).append(swarm)
    return {name: joined(together) for name, together in found.items()}


def by_parameters(swarms: Mapping[str, Swarm]) -> dict[float, Swarm]:
    """Size -> runs as parameters -> runs; swarms have sizes of their own (`by_size`).

    Raises:
        UserError: a size that says no number, or swarms with other domains or targets.
    """
    first = first_of(swarms)
    for size, other in swarms.items():
        check_same(first, other, f"--swarm of {size}")
    found = {_number(size): swarm for size, swarm in swarms.items()}
    assert len(found) == len(swarms)
    return found


def size_asked(size: str, swarms: Mapping[str, Swarm]) -> float:
    """The parameters of a size that is asked for: one of the swarms', or another that says a number."""
    return _number(size) if size in swarms else parameters_of(size, "--at")


def _number(size: str) -> float:
    """The parameters of a swarm's size; of one that was given none, a number that no other is compared with."""
    return ONE_SIZE if size == THE_RUNS else parameters_of(size, "--sizes")


def check_same(first: Swarm, other: Swarm, where: str) -> None:
    """Raise `UserError` unless two swarms have the same domains and targets; `where` names the second."""
    for what, mine, theirs in (("domain", first.domains, other.domains), ("target", first.targets, other.targets)):
        if odd := sorted(set(mine) ^ set(theirs)):
            raise UserError(f"{where}: {what} {odd[0]!r} is in only one of it and the first; give both the same columns, or judge them one by one")


def joined(swarms: Sequence[Swarm]) -> Swarm:
    """Runs of one model size from several files; ids may repeat between them, and then begin with the number of the file.

    Raises:
        UserError: files with other domains or targets.
    """
    if len(swarms) == 1:
        return swarms[0]
    first = swarms[0]
    for other in swarms[1:]:
        check_same(first, other, "--swarm: the second of one size")
    runs = tuple(f"{i}/{run}" for i, swarm in enumerate(swarms) for run in swarm.runs)
    ratios = np.concatenate([swarm.ratios[:, [swarm.domains.index(name) for name in first.domains]] for swarm in swarms])
    metrics = np.concatenate([swarm.metrics[:, [swarm.targets.index(name) for name in first.targets]] for swarm in swarms])
    return Swarm(runs, first.domains, ratios, first.targets, metrics)


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
