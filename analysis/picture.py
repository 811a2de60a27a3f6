"""The method on one real picture: domains where their embeddings put them, and what they get for it.

    python -m analysis.picture RUNS/embeddings/… FILE.svg

Drawn is the plane of the two largest principal components of the centred embeddings; areas are weights.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.mixing.chameleon import Chameleon
from chameleon_ray.mixing.krls import Array

AREA = 9000.0


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="folder of embeddings")
    parser.add_argument("picture", help="SVG file to write")
    options = parser.parse_args()
    embeddings = Embeddings.load(options.embeddings)
    draw(embeddings, options.picture)


def draw(embeddings: Embeddings, address: str) -> None:
    """A circle for every domain: its place by the embeddings, its area by the weight, its colour by gain or loss against uniform."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "picture"
    found = Chameleon().weigh(embeddings)
    weights = np.array([found.weights[name] for name in embeddings.names])
    means = embeddings.means
    left, singular, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    places = left[:, :2] * singular[:2]
    share = singular**2 / (singular**2).sum()
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    gains = weights > 1 / len(weights)
    axes.scatter(places[:, 0], places[:, 1], s=AREA * weights, c=np.where(gains, "#2a7f62", "#c9793a"), alpha=0.55, linewidths=0)
    axes.plot(0, 0, marker="+", color="black", markersize=10)
    axes.margins(0.14)
    for name, (x, y), weight in zip(embeddings.names, _apart(places), weights, strict=True):
        axes.annotate(f"{name} {weight * len(weights):.2f}", (x, y), ha="center", va="center", fontsize=7.5)
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of what tells the domains apart)", fontsize=8)
    axes.set_ylabel(f"second ({share[1]:.0%})", fontsize=8)
    axes.tick_params(labelsize=7)
    figure.savefig(address, metadata={"Date": None})


def _apart(places: Array) -> Array:
    """[k, 2] places for the labels: above their circles, pushed up and down until none covers another."""
    span = np.ptp(places, axis=0)
    labels = places + np.array([0, 0.055 * span[1]])
    for _ in range(200):
        for i in range(len(labels)):
            for j in range(i):
                away = labels[i] - labels[j]
                if abs(away[0]) < 0.24 * span[0] and abs(away[1]) < 0.045 * span[1]:
                    push = 0.005 * span[1] * (1 if away[1] >= 0 else -1)
                    labels[i, 1] += push
                    labels[j, 1] -= push
    return labels


if __name__ == "__main__":
    main()
