"""The exponential mixing law (Ye et al. 2024)."""

from __future__ import annotations

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, each_target

RANDOM_STARTS = 3


def fit_law(ratios: Array, losses: Array) -> Predict:
    """The exponential mixing law L(r) = c + kappa exp(sum_j t_j r_j), by least squares from several seeded starts.

    Since sum_j r_j = 1, kappa > 0 is one of the t_j in another guise: with u_j = t_j + log kappa the law is c + exp(u . r), whose k + 1 parameters
    are determined. Losses are brought to [0, 1] first.

    Reference: Ye et al. 2024, "Data mixing laws". Cost: about a second for 512 runs of 17 domains.
    """
    from scipy.optimize import least_squares  # here, because most commands need none of it

    low, span = losses.min(), np.ptp(losses) or 1.0
    scaled = (losses - low) / span  # [n] in [0, 1]

    def residuals(point: Array) -> Array:
        return point[0] + np.exp(ratios @ point[1:]) - scaled

    def jacobian(point: Array) -> Array:
        return np.column_stack([np.ones(len(ratios)), np.exp(ratios @ point[1:])[:, None] * ratios])

    def start(floor: float) -> Array:
        """u by linear regression on log(L - c), for a guess at c."""
        return np.concatenate([[floor], np.linalg.lstsq(ratios, np.log(scaled - floor), rcond=None)[0]])

    generator = np.random.default_rng(42)
    starts = [start(floor) for floor in (-0.05, -0.5)]
    starts += [start(-float(10 ** generator.uniform(-2, 1))) + generator.normal(0, 0.5, ratios.shape[1] + 1) for _ in range(RANDOM_STARTS)]
    with np.errstate(over="ignore"):  # a step that overflows has infinite cost and is taken back
        best = min((least_squares(residuals, point, jac=jacobian, max_nfev=200) for point in starts), key=lambda found: found.cost).x
    return lambda mixtures: low + span * (best[0] + np.exp(mixtures @ best[1:]))


EXPONENTIAL = Regressor(each_target(fit_law), lambda k: k + 2, draws=50)
