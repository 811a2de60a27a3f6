"""Time of DoReMi's step at k = 7, over a plain step of the same model and batch, with one micro-batch and with four."""

from __future__ import annotations

from analysis.benchmarks import rule_steps
from analysis.benchmarks.measure import Outcome, main
from chameleon_ray.mixing.doremi import DoReMiRule

BOUND = 1.45
NUM_DOMAINS = 7


def run(quick: bool) -> Outcome:
    """Both kinds of step in turns."""
    return rule_steps.run(DoReMiRule(), NUM_DOMAINS, BOUND, quick, micro_batches=(1, 4))


if __name__ == "__main__":
    main("doremi_step_k7", run)
