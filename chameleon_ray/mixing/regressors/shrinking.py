"""Losses of models of several sizes: what a mixture does shrinks as models grow, for every target at its own rate.

    L_j(N, r) = a_j(N) + s_j(N) f_j(r)

    f_j      any regression of one size (the base), on the losses of all sizes, each brought to the smallest model's by its a and s
    a_j(N)   level, s_j(N) spread (1 at the smallest size): both linear in log N between sizes and beyond them, in logarithms

With s = 1 the mixture and the size add up, which is the additive law of Shukor et al. 2025; with the exponential law as f it is that of Ye et al. 2024 carried
from size to size. On runs of one size f is fitted alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, Runs, along_sizes

ROUNDS = 2
MIN_SPREAD = 0.05


def shrinking(base: Regressor, reference: Regressor, fixed: bool = False) -> Regressor:
    """The law over a base.

    Args:
        reference: the regression that levels and spreads are found with; a base that follows every run would make all spreads 1.
        fixed: keep s = 1.
    """

    def fit(runs: Runs, parameters: float) -> Predict:
        levels, spreads = _levels_and_spreads(runs, reference, fixed)
        predict = base.fit(_brought_together(runs, levels, spreads), parameters)
        logs, asked = np.log(runs.sizes), np.log(parameters)
        level, spread = (_along(logs, values, asked) for values in (levels, spreads))  # [m]
        return lambda ratios: level + spread * predict(ratios)

    return Regressor(fit, base.parameters, base.draws, across_sizes=True, from_content=base.from_content)


def _along(logs: Array, values: Array, asked: float) -> Array:
    """[m] values [sizes, m] at another size: a power law, a straight line where a value is not positive."""
    powers = np.exp(along_sizes(logs, np.log(np.where(values > 0, values, 1.0)), asked))
    return np.where((values > 0).all(axis=0), powers, along_sizes(logs, values, asked))


def _levels_and_spreads(runs: Runs, reference: Regressor, fixed: bool) -> tuple[Array, Array]:
    """a and s, [sizes, m]; a is the mean loss, from which f departs."""
    sizes, m = runs.sizes, runs.losses.shape[1]
    levels, spreads = np.zeros((len(sizes), m)), np.ones((len(sizes), m))
    first = runs.parameters == sizes[0]
    levels[0] = runs.losses[first].mean(axis=0)
    together = replace(runs.only(first), losses=runs.losses[first] - levels[0])
    for _ in range(ROUNDS if len(sizes) > 1 else 0):
        predict = reference.fit(together, float(sizes[0]))
        for i, size in enumerate(sizes[1:], start=1):
            rows = runs.parameters == size
            found, losses = predict(runs.ratios[rows]), runs.losses[rows]
            away, apart = found - found.mean(axis=0), losses - losses.mean(axis=0)
            if not fixed and len(found) > 1:
                spreads[i] = np.maximum((away * apart).sum(axis=0) / np.maximum((away**2).sum(axis=0), np.finfo(float).tiny), MIN_SPREAD)
            levels[i] = losses.mean(axis=0) - spreads[i] * found.mean(axis=0)
        together = _brought_together(runs, levels, spreads)
    return levels, spreads


def _brought_together(runs: Runs, levels: Array, spreads: Array) -> Runs:
    """The runs of all sizes as those of the smallest, less its level."""
    place = np.searchsorted(runs.sizes, runs.parameters)
    return replace(runs, losses=(runs.losses - levels[place]) / spreads[place], parameters=np.full(len(runs), runs.sizes[0]))
