"""What methods share whose rule learns while a proxy trains."""

from __future__ import annotations

from chameleon_ray.artifacts import TrainedModel
from chameleon_ray.backend import FitContext, TrainJob
from chameleon_ray.config import ProxyChanges, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.mixing.method import Method
from chameleon_ray.mixing.simplex import domain_names, effective_domains, named, normalised, spread
from chameleon_ray.mixture import Mixture, Trajectory


def check_own_proxy(label: str, proxy: TrainingConfig, changes: ProxyChanges | None) -> None:
    """Raise `UserError` where a method that learns while a proxy trains from scratch would have none."""
    given = changes or ProxyChanges()
    if (given.model or proxy.model).pretrained is not None or (proxy.model.pretrained is not None and not given.steps):
        raise UserError(
            f"methods.{label}.proxy: this method learns weights while a proxy trains from scratch, and a pretrained model has trained; "
            f"give methods.{label}.proxy a model (preset, or layers, heads and width) and steps of its own"
        )


def own_training(proxy: TrainingConfig, changes: ProxyChanges | None) -> TrainingConfig:
    """The experiment's proxy with a method's changes. Only Chameleon's weights are known before its proxy's end, so that only it may stop early."""
    training = changes.applied_to(proxy) if changes else proxy
    return training.model_copy(update={"stop": None})


def proxy_training(context: FitContext, changes: ProxyChanges | None) -> TrainingConfig:
    """The same, where the method can work with such a proxy; raises `UserError` where not."""
    check_own_proxy(context.label, context.proxy, changes)
    return own_training(context.proxy, changes)


def proxy_keys(context: FitContext, changes: ProxyChanges | None) -> dict[str, str]:
    """Where the settings of a method's own proxy stand in the experiment file."""
    changed = changes.model_fields_set if changes else ()
    return {setting: f"methods.{context.label}.proxy.{setting}" for setting in changed}


def check_batch(job: TrainJob) -> None:
    """Raise `UserError` when a batch cannot show every domain."""
    rows, k = job.training.batch_rows, len(job.weights)
    if rows < k:
        raise UserError(f"{job.key('batch_rows')}: batches of {rows} rows cannot show all {k} domains; raise it to at least {k}")


def learned(method: Method, context: FitContext, proxy: TrainedModel, remedy: str) -> Mixture:
    """The mixture that a proxy's rule ended with: the mean of its weights over the updates; `details` has the last ones too.

    Args:
        remedy: the usual cause and what to do, for the warning when the weights collapse.
    """
    names = domain_names(context.corpus)
    rule = proxy.details["rule"]
    weights = named(names, normalised([rule["answer"][domain] for domain in names]))
    warnings = []
    if spread(list(weights.values())) == "collapsed":
        warnings.append(f"{effective_domains(list(weights.values()))}: the weights collapse; {remedy}.")
    provenance = {**method.provenance(context), "proxy": proxy.digest, "proxy_address": proxy.address}
    details = {"last_weights": {domain: rule["last"][domain] for domain in names}, "updates": rule["updates"]}
    ledger = {proxy.run: proxy.cost}
    return Mixture(method.name, weights, ledger=ledger, trajectory=trajectory_of(proxy), provenance=provenance, details=details, warnings=tuple(warnings))


def trajectory_of(proxy: TrainedModel) -> Trajectory | None:
    """The weights over a proxy's steps; None where no rule was at work."""
    return Trajectory.from_table(proxy.weight_history()) if "rule" in proxy.details else None
