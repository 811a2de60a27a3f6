"""Next-token losses: of rows, and of the domains of a held-out split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.memory import forward_rows

IGNORED = -100
FORWARD_BYTES = 1 << 27


def row_losses(logits: torch.Tensor, tokens: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
    """Next-token loss of every position: logits [n, T, V], tokens [n, T] -> [n, T] nats; 0 where there is no next token or only padding."""
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    if length is not None:
        targets[torch.arange(tokens.shape[1], device=tokens.device)[None, :] >= length[:, None] - 1] = IGNORED
    flat = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(tokens.shape)


def measured_rows(corpus: TokenCorpus, split: str, tokens_per_domain: int) -> dict[str, NDArray[np.int64]]:
    """Of every measured domain of a split the numbers of some rows, at most `tokens_per_domain` tokens of them (one row at least).

    They are taken at even distances: rows are stored in the order of the documents' hashes, and so come from as many documents as there can be.
    """
    stored = {name: corpus.rows(split)[name] for name in corpus.measured}
    counts = {name: min(rows, max(1, tokens_per_domain // corpus.row_tokens)) for name, rows in stored.items()}
    return {name: np.arange(count) * stored[name] // count for name, count in counts.items()}


def domain_losses(model: torch.nn.Module, corpus: TokenCorpus, split: str, chosen: Mapping[str, NDArray[np.int64]], hardware: Hardware) -> dict[str, float]:
    """Nats per token on the chosen rows of some domains of a split."""
    reader = RowReader(corpus, split)
    step = forward_rows(hardware, corpus.row_tokens, corpus.vocab_size, FORWARD_BYTES)
    model.eval()
    found = {}
    for name, numbers in chosen.items():
        rows = reader.read(name, numbers)
        nats = 0.0
        for i in range(0, len(rows), step):
            tokens = torch.from_numpy(rows.tokens[i : i + step].astype(np.int64)).to(hardware.device)
            length = torch.from_numpy(rows.length[i : i + step].astype(np.int64)).to(hardware.device)
            with torch.inference_mode():
                nats += float(row_losses(model(input_ids=tokens, use_cache=False).logits, tokens, length).double().sum())
        found[name] = nats / float((rows.length - 1).sum())
    return found
