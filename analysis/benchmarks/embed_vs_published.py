"""Embedding tokens per second of the actor pool, over those of the path in the authors' script.

That path: decode rows to text, tokenize again with padding to the longest and an attention mask, run the model in full depth keeping every
layer's hidden states, take the masked mean at the middle layer. Same model, rows, rows per forward pass, number format and number of threads.
"""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoTokenizer

from analysis.benchmarks.embedding_pool import Setting, compare
from analysis.benchmarks.measure import Outcome, main
from chameleon_ray.models.hardware import detect

BOUND = 1.8
BATCHES = 12


class Published:
    """The authors' way from stored tokens to one vector per row."""

    def __init__(self, setting: Setting) -> None:
        self._layer, self._row_tokens = setting.layer, setting.corpus.row_tokens
        self._tokenizer = AutoTokenizer.from_pretrained(setting.folder)
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = AutoModel.from_pretrained(setting.folder, dtype=detect(use_gpu=False).dtype, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [n, T] -> [n, p]."""
        texts = self._tokenizer.batch_decode(tokens)
        batch = self._tokenizer(texts, padding="longest", truncation=True, max_length=self._row_tokens, return_tensors="pt")
        states = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].unsqueeze(-1)
        return (states[self._layer] * mask).sum(dim=1) / mask.sum(dim=1)


def run(quick: bool) -> Outcome:
    """Pool and published path in turns."""
    return compare(BOUND, quick, Published, BATCHES)


if __name__ == "__main__":
    main("embed_vs_published", run)
