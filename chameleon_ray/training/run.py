"""A job with the place its result goes to."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        digest: names it: the same digest goes on from what was left unfinished.
        address: of the folder of its result.
        passes: shorter runs on the same schedule, which this one passes through.
    """

    job: TrainJob
    corpus: TokenCorpus
    digest: str
    address: str
    passes: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        """What the run's folder of checkpoints is called."""
        return f"{self.job.role}-{self.digest}"

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.job.role} {self.digest[:4]} (seed {self.job.seed})"
