"""Which ridge and temperature would have suited Chameleon: many settings of it, judged without training anything.

Weights come from embeddings that a comparison left, and the judge is the regression on RegMix's swarm of the same comparison, which predicts the mean
loss on the valid split. Other mixtures can be judged beside them. A prediction chooses what to train; it is no result.

    python -m analysis.chameleon_settings RUNS/mixtures/regmix-… RUNS/embeddings/… [RUNS/mixtures/*/mixture.json …]
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.formula import Temperature
from chameleon_ray.mixing.krls import Ridge
from chameleon_ray.mixing.regression import cross_validated_spearman, fit_mean
from chameleon_ray.mixing.swarm import MEAN, read_swarm
from chameleon_ray.mixture import Mixture

RIDGES = (Ridge(absolute=10.0), *(Ridge(relative=r) for r in (1e-4, 1e-3, 1e-2, 0.1, 1.0)))
TEMPERATURES = (Temperature(absolute=5.0), *(Temperature(relative=t) for t in (0.7, 1.4, 2.8, 5.6)))


def main() -> None:
    """One JSON line per mixture, lowest predicted loss first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("swarm", type=Path, help="folder with ratios.csv and metrics.csv")
    parser.add_argument("embeddings", help="folder of the proxy's embeddings")
    parser.add_argument("mixtures", nargs="*", help="mixture.json files to judge beside them")
    options = parser.parse_args()
    swarm = read_swarm(str(options.swarm / "ratios.csv"), str(options.swarm / "metrics.csv"))
    predict = fit_mean("law", swarm.ratios, swarm.columns(MEAN))
    correlation = cross_validated_spearman("law", swarm.ratios, swarm.columns(MEAN), seed=0)
    found = {Path(path).parent.name: Mixture.load(path).weights for path in options.mixtures}
    found |= candidates(Embeddings.load(options.embeddings))
    predicted = predict(np.array([[weights[name] for name in swarm.domains] for weights in found.values()]))  # [number of mixtures]
    print(json.dumps({"cross_validated_spearman": round(correlation, 3)}))
    for nats, (label, weights) in sorted(zip(predicted.tolist(), found.items(), strict=True), key=lambda pair: pair[0]):
        rounded = {name: round(weights[name], 3) for name in swarm.domains}
        print(json.dumps({"mixture": label, "predicted_valid_nats": round(nats, 4), "weights": rounded}))


def candidates(embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """Every combination of centring, normalisation, ridge and temperature -> weights."""
    found = {}
    for center, normalize, ridge, temperature in itertools.product((False, True), (False, True), RIDGES, TEMPERATURES):
        if normalize and temperature.relative is not None:
            continue  # a relative temperature makes normalisation cancel
        method = Chameleon(variant="paper", center=center, normalize=normalize, ridge=ridge, temperature=temperature, bootstrap_draws=0)
        parts = [f"ridge {_words(ridge)}", f"temperature {_words(temperature)}", *(["centred"] if center else []), *(["normalised"] if normalize else [])]
        found[", ".join(parts)] = dict(method.weigh(embeddings).weights)
    return found


def _words(value: Ridge | Temperature) -> str:
    return f"relative {value.relative:g}" if value.absolute is None else f"{value.absolute:g}"


if __name__ == "__main__":
    main()
