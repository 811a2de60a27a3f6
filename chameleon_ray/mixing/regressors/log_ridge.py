"""A ridge regression on shares and their logarithms.

A domain's loss falls about as steeply from a share of 1 % to 2 % as from 10 % to 20 %, which a plane in the shares cannot follow; where a domain has enough
already, the shares themselves say more.
"""

from __future__ import annotations

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, each_target

EPSILON = 1e-3
SAME = 1e-9
PENALTIES = np.geomspace(1e-6, 1e2, 33)


def fit_log_ridge(ratios: Array, losses: Array) -> Predict:
    """L = b + sum_j u_j r_j + v_j log(r_j + .001) on columns of unit variance, |u|^2 + |v|^2 penalised.

    The penalty, a multiple of the number of runs, is that with the least error when every run is left out once, which a ridge regression has in closed form.

    Reference: A. Hoerl and R. Kennard 1970; D. Allen 1974 (PRESS). Cost: one singular value decomposition of [n, 2 k].
    """
    columns = _features(ratios)  # [n, 2 k]
    center, mean = columns.mean(axis=0), losses.mean()
    spread = columns.std(axis=0)
    constant = spread <= SAME * (1 + np.abs(center))  # a share that no run varies says nothing
    spread[constant] = 1.0
    left, singular, right = np.linalg.svd(np.where(constant, 0.0, (columns - center) / spread), full_matrices=False)
    along = left.T @ (losses - mean)  # [m]
    kept = singular**2 / (singular**2 + len(losses) * PENALTIES[:, None])  # [penalties, m]
    leverage = 1 / len(losses) + kept @ (left**2).T  # [penalties, n]
    residual = (losses - mean) - (kept * along) @ left.T
    best = kept[np.argmin(((residual / np.maximum(1 - leverage, np.finfo(float).eps)) ** 2).mean(axis=1))]
    scale = np.divide(best * along, singular, out=np.zeros_like(singular), where=singular > 0)
    slopes = (right.T @ scale) / spread  # [2 k]
    return lambda mixtures: (_features(mixtures) - center) @ slopes + mean


def _features(ratios: Array) -> Array:
    return np.hstack([ratios, np.log(ratios + EPSILON)])


LOG_RIDGE = Regressor(each_target(fit_log_ridge), lambda k: 0)
