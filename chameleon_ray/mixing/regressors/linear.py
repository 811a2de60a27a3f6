"""A plane."""

from __future__ import annotations

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, each_target


def fit_linear(ratios: Array, losses: Array) -> Predict:
    """Ordinary least squares with an intercept; of equally good solutions (the ratios sum to 1) the smallest."""
    center, mean = ratios.mean(axis=0), losses.mean()
    slopes = np.linalg.lstsq(ratios - center, losses - mean, rcond=None)[0]  # [k]
    return lambda mixtures: (mixtures - center) @ slopes + mean


LINEAR = Regressor(each_target(fit_linear), lambda k: k + 1)
