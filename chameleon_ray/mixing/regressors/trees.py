"""Gradient-boosted trees, as RegMix fits them (Liu et al. 2024)."""

from __future__ import annotations

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, each_target

LEAF_RUNS = 20
TREES = 1000


def fit_lightgbm(ratios: Array, losses: Array) -> Predict:
    """Gradient-boosted trees: 1000 of them, learning rate 0.01, seed 42, no early stopping on anything.

    Cannot predict beyond the losses it has seen. Reference: RegMix (Liu et al. 2024). Cost: under a second for 512 runs of 17 domains.
    """
    import lightgbm  # here, because its import takes seconds

    settings = {
        "objective": "regression",
        "boosting": "gbdt",
        "learning_rate": 0.01,
        "min_data_in_leaf": LEAF_RUNS,
        "seed": 42,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(ratios, losses, params=settings), num_boost_round=TREES)
    return lambda mixtures: np.asarray(booster.predict(mixtures, num_threads=0), dtype=np.float64)


# A split falls between bins of runs: exactly two leaves' worth would allow none.
TREES_REGRESSOR = Regressor(each_target(fit_lightgbm), lambda k: 2 * LEAF_RUNS + 2, draws=20)
