"""The authors' way from stored tokens to one vector per row."""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoTokenizer

from chameleon_ray.models.hardware import Hardware


class Published:
    """Decode rows to text, tokenize again with padding to the longest and an attention mask, run the model in full depth keeping every layer's hidden
    states, take the masked mean at the middle layer."""

    def __init__(self, folder: str, layer: int, row_tokens: int, hardware: Hardware) -> None:
        self._layer, self._row_tokens, self._device = layer, row_tokens, hardware.device
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = AutoModel.from_pretrained(folder, dtype=hardware.dtype).to(hardware.device).eval()

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [n, T] -> [n, p]."""
        texts = self._tokenizer.batch_decode(tokens)
        batch = self._tokenizer(texts, padding="longest", truncation=True, max_length=self._row_tokens, return_tensors="pt").to(self._device)
        states = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].unsqueeze(-1)
        return (states[self._layer] * mask).sum(dim=1) / mask.sum(dim=1)
