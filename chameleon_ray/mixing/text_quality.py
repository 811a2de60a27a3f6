"""How good the text of each domain is, which embeddings do not say: a domain near the middle of all gains weight whatever its quality.

compression   bytes of text to a byte compressed: much repetition compresses far, noise hardly
repeated      share of passages of eight words that another document of the domain has too
structure     1 - the proxy's loss over the entropy of the domain's token frequencies: 0 where knowing what stands before a token tells nothing of it. Of a
              proxy that was trained on the domains it is the loss in training, which text that was repeated many times lowers too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import Backend
from chameleon_ray.mixing.remarks import MIN_GAIN

GLANCE_TOKENS = 2048  # of each domain: enough to tell half of a structure, at a tenth of what embedding takes
MAX_COMPRESSION = 8.0
MIN_COMPRESSION = 1.5
MAX_REPEATED = 0.3
LOW_STRUCTURE = 0.5  # of the median domain's
LEARNED = 0.1
LAST_PART = 0.9
MIN_FACTOR = 0.01
LITTLE = 0.1
MIN_SAMPLE = 8 << 10  # a short text compresses little whatever it says


@dataclass(frozen=True)
class TextQuality:
    """The measures of one domain; `structure` is None where the proxy's loss is not known."""

    compression: float
    repeated: float
    structure: float | None
    sample_bytes: int = MIN_SAMPLE


def proxy_losses(proxy: TrainedModel, corpus: TokenCorpus, backend: Backend) -> tuple[Mapping[str, float], Mapping[str, Cost]]:
    """How well a proxy predicts the text of each domain, in nats per token, and what finding out took, by digest.

    A proxy that was trained on this text tells by its last losses, where it read enough of every domain in them; another one is given a glance at held-out
    text.
    """
    if "training" in proxy.details and proxy.details.get("corpus") == corpus.digest:
        found = _last_losses(proxy.metrics())
        if set(corpus.names) <= set(found):
            return found, {}
    seen = backend.glance(proxy, corpus, GLANCE_TOKENS)
    return seen.losses, {seen.digest: seen.cost}


def text_quality(corpus: TokenCorpus, losses: Mapping[str, float]) -> dict[str, TextQuality]:
    """Of every domain of a corpus.

    Args:
        losses: of the proxy, nats per token, of the domains where it is known.
    """
    found = {}
    for name in corpus.names:
        counts = corpus.domains[name]
        structure = 1 - losses[name] / counts.unigram_entropy_nats if name in losses and counts.unigram_entropy_nats > 0 else None
        if counts.quality is not None:
            found[name] = TextQuality(counts.quality.compression, counts.quality.repeated, structure, counts.quality.sample_bytes)
    return found


def factors(quality: Mapping[str, TextQuality], names: Sequence[str]) -> dict[str, float]:
    """By how much less each domain counts: (1 - repeated) times the structure over that of the median domain, from .01 to 1; what is not known counts 1."""
    usual = _usual_structure(quality)
    known = {name: max(MIN_FACTOR, (1 - each.repeated) * _part(each.structure, usual)) for name, each in quality.items()}
    return {name: known.get(name, 1.0) for name in names}


def quality_warnings(quality: Mapping[str, TextQuality], weights: Mapping[str, float], prior: Mapping[str, float], counted: bool) -> list[str]:
    """One sentence for every domain that gains against its prior though its text is poor.

    Args:
        counted: whether the weights count quality already; then also one for every domain that it leaves a tenth of what it would have, or less.
    """
    usual = _usual_structure(quality)
    found = []
    if counted:
        little = [f"{name} ({factor:.2g})" for name, factor in factors(quality, list(quality)).items() if factor <= LITTLE]
        found = [f"quality: true leaves little of {', '.join(little)}, whose text looks poor; look at it, or leave the domain out."] if little else []
    remedy = "" if counted else ", or set quality: true, which counts it less"
    for name, each in quality.items():
        gain = weights[name] / prior[name] if prior[name] > 0 else 0.0
        if gain >= MIN_GAIN and (reasons := _poor(each, usual)):
            found.append(
                f"{name} gets {gain:.2g} times its prior and its text looks poor: {', '.join(reasons)}; scores do not see quality: look at the text, "
                f"clean it or leave the domain out{remedy}."
            )
    return found


def quality_details(quality: Mapping[str, TextQuality]) -> dict[str, Any]:
    """As a mixture keeps them."""
    return {name: asdict(each) for name, each in quality.items()}


def _poor(quality: TextQuality, usual: float) -> list[str]:
    reasons = []
    if quality.repeated > MAX_REPEATED:
        reasons.append(f"{quality.repeated:.0%} of its passages stand in other documents of it too")
    if quality.compression > MAX_COMPRESSION and quality.sample_bytes >= MIN_SAMPLE:
        reasons.append(f"it compresses {quality.compression:.1f} times")
    if quality.compression < MIN_COMPRESSION and quality.sample_bytes >= MIN_SAMPLE:
        reasons.append(f"it hardly compresses ({quality.compression:.1f} times), as noise does")
    if quality.structure is not None and usual > 0 and quality.structure < LOW_STRUCTURE * usual:
        reasons.append(f"what stands before a token tells the proxy little of it ({quality.structure:.0%} of the entropy, {usual:.0%} in the median domain)")
    return reasons


def _last_losses(curve: pa.Table) -> dict[str, float]:
    """Domain -> mean training loss over the last tenth of the steps, of the domains that had `GLANCE_TOKENS` tokens in them."""
    last = curve.filter(pc.field("step") > LAST_PART * pc.max(curve["step"]).as_py())
    sums = last.append_column("nats", pc.multiply(last["loss"], last["tokens"])).group_by("domain").aggregate([("nats", "sum"), ("tokens", "sum")])
    return {row["domain"]: row["nats_sum"] / row["tokens_sum"] for row in sums.to_pylist() if row["tokens_sum"] >= GLANCE_TOKENS}


def _usual_structure(quality: Mapping[str, TextQuality]) -> float:
    """The median domain's, 0 where the proxy has learned too little to be asked."""
    known = [each.structure for each in quality.values() if each.structure is not None]
    usual = median(known) if known else 0.0
    return usual if usual >= LEARNED else 0.0


def _part(structure: float | None, usual: float) -> float:
    return 1.0 if structure is None or usual <= 0 else min(1.0, max(0.0, structure) / usual)
