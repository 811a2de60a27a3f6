"""Next-token losses of the domains of a held-out split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.chunks import even_rows
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.head import TokenLosses
from chameleon_ray.models.memory import forward_rows


def measured_rows(corpus: TokenCorpus, split: str, tokens_per_domain: int) -> dict[str, NDArray[np.int64]]:
    """Of everything that is measured on a split the numbers of some rows, at most `tokens_per_domain` tokens of them (one row at least).

    They are taken at even distances: rows are stored in the order of the documents' hashes, and so come from as many documents as there can be.
    """
    stored = {name: corpus.rows(split)[name] for name in corpus.heldout}
    counts = {name: min(rows, corpus.rows_in(tokens_per_domain)) for name, rows in stored.items()}
    return {name: even_rows(stored[name], count) for name, count in counts.items()}


def domain_losses(model: TokenLosses, corpus: TokenCorpus, split: str, chosen: Mapping[str, NDArray[np.int64]], hardware: Hardware) -> dict[str, float]:
    """Nats per token on the chosen rows of some domains of a split."""
    reader = RowReader(corpus, split)
    step = forward_rows(hardware, corpus.row_tokens)
    model.eval()
    found = {}
    for name, numbers in chosen.items():
        rows = reader.read(name, numbers)
        nats = 0.0
        for i in range(0, len(rows), step):
            tokens = torch.from_numpy(rows.tokens[i : i + step].astype(np.int64)).to(hardware.device)
            length = torch.from_numpy(rows.length[i : i + step].astype(np.int64)).to(hardware.device)
            with torch.inference_mode():
                nats += float(model(tokens, length).double().sum())
        found[name] = nats / float((rows.length - 1).sum())
    return found
