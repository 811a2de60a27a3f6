"""What all measurements share: the machine, the sizes, a corpus and the models."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from analysis.benchmarks import synthetic
from chameleon_ray.artifacts import Cost, TokenCorpus, TrainedModel
from chameleon_ray.backend import Rule, TrainJob
from chameleon_ray.config import ModelConfig, TrainingConfig
from chameleon_ray.models.hardware import Hardware, detect

# Matrix products in bf16 per second, without sparsity, of the manufacturer's sheets.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
NUM_DOMAINS = 7


@dataclass(frozen=True)
class Setting:
    """The machine and the sizes.

    Attributes:
        layouts: presets of a small and a large model.
        corpus: rows of made-up text, of more domains than one; its tokens are few, its vocabulary is given as that of the models.
        batch_rows: of a training step.
        embedded_rows: of each domain.
    """

    folder: str
    hardware: Hardware
    device_name: str
    layouts: tuple[str, str]
    corpus: TokenCorpus
    batch_rows: int
    embedded_rows: int
    steps: int
    repetitions: int

    @property
    def peak_flops(self) -> float | None:
        """Of the GPU in bf16, where it is known."""
        return next((peak for name, peak in PEAK_FLOPS.items() if name in self.device_name), None)

    def job(self, preset: str, steps: int, batch_rows: int, rule: Rule | None = None, reference: str = "") -> TrainJob:
        """A run of a layout on uniform weights; `reference` is the folder of the model that a rule's signal may need."""
        corpus = self.corpus
        training = TrainingConfig(model=ModelConfig(preset=preset), steps=steps, batch_rows=batch_rows, warmup_steps=0)
        frozen = TrainedModel(reference, "reference", {}, corpus.vocab_size, corpus.tokenizer_sha256, Cost()) if reference else None
        return TrainJob("proxy", training, dict.fromkeys(corpus.names, 1 / len(corpus.names)), 0, rule, frozen)

    def model_folder(self, preset: str) -> str:
        """A freshly initialised model of a layout, on disk."""
        folder = f"{self.folder}/{preset}"
        synthetic.make_model(folder, ModelConfig(preset=preset), self.corpus)
        return folder

    def give_back(self) -> None:
        """The memory of what is no longer used, so that what comes next finds it free."""
        gc.collect()
        if self.hardware.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.hardware.device.type == "cuda":
            torch.cuda.synchronize(self.hardware.device)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one call, the device's work included: the median of some."""
        found = []
        for _ in range(self.repetitions):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - started)
        return statistics.median(found)


def make_setting(folder: str, tiny: bool) -> Setting:
    """Of the GPU if there is one; the process becomes a group of one."""
    use_gpu = torch.cuda.is_available()
    hardware = detect(use_gpu)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    row_tokens, embedded_rows = (32, 8) if tiny else (512, 768)
    corpus = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, embedded_rows, row_tokens)
    return Setting(
        folder=folder,
        hardware=hardware,
        device_name=torch.cuda.get_device_name(hardware.device) if use_gpu else "a CPU",
        layouts=("cpu-tiny", "cpu-small") if tiny else ("82M", "684M"),
        corpus=corpus if tiny else replace(corpus, vocab_size=50257),
        batch_rows=2 * NUM_DOMAINS if tiny else 16 * NUM_DOMAINS,
        embedded_rows=embedded_rows,
        steps=2 if tiny else 12,
        repetitions=1 if tiny else 5,
    )
