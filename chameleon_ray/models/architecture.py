"""A decoder's shape, as far as parameters, operations and memory depend on it: of the paper's layout in closed form, of any other as it was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chameleon_ray.artifacts import TokenCorpus, TrainedModel
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig
from chameleon_ray.models.adapters import adapter_parameters


def middle_layer(num_layers: int) -> int:
    """The middle entry of the N + 1 hidden states (0 is the token embedding), as in the authors' script."""
    return (num_layers + 1) // 2


def layer_number(wanted: Literal["middle"] | int, num_layers: int) -> int:
    """Of the layer that is asked for, in a model of so many."""
    return middle_layer(num_layers) if wanted == "middle" else wanted


@dataclass(frozen=True)
class Architecture:
    """What the matrix products of a decoder cost (a multiply-add counts as two operations), and what its blocks keep.

    Attributes:
        num_parameters: each once, however often it is used.
        block_products: multiply-adds per token of the linear maps of one block.
        query_width: heads times their size. Attention costs 4 T times that per token and block, over all T positions: what dense kernels compute; a causal
            kernel does half of it.
        last_products, last_width: multiply-adds per token, and width of the input, of a block's last projection; 0 where it is not known which that is.
        head_products: multiply-adds per token of the output head.
        kept_numbers: what autograd keeps of a token in one block.
        adapter_products: multiply-adds per token of the low-rank adapters of one block, and their parameters; where there are any, nothing else is trained.
    """

    layers: int
    width: int
    num_parameters: int
    block_products: int
    query_width: int
    last_products: int
    last_width: int
    head_products: int
    kept_numbers: int
    adapter_products: int = 0

    @classmethod
    def gpt2(cls, config: ModelConfig, vocab_size: int, row_tokens: int) -> Architecture:
        """The layout of Hugging Face's GPT-2 with tied embeddings.

        Of a block autograd keeps the inputs of its two norms, of attention's three projections, of attention itself (q, k, v, its result), and of the
        feed-forward network (w, 4 w, 4 w).
        """
        layers, _, width = config.shape
        return cls(
            layers=layers,
            width=width,
            num_parameters=layers * (12 * width**2 + 13 * width) + 2 * width + (vocab_size + row_tokens) * width,
            block_products=12 * width**2,
            query_width=width,
            last_products=4 * width**2,
            last_width=4 * width,
            head_products=width * vocab_size,
            kept_numbers=16 * width,
        )

    @classmethod
    def of(cls, job: TrainJob, corpus: TokenCorpus) -> Architecture:
        """Of the model that a job trains."""
        if job.start is not None:
            found, lora = cls.of_trained(job.start, corpus.row_tokens), job.training.model.lora
            return replace(found, adapter_products=adapter_parameters(lora, job.start) // found.layers) if lora else found
        return cls.gpt2(job.training.model, corpus.vocab_size, corpus.row_tokens)

    @classmethod
    def of_trained(cls, model: TrainedModel, row_tokens: int) -> Architecture:
        """Of a model that is there: as it was found where others trained it, by the configuration of its run, on such rows, where we did."""
        if "architecture" in model.details:
            return cls(**model.details["architecture"])
        return cls.gpt2(ModelConfig(**model.details["training"]["model"]), model.vocab_size, row_tokens)

    @property
    def adapters(self) -> int:
        """Parameters of the adapters of all blocks."""
        return self.layers * self.adapter_products

    @property
    def trained_parameters(self) -> int:
        """Those that the optimizer changes."""
        return self.adapters or self.num_parameters

    def forward_flops(self, row_tokens: int, head: bool = True, layers: int | None = None) -> float:
        """Operations of all matrix products of one forward pass through some blocks, by default all of them, per token."""
        per_layer = 2 * (self.block_products + self.adapter_products) + 4 * row_tokens * self.query_width
        return float((self.layers if layers is None else layers) * per_layer + (2 * self.head_products if head else 0))

    def embedding_flops(self, layer: int, row_tokens: int) -> float:
        """Operations of all matrix products that embed a row at a layer (`pooling.py`), per token.

        The last projection runs on a row's mean instead of its tokens; the means over tokens, of the states and of its inputs, are products too. (Families
        that scale or normalise what it gives, Gemma 2, OLMo 2 and Granite, run it on all tokens: a few percent more than is counted.)
        """
        blocks = self.forward_flops(row_tokens, head=False, layers=layer)
        return blocks - 2 * self.last_products * (1 - 1 / row_tokens) + 2 * (self.width + self.last_width)

    def recompute_flops(self, row_tokens: int) -> float:
        """Operations of computing activations again in the backward pass, per token: all blocks up to what goes into their last projections, since nothing
        needs what these give (Gemma 2 and OLMo 2, which normalise it, run them too); the output head keeps its own."""
        return self.forward_flops(row_tokens, head=False) - 2.0 * self.layers * self.last_products

    def training_flops(self, tokens: int, row_tokens: int) -> float:
        """Operations of training on so many tokens, output head included: forward, and in backward two products for each of its own.

        Of a map that is frozen only one of the two, the gradient of its input: beside adapters a third of the linear maps' work is saved, and none of
        attention's. (The first block's input needs no gradient either; that is a part in some hundred, and counted.)
        """
        frozen = 2 * (self.layers * self.block_products + self.head_products) if self.adapter_products else 0
        return (3 * self.forward_flops(row_tokens) - frozen) * tokens


def measuring(model: TrainedModel, corpus: TokenCorpus, splits: Sequence[str], rows_at_most: int | None) -> tuple[int, float]:
    """Tokens and operations of measuring a model on some splits of a corpus, on at most so many rows of each domain and split."""
    tokens = sum(min(rows, rows_at_most or rows) for split in splits for rows in corpus.rows(split).values()) * corpus.row_tokens
    return tokens, Architecture.of_trained(model, corpus.row_tokens).forward_flops(corpus.row_tokens) * tokens
