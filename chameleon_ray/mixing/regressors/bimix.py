"""The bivariate law (BiMix, Ge et al. 2024): a target's loss by the share of its own domain and the size of the model, and by nothing else.

    L_j(N, r) = B_j(N) / (r_j + .001)^alpha_j        log B linear in log N between sizes and beyond them

The paper's second variable is the number of training steps, A (B / s^beta + C); runs that differ in the model instead have N in its place. Of a target that
is the text of no domain only the level is known.

Source: Ge et al. 2024, "BiMix: bivariate data mixing law for language model pretraining" (arXiv 2405.14908), equation 1.
"""

from __future__ import annotations

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, Runs, along_sizes

EPSILON = 1e-3


def fit_bimix(runs: Runs, parameters: float) -> Predict:
    """Least squares of log L on log(r + .001), with a level for every size. Cost: next to nothing."""
    if (runs.losses <= 0).any():  # no power law, and never chosen
        return lambda ratios: np.full((len(ratios), runs.losses.shape[1]), np.nan)
    at_size = (runs.parameters[:, None] == runs.sizes).astype(np.float64)  # [n, sizes]
    asked, laws = np.log(parameters), []
    for own, losses in zip(runs.own, runs.losses.T, strict=True):
        columns = at_size if own < 0 else np.column_stack([at_size, _log_share(runs.ratios, own)])
        found = np.linalg.lstsq(columns, np.log(losses), rcond=None)[0]
        level = along_sizes(np.log(runs.sizes), found[: len(runs.sizes)], asked)
        laws.append((own, float(level), float(found[-1]) if own >= 0 else 0.0))
    return lambda ratios: np.stack([np.exp(level + slope * _log_share(ratios, max(own, 0))) for own, level, slope in laws], axis=1)


def _log_share(ratios: Array, domain: int) -> Array:
    return np.asarray(np.log(ratios[:, domain] + EPSILON))


BIMIX = Regressor(fit_bimix, lambda k: 2, across_sizes=True)
