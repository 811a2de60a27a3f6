"""Held-out loss of many models in one pass over a pool of actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chameleon_ray import storage
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import Resources
from chameleon_ray.corpus.ray_stream import ChunkReader, chunks_of, stream
from chameleon_ray.evaluation.losses import DocumentLosses, SplitLosses, document_of_target
from chameleon_ray.progress import Stage

CHUNK_ROWS = 64
FORWARD_BYTES = 1 << 28


class EvaluateWorker:
    """Holds one model at a time; turns the rows of a chunk into (document, nats, tokens)."""

    def __init__(self, corpus: TokenCorpus, use_gpu: bool, threads: int) -> None:
        import torch

        from chameleon_ray.training.hardware import detect

        torch.set_num_threads(threads)
        self._hardware = detect(use_gpu)
        self._chunks = ChunkReader(corpus)
        self._end_of_document = corpus.end_of_document
        self._loaded: tuple[str, Any] = ("", None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        model = self._model(str(batch["model"][0]))
        rows = self._chunks.read(batch)
        row_tokens = rows.tokens.shape[1]
        step = max(1, FORWARD_BYTES // (4 * row_tokens * model.config.vocab_size))
        nats = np.concatenate([self._losses(model, rows.tokens[i : i + step], rows.length[i : i + step]) for i in range(0, len(rows), step)])
        counted = np.arange(row_tokens)[None, :] < rows.length[:, None] - 1
        of_target = document_of_target(rows.tokens, rows.document, self._end_of_document)
        losses = DocumentLosses.from_tokens(of_target[counted], nats[counted], np.ones(int(counted.sum()), np.int64))
        found = {"document": losses.document, "nats": losses.nats, "tokens": losses.tokens}
        return {"number": batch["number"], **{key: _ragged(value) for key, value in found.items()}}

    def _losses(self, model: Any, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        import torch

        from chameleon_ray.training.steps import row_losses

        with torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64)).to(self._hardware.device)
            found = row_losses(model(input_ids=ids, use_cache=False).logits, ids, torch.from_numpy(length.astype(np.int64)).to(ids.device))
        return found.double().cpu().numpy()

    def _model(self, folder: str) -> Any:
        if self._loaded[0] != folder:
            from transformers import AutoModelForCausalLM

            self._loaded = ("", None)
            model: Any = AutoModelForCausalLM.from_pretrained(storage.local_directory(folder), dtype=self._hardware.dtype, attn_implementation="sdpa")
            self._loaded = (folder, model.to(self._hardware.device).eval())
        return self._loaded[1]


def evaluate(
    models: Sequence[str], corpus: TokenCorpus, splits: Sequence[str], resources: Resources, stage: Stage, pool_actors: int | None = None
) -> list[SplitLosses]:
    """Loss of every model (addresses of Hugging Face folders with the corpus's tokenizer) on every domain of some splits, in the order given."""
    chunks = chunks_of(corpus, models, splits, CHUNK_ROWS)
    arguments = {"use_gpu": bool(resources.gpus_per_worker), "threads": resources.cpus_per_worker}
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for chunk, result in zip(chunks, stream(corpus, chunks, EvaluateWorker, arguments, resources, stage, pool_actors), strict=True):
        found.setdefault((chunk.model, chunk.split, chunk.domain), []).append(result)
    return [{split: {name: _merge(found[model, split, name]) for name in corpus.names} for split in splits} for model in models]


def _merge(parts: Sequence[dict[str, Any]]) -> DocumentLosses:
    return DocumentLosses.from_tokens(*(np.concatenate([part[key] for part in parts]) for key in ("document", "nats", "tokens")))


def _ragged(values: np.ndarray) -> np.ndarray:
    """One row that holds an array of any length, as Ray Data wants it."""
    cell = np.empty(1, dtype=object)
    cell[0] = values
    return cell
