"""Time of DoGE's step at k = 7, over a plain step of the same model and batch."""

from __future__ import annotations

from analysis.benchmarks import rule_steps
from analysis.benchmarks.measure import Outcome, main
from chameleon_ray.mixing.doge import DoGERule

BOUND = 1.25
NUM_DOMAINS = 7


def run(quick: bool) -> Outcome:
    """Both kinds of step in turns."""
    return rule_steps.run(DoGERule(), NUM_DOMAINS, BOUND, quick)


if __name__ == "__main__":
    main("doge_step_k7", run)
