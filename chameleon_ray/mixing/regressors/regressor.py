"""What a regressor is.

r    [n, k] ratios, rows on the simplex
L    [n] losses of one target
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]
FOLDS = 5
MIN_RUNS = 2 * FOLDS


@dataclass(frozen=True)
class Regressor:
    """How to fit, and the runs a fit needs for k domains, in cross-validation too.

    Attributes:
        fit: (r, L) -> a function from [s, k] ratios to [s] predicted losses, the same one for the same runs.
        parameters: k -> the runs that a single fit needs.
        draws: how often it is fitted again for a range, by how long a fit takes.
    """

    fit: Callable[[Array, Array], Predict]
    parameters: Callable[[int], int]
    draws: int = 200

    def min_runs(self, k: int) -> int:
        """The smallest swarm of k domains: four fifths of it determine the parameters, and every fold holds two runs."""
        return max(MIN_RUNS, math.ceil(self.parameters(k) * FOLDS / (FOLDS - 1)))
