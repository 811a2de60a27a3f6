"""Domain embeddings in two dimensions, one point per group of samples."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chameleon_ray.artifacts import Embeddings

MIN_UMAP_POINTS = 15


def embedding_map(embeddings: Embeddings, seed: int) -> tuple[pa.Table, str]:
    """Group means in the plane.

    Args:
        embeddings: k domains with up to 32 groups each; empty groups are left out.
        seed: of UMAP, which is random.
    Returns:
        A table (domain, group, samples, x, y) and the projection's name, "UMAP" or, under 15 points, "PCA".
    Cost: importing UMAP takes some ten seconds; its time grows as n log n in the number of points.
    """
    domain, group = np.nonzero(embeddings.group_counts)
    counts = embeddings.group_counts[domain, group]
    points = (embeddings.group_sums[domain, group] / counts[:, None]).astype(np.float64)
    name = "UMAP" if len(points) >= MIN_UMAP_POINTS else "PCA"
    plane = _umap(points, seed) if name == "UMAP" else principal_components(points)
    columns = {"domain": [embeddings.names[i] for i in domain], "group": group, "samples": counts, "x": plane[:, 0], "y": plane[:, 1]}
    return pa.table(columns), name


def principal_components(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2] coordinates along the two directions of largest variance; each direction's largest entry is positive."""
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    plane = centred @ directions.T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def _umap(points: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        from umap import UMAP
    reducer = UMAP(n_components=2, n_neighbors=min(15, len(points) - 1), init="pca", random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(points), dtype=np.float64)
