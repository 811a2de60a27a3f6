"""What every method has: settings that are only stored, a name, a version, and defaults for what most do not need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from chameleon_ray.backend import FitContext, Rule, TrainJob, Work
from chameleon_ray.config import TrainingConfig
from chameleon_ray.mixing.simplex import domain_names
from chameleon_ray.mixture import Mixture
from chameleon_ray.settings import Settings


class Method(Settings, ABC):
    """A method that decides how much of each domain to train on: frozen settings, and `fit`, which does the work.

    A method is one file and one line in `METHODS`. `version` is raised when the same inputs give another mixture; `needs` names the sections of the
    experiment that decide it, beside its own settings, the corpus and the seed; `sections` those that do with these settings. `rule`: what watches the models
    that it trains, where something does.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    rule: ClassVar[type[Rule] | None] = None

    @property
    def sections(self) -> frozenset[str]:
        """What is needed of the experiment with these settings."""
        return self.needs

    @property
    def by_size(self) -> bool:
        """Whether its weights follow from how much there is of the domains, with these settings."""
        return False

    def check_settings(self, label: str, proxy: TrainingConfig) -> None:
        """Raise `UserError` for settings with which nothing can be fitted, before anything is read; `label` is what the experiment calls the method, `proxy`
        its proxy."""

    def trainings(self, proxy: TrainingConfig) -> list[TrainingConfig]:
        """How the models are trained that `fit` trains, known before anything is read: each once, whatever their number; `proxy` is the experiment's."""
        return []

    def check(self, context: FitContext) -> None:
        """Raise `UserError` for what the corpus shows, before anything is trained."""
        domain_names(context.corpus)

    def jobs(self, context: FitContext) -> list[TrainJob]:
        """Every model that `fit` will train; raises nothing beyond what `check` does."""
        return []

    def work(self, context: FitContext) -> Work:
        """Everything that `fit` asks of the backend; raises nothing beyond what `check` does."""
        return Work(trains=tuple(self.jobs(context)))

    @abstractmethod
    def fit(self, context: FitContext) -> Mixture:
        """The mixture for the corpus. Raises what `check` raises."""

    def provenance(self, context: FitContext) -> dict[str, Any]:
        """Where its mixtures come from: settings and corpus."""
        return {"settings": self.model_dump(mode="json"), "corpus": context.corpus.digest}
