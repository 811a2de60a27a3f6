"""The mixture's part of the additive law (Shukor et al. 2025), with what all targets have in common.

    y_j = e_j + 1 / sum_i exp(c_ji) r_i^g_ji

    y        a target's losses, brought to [0, 1] over the runs
    e_j      what is left however much a model reads
    c_ji     how much text of domain i does for target j
    g_ji     how soon more of the same text does less

A law has 2 k + 1 parameters for every target, which a few dozen runs of 17 domains cannot tell. But domains are much alike in this: a target's own domain
does most for it, and most others do about equally little. So c and g are first taken from a few numbers that are the same for all targets,

    c_ji = beta . F_ji        g_ji = exp(gamma . G_ji)        F, G = (1, whether i is j's own domain, …)

and every target then departs from them as far as its runs say, by a penalty that leaving single runs out decides.

Source: Shukor et al. 2025, "Scaling laws for optimal data mixtures" (arXiv 2507.09404), section 3; the shared prior is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chameleon_ray.mixing.regressors.regressor import Array, Predict, Regressor, Runs

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03)
FLOOR_PENALTY = 0.1  # of e, beside that of c and g: what is left is known least
SHARED_PENALTY = 0.03  # keeps what no run tells at its start
MAX_STEPS = 100
MAX_LEVERAGE = 0.999
NOTHING = 1e-9


@dataclass(frozen=True)
class Shared:
    """What all targets have in common.

    Attributes:
        floors: [m] e.
        beta: [q] of the features F.
        gamma: [2] of 1 and own.
    """

    floors: Array
    beta: Array
    gamma: Array

    def prior(self, target: int, features: Array, own: Array) -> Array:
        """[1 + 2 k] e, c and log g of a target with features [k, q]; `own` is [k], 1 at its own domain."""
        return np.concatenate([[self.floors[target]], features @ self.beta, self.gamma[0] + self.gamma[1] * own])


def fit_additive(runs: Runs, parameters: float) -> Predict:
    """The additive law of every target, its prior told by which domain is the target's own.

    Cost: about a second for 512 runs, 17 domains and 13 targets.
    """
    return fit_with_features(runs, np.stack([np.ones_like(runs.is_own), runs.is_own], axis=2))


def fit_with_features(runs: Runs, features: Array) -> Predict:
    """The additive law of every target.

    Args:
        features: F, [m, k, q]; the first is 1, the second whether the domain is the target's own.
    """
    own = runs.is_own
    low, span = runs.losses.min(axis=0), np.ptp(runs.losses, axis=0)  # [m]
    scaled = (runs.losses - low) / np.where(span > 0, span, 1.0)  # [n, m]
    shared = _shared(runs.ratios, scaled, features, own)
    priors = [shared.prior(j, features[j], own[j]) for j in range(len(own))]
    found, errors = list(priors), np.empty((len(PENALTIES), len(own)))
    fits = []
    for i, penalty in enumerate(PENALTIES):
        for j, prior in enumerate(priors):
            found[j], errors[i, j] = _departed(runs.ratios, scaled[:, j], prior, found[j], penalty)
        fits.append(np.array(found))
    law = fits[int(np.argmin(errors.mean(axis=1)))]  # [m, 1 + 2 k]
    return lambda ratios: low + span * np.stack([_losses(ratios, point)[0] for point in law], axis=1)


def _losses(ratios: Array, point: Array) -> tuple[Array, Array]:
    """[n] y at a point (e, c, log g), and [n, 1 + 2 k] its derivatives."""
    k = ratios.shape[1]
    powers = np.exp(point[1 + k :])
    logs = np.log(np.where(ratios > 0, ratios, 1.0))
    terms = np.where(ratios > 0, np.exp(point[1 : 1 + k] + powers * logs), 0.0)  # [n, k]
    total = terms.sum(axis=1, keepdims=True) + NOTHING
    by_c = -terms / total**2
    return point[0] + 1 / total[:, 0], np.hstack([np.ones((len(ratios), 1)), by_c, by_c * powers * logs])


def _shared(ratios: Array, scaled: Array, features: Array, own: Array) -> Shared:
    """The few numbers that fit all targets together, by least squares."""
    from scipy.optimize import least_squares  # here, because most commands need none of it

    (n, m), q = scaled.shape, features.shape[2]
    start = np.concatenate([np.full(m, -0.2), [0.0, 2.0], np.zeros(q - 2), [np.log(0.7), -0.3]])
    scale = 1 / np.sqrt(n * m)

    def shared(point: Array) -> Shared:
        return Shared(point[:m], point[m : m + q], point[m + q :])

    def laws(point: Array) -> list[tuple[Array, Array]]:
        return [_losses(ratios, shared(point).prior(j, features[j], own[j])) for j in range(m)]

    def residuals(point: Array) -> Array:
        return np.concatenate([*(scale * (y - scaled[:, j]) for j, (y, _) in enumerate(laws(point))), SHARED_PENALTY * (point - start)])

    def jacobian(point: Array) -> Array:
        k, rows = ratios.shape[1], []
        for j, (_, slopes) in enumerate(laws(point)):
            by_c, by_g = slopes[:, 1 : 1 + k], slopes[:, 1 + k :]
            row = np.zeros((n, len(point)))
            row[:, j] = 1
            row[:, m : m + q] = by_c @ features[j]
            row[:, m + q :] = np.column_stack([by_g.sum(axis=1), by_g @ own[j]])
            rows.append(scale * row)
        return np.vstack([*rows, SHARED_PENALTY * np.eye(len(point))])

    return shared(least_squares(residuals, start, jac=jacobian, max_nfev=MAX_STEPS).x)


def _departed(ratios: Array, scaled: Array, prior: Array, start: Array, penalty: float) -> tuple[Array, float]:
    """[1 + 2 k] a target's law as near its prior as the penalty asks, and the mean square of its errors where every run is left out once (to first
    order, by leverage)."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.optimize import least_squares

    n, k = ratios.shape
    scale = 1 / np.sqrt(n)
    weights = scale * penalty * np.concatenate([[FLOOR_PENALTY], np.ones(2 * k)])
    own_rows = np.diag(weights)

    def residuals(point: Array) -> Array:
        return np.concatenate([scale * (_losses(ratios, point)[0] - scaled), weights * (point - prior)])

    def jacobian(point: Array) -> Array:
        return np.vstack([scale * _losses(ratios, point)[1], own_rows])

    point = least_squares(residuals, start, jac=jacobian, max_nfev=MAX_STEPS).x
    y, slopes = _losses(ratios, point)
    slopes = scale * slopes
    leverage = np.einsum("np,pn->n", slopes, cho_solve(cho_factor(slopes.T @ slopes + own_rows**2), slopes.T))
    return point, float((((y - scaled) / (1 - np.minimum(leverage, MAX_LEVERAGE))) ** 2).mean())


ADDITIVE = Regressor(fit_additive, lambda k: 0, draws=20)
