"""Next-token losses: of rows, and of the domains of a held-out split."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

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


def domain_losses(model: torch.nn.Module, corpus: TokenCorpus, split: str, hardware: Hardware) -> dict[str, float]:
    """Nats per token on every domain of a split."""
    reader = RowReader(corpus, split)
    step = forward_rows(hardware, corpus.row_tokens, corpus.vocab_size, FORWARD_BYTES)
    model.eval()
    found = {}
    for name, count in corpus.rows(split).items():
        rows = reader.read(name, np.arange(count))
        nats = 0.0
        for i in range(0, count, step):
            tokens = torch.from_numpy(rows.tokens[i : i + step].astype(np.int64)).to(hardware.device)
            length = torch.from_numpy(rows.length[i : i + step].astype(np.int64)).to(hardware.device)
            with torch.inference_mode():
                nats += float(row_losses(model(input_ids=tokens, use_cache=False).logits, tokens, length).double().sum())
        found[name] = nats / float((rows.length - 1).sum())
    return found
