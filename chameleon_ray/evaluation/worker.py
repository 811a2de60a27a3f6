"""What an actor does with the rows it is sent: it knows nothing of Ray, and imports torch only once it is made, so that the driver need not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from chameleon_ray.artifacts import DocumentLosses, TokenCorpus
from chameleon_ray.corpus.chunks import ChunkReader
from chameleon_ray.evaluation.losses import MEASURED_IN, document_of_target


class EvaluateWorker:
    """Holds one model at a time; turns the rows of a chunk into (document, nats, tokens), in fp32 whatever the model was trained in."""

    def __init__(self, corpus: TokenCorpus, use_gpu: bool, threads: int, trusted: Collection[str] = ()) -> None:
        """Args:
        trusted: addresses of models whose own code may be run.
        """
        import torch

        from chameleon_ray.models.hardware import detect
        from chameleon_ray.models.memory import forward_rows

        torch.set_num_threads(threads)
        self._hardware = detect(use_gpu, MEASURED_IN)
        self._step = forward_rows(self._hardware, corpus.row_tokens)
        self._chunks = ChunkReader(corpus)
        self._trusted = trusted
        self._end_of_document = corpus.end_of_document
        self._loaded: tuple[str, Any] = ("", None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        model = self._model(str(batch["model"][0]))
        rows = self._chunks.read(batch)
        row_tokens = rows.tokens.shape[1]
        nats = self._all_losses(model, rows.tokens, rows.length)
        counted = np.arange(row_tokens)[None, :] < rows.length[:, None] - 1
        of_target = document_of_target(rows.tokens, rows.document, self._end_of_document)
        losses = DocumentLosses.from_tokens(of_target[counted], nats[counted], np.ones(int(counted.sum()), np.int64))
        found = {"document": losses.document, "nats": losses.nats, "tokens": losses.tokens}
        return {"number": batch["number"], **{key: _ragged(value) for key, value in found.items()}}

    def _all_losses(self, model: Any, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        """A few rows at a time, half as many from then on whenever memory runs out."""
        import torch

        found, done = [], 0
        while done < len(tokens):
            part = slice(done, done + self._step)
            try:
                found.append(self._losses(model, tokens[part], length[part]))
            except torch.OutOfMemoryError:
                if self._step == 1:
                    raise
                self._step //= 2
                continue
            done = part.stop
        return np.concatenate(found)

    def _losses(self, model: Any, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            ids, lengths = (torch.from_numpy(values.astype(np.int64)).to(self._hardware.device) for values in (tokens, length))
            found: np.ndarray = model(ids, lengths).double().cpu().numpy()
        return found

    def _model(self, folder: str) -> Any:
        from chameleon_ray.models.load import load_losses

        if self._loaded[0] != folder:
            self._loaded = ("", None)  # the model before is given back first
            self._loaded = (folder, load_losses(folder, self._hardware, folder in self._trusted))
        return self._loaded[1]


def _ragged(values: np.ndarray) -> np.ndarray:
    """One row that holds an array of any length, as Ray Data wants it."""
    cell = np.empty(1, dtype=object)
    cell[0] = values
    return cell
