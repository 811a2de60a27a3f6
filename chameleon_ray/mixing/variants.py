"""The named formulae: what `variant` sets, before single settings override it.

`paper` and `released` have constants of their own models: lam = 10 and tau = 5 or 0.2 mean something else for every proxy, and for every number of
domains. Those of `calibrated` were chosen over proxies, by public runs and by published weights, among which they are flat (analysis/results/calibration.md).
"""

from __future__ import annotations

from typing import Literal

from chameleon_ray.mixing.formula import Formula, Stage, Temperature
from chameleon_ray.mixing.krls import Ridge

Variant = Literal["calibrated", "paper", "released"]


def _stages(pretrain: Formula, **finetune: object) -> dict[Stage, Formula]:
    return {"pretrain": pretrain, "finetune": pretrain.model_copy(update={"stage": "finetune", **finetune})}


_CALIBRATED = Formula(
    stage="pretrain", ridge=Ridge(energy=1.0), temperature=Temperature(relative=1.5), center=True, normalize=False, noise=True, floor=0.5, cap=None
)
_PAPER = Formula(
    stage="pretrain", ridge=Ridge(absolute=10.0), temperature=Temperature(absolute=5.0), center=False, normalize=False, noise=False, floor=0.0, cap=None
)
_RELEASED = _PAPER.model_copy(update={"center": True, "normalize": True})

VARIANTS: dict[Variant, dict[Stage, Formula]] = {
    "calibrated": _stages(_CALIBRATED, temperature=Temperature(relative=1.0), cap=3.0),
    "paper": _stages(_PAPER, temperature=Temperature(absolute=0.2)),
    "released": _stages(_RELEASED, temperature=Temperature(absolute=0.2)),
}
