"""Tiny fresh causal LMs of several families, saved as others publish theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    Olmo2Config,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.tokenizer import load_tokenizer, save_tokenizer

FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "llama_tied": LlamaConfig,
    "gpt_neox": GPTNeoXConfig,
    "qwen2": Qwen2Config,
    "opt": OPTConfig,
    "gemma2": Gemma2Config,
    "olmo2": Olmo2Config,
    "granite": GraniteConfig,
    "minicpm3": MiniCPM3Config,
}
OWN: dict[str, dict[str, Any]] = {
    "llama_tied": {"tie_word_embeddings": True},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gemma2": {"head_dim": 16},
    "granite": {"residual_multiplier": 0.3},
    "minicpm3": {
        "num_key_value_heads": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "scale_depth": 1.4,
    },
}


def family_model(family: str, vocab_size: int, layers: int = 4, context: int = 64, seed: int = 0, **more: Any) -> Any:
    """A causal LM of width 32 with two heads and a tenth of dropout where its family has any."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1}
    tokens = {"vocab_size": vocab_size, "max_position_embeddings": context, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    if family in ("gpt_neox", "opt"):
        del shape["num_key_value_heads"]
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family](**{**shape, **tokens, **OWN.get(family, {})}, attention_dropout=0.1, **more))


def publish(family: str, corpus: TokenCorpus, folder: Path, context: int = 64, layers: int = 4) -> str:
    """A model of a family with the corpus's tokenizer."""
    family_model(family, corpus.vocab_size, layers, context).save_pretrained(folder)
    save_tokenizer(*load_tokenizer(corpus.tokenizer_address), str(folder))
    return str(folder)
