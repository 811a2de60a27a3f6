"""What rows take of memory: the formula against what autograd keeps, the choice of a micro-batch, and what follows when memory runs out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.errors import UserError
from chameleon_ray.models import memory
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.training.micro_batch import MicroBatch, choose_micro_batch
from tests.fakes import make_corpus

CPU = Hardware(torch.device("cpu"), torch.float32, "test")
H100 = Hardware(torch.device("cuda"), torch.bfloat16, "test")


def kept_bytes(shape: tuple[int, int, int], row_tokens: int, dtype: torch.dtype, recompute: bool, rows: int = 2) -> float:
    """Bytes per row of the storages that autograd keeps of a forward pass up to the last hidden state; of parameters none."""
    layers, heads, width = shape
    model = build_model(ModelConfig(layers=layers, heads=heads, width=width), 300, row_tokens, 0, 0).to(dtype).train()
    if recompute:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.transformer(input_ids=torch.randint(0, 300, (rows, row_tokens)), use_cache=False)  # type: ignore[operator, union-attr]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / rows


@pytest.mark.parametrize("shape", [(2, 2, 64), (4, 4, 128), (3, 12, 384)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    layers, heads, width = shape
    model, each = Architecture.gpt2(ModelConfig(layers=layers, heads=heads, width=width), 101, 128), torch.finfo(dtype).bits // 8
    assert kept_bytes(shape, 128, dtype, False) == pytest.approx(memory.activation_bytes(model, 128, each), rel=0.03)
    only_inputs = memory.activation_bytes(model, 128, each, recompute=True) - 16 * 128 * width * each
    assert kept_bytes(shape, 128, dtype, True) == pytest.approx(only_inputs, rel=0.1)


def corpus_of(row_tokens: int, vocab_size: int) -> TokenCorpus:
    return replace(make_corpus({"a": 400}), row_tokens=row_tokens, vocab_size=vocab_size)


def job_of(preset: str, batch_rows: int, **changes: int) -> TrainJob:
    return TrainJob("base", TrainingConfig(model={"preset": preset}, steps=1, batch_rows=batch_rows, **changes), {"a": 1.0}, 0)


def test_684m_on_one_gpu_takes_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 rows of 512 tokens would keep 91 GB of activations; counted by logits alone all of them seemed to fit in parts of 52."""
    job, corpus, free = job_of("684M", 128), corpus_of(512, 50257), 78 << 30
    model = Architecture.of(job, corpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    assert 128 * memory.activation_bytes(model, 512, 2) > 80e9
    chosen = choose_micro_batch(job, corpus, H100, 1)
    states = memory.state_bytes(model, 2, 0, 1)
    row = memory.activation_bytes(model, 512, 2) + memory.logits_bytes(512, 50257, 2)
    assert not chosen.recompute and 128 % chosen.rows == 0
    assert states + chosen.rows * row < 0.9 * free < states + 2 * chosen.rows * row


def test_activations_are_computed_again_only_where_a_single_row_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    job, corpus = job_of("684M", 60), corpus_of(16384, 50257)
    model = Architecture.of(job, corpus)
    states = memory.state_bytes(model, 2, 0, 1)
    row = memory.activation_bytes(model, 16384, 2) + memory.logits_bytes(16384, 50257, 2)
    for free, recompute in ((states + 1.1 * row, False), (states + 0.9 * row, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda hardware, free=free: int(free))
        chosen = choose_micro_batch(job, corpus, H100, 1)
        again = memory.activation_bytes(model, 16384, 2, recompute) + memory.logits_bytes(16384, 50257, 2)
        assert (chosen.recompute, chosen.rows) == (recompute, int(free - states) // again)


def test_zero_cuts_the_states_of_a_worker() -> None:
    model = Architecture.gpt2(ModelConfig(preset="124M"), 50257, 512)
    of_stage = [memory.state_bytes(model, 2, stage, 8) for stage in (0, 1, 2, 3)]
    parameters = 124_439_808 + (512 - 1024) * 768  # GPT-2 has 1,024 positions
    each = (2 + 6 + 12 / 8, 2 + 6 + 12 / 8, 2 + 18 / 8, 20 / 8)  # in bf16 without ZeRO it is stage 1 that is run
    assert of_stage == pytest.approx([parameters * (per_parameter + 4) for per_parameter in each])
    assert memory.state_bytes(model, 4, 0, 8) == 16 * parameters


def test_rows_of_a_cpu_do_not_grow_with_its_memory() -> None:
    corpus = corpus_of(512, 8192)
    assert choose_micro_batch(job_of("cpu-small", 96), corpus, CPU, 1) == MicroBatch(24), "the largest divisor within the 31 rows that 1 GB holds"
    assert choose_micro_batch(job_of("cpu-tiny", 4), corpus_of(64, 100), CPU, 1) == MicroBatch(4)
    assert choose_micro_batch(job_of("cpu-small", 96, micro_batch_rows=3), corpus, CPU, 1) == MicroBatch(3)


def test_halving_ends_in_one_row_computed_again_and_then_in_words() -> None:
    job, chosen, seen = job_of("cpu-small", 12), MicroBatch(12), []
    for _ in range(5):
        seen.append((chosen.rows, chosen.recompute))
        if chosen == MicroBatch(1, True):
            break
        chosen = chosen.halved(job, 512)
    assert seen == [(12, False), (6, False), (3, False), (1, False), (1, True)]
    with pytest.raises(UserError, match=r"base\.model: one row of 512 tokens does not fit .* raise base\.zero_stage"):
        chosen.halved(job, 512)


def test_what_another_number_of_workers_left_still_divides_a_workers_rows() -> None:
    assert MicroBatch(20).limited_by(MicroBatch(15), 20) == MicroBatch(10), "60 rows: of 4 workers 30 were halved to 15, and 3 have 20 each"
    assert MicroBatch(4).limited_by(MicroBatch(8, recompute=True), 12) == MicroBatch(4, True)


def test_forward_passes_fill_a_gpu_and_stay_small_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 << 30, 80 << 30))
    assert memory.forward_rows(CPU, 512) == 8
    assert memory.forward_rows(H100, 512) == 128
