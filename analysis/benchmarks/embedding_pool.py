"""The production path of the embeddings against another: its actors, its stream and its chunks, with a clock on every call."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.benchmarks import synthetic
from analysis.benchmarks.measure import Outcome, interleaved, rate, ratios
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.config import ModelConfig, Resources
from chameleon_ray.corpus.chunks import chunks_of
from chameleon_ray.corpus.ray_stream import stream
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.embedding.worker import CHUNK_ROWS, EmbedWorker
from chameleon_ray.models.architecture import middle_layer
from chameleon_ray.models.memory import FORWARD_TOKENS
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_session import cluster_cpus, start_ray

NUM_DOMAINS = 3
REPETITIONS = 3
PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Call:
    """One call of one actor; times in seconds of the machine's monotonic clock."""

    actor: int
    began: float
    ended: float
    tokens: int


class TimedEmbedWorker(EmbedWorker):
    """The production worker; each result also says by whom and when it was made."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        result = super().__call__(batch)
        return {**result, "actor": np.array([os.getpid()]), "began": np.array([began]), "ended": np.array([time.monotonic()])}


@dataclass(frozen=True)
class Setting:
    """What both sides embed, and with what.

    The pool has one actor of one thread per CPU and the other side is one process with as many threads, so that both have the whole machine;
    the pool also has to pay for Ray out of it. `quick` has one actor with all threads: tiny runs end before a second one is up.
    """

    corpus: TokenCorpus
    folder: str
    model: ModelConfig
    threads: int
    actors: int

    @property
    def layer(self) -> int:
        return middle_layer(self.model.shape[0])

    @property
    def batch_rows(self) -> int:
        """Rows of one forward pass, on both sides."""
        return FORWARD_TOKENS["cpu"] // self.corpus.row_tokens

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.corpus.row_tokens

    def batches(self, count: int) -> list[torch.Tensor]:
        """Token rows for the other side, [batch_rows, row_tokens] int64 each, from all domains in turn."""
        reader, names = RowReader(self.corpus), self.corpus.names
        places = [(names[i % len(names)], np.arange(self.batch_rows) + i // len(names) * self.batch_rows) for i in range(count)]
        return [torch.from_numpy(reader.read(*place).tokens.astype(np.int64)) for place in places]

    def describe(self) -> dict[str, Any]:
        layers, heads, width = self.model.shape
        return {
            "model": {"preset": self.model.preset, "layers": layers, "heads": heads, "width": width, "layer": self.layer},
            "batch": {"rows": self.batch_rows, "row_tokens": self.corpus.row_tokens},
            "threads": {"pool": f"{self.actors} x {self.threads // self.actors}", "other": f"1 x {self.threads}"},
        }


def compare(bound: float, quick: bool, other: Callable[[Setting], Callable[[torch.Tensor], Any]], num_batches: int) -> Outcome:
    """Tokens per second of the pool over those of another way, in turns; the median over the turns of the ratio of two neighbours counts.

    Args:
        other: makes, once, the function that turns one batch of token rows into vectors.
        num_batches: of one turn of the other way. Before each, the pool's actors get time to leave, and one batch warms the caches.
    """
    start_ray()
    repetitions, num_batches = (1, 2) if quick else (REPETITIONS, num_batches)
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(folder, quick)
        torch.set_num_threads(setting.threads)
        embed, batches = other(setting), setting.batches(num_batches)
        whole: list[float] = []

        def pool_side() -> float:
            calls = pool_calls(setting)
            whole.append(whole_rate(calls))
            return steady_rate(calls)

        def other_side() -> float:
            time.sleep(PAUSE_SECONDS)
            embed(batches[0])
            return rate(lambda: [embed(tokens) for tokens in batches], num_batches * setting.batch_tokens)

        found = interleaved({"pool": pool_side, "other": other_side}, repetitions)
    each = ratios(found["pool"], found["other"])
    ratio = statistics.median(each)
    speeds = {
        "pool_tokens_per_second": statistics.median(found["pool"]),
        "pool_tokens_per_second_with_uneven_ends": statistics.median(whole),
        "other_tokens_per_second": statistics.median(found["other"]),
    }
    return Outcome(ratio, bound, ratio >= bound, {**setting.describe(), **speeds, "ratios": each})


def make_setting(folder: str, quick: bool) -> Setting:
    """A synthetic corpus of three chunks per actor, and a model. Ray must be running."""
    threads = cluster_cpus()
    model, row_tokens = (ModelConfig(preset="cpu-tiny"), 64) if quick else (ModelConfig(preset="cpu-medium"), 512)
    actors = 1 if quick else threads
    corpus = synthetic.make_corpus(f"{folder}/corpus", NUM_DOMAINS, CHUNK_ROWS * actors, row_tokens)
    synthetic.make_model(f"{folder}/model", model, corpus)
    return Setting(corpus, f"{folder}/model", model, threads, actors)


def pool_calls(setting: Setting) -> list[Call]:
    """One run of the pool over the whole corpus."""
    threads = setting.threads // setting.actors
    chunks = chunks_of(setting.corpus, [setting.folder], ["train"], CHUNK_ROWS)
    arguments = {"folder": setting.folder, "layer": setting.layer, "use_gpu": False, "threads": threads}
    with Reporter.silent().phase("") as phase:
        results = list(stream(setting.corpus, chunks, TimedEmbedWorker, arguments, Resources(cpus_per_worker=threads), phase, math.inf))
    return [
        Call(int(result["actor"]), float(result["began"]), float(result["ended"]), int(result["counts"].sum()) * setting.corpus.row_tokens)
        for _, result in results
    ]


def steady_rate(calls: Sequence[Call]) -> float:
    """Tokens per second while every actor of the pool is at work.

    The clock starts when the last actor begins its first chunk and stops when the first actor ends its last one: waiting for Ray between
    chunks counts, importing torch does not, nor the end, where actors wait for the last one (one chunk's time in a run of any length).
    A chunk that is cut by the clock counts in proportion to its time inside.
    """
    actors = {call.actor for call in calls}
    start = max(min(call.began for call in calls if call.actor == actor) for actor in actors)
    stop = min(max(call.ended for call in calls if call.actor == actor) for actor in actors)
    if stop <= start:
        raise RuntimeError(f"{len(actors)} actors never worked at the same time; give the pool more chunks")
    inside = sum(call.tokens * max(0.0, min(call.ended, stop) - max(call.began, start)) / (call.ended - call.began) for call in calls)
    return inside / (stop - start)


def whole_rate(calls: Sequence[Call]) -> float:
    """Tokens per second from the first call's beginning to the last call's end, uneven starts and ends of the actors included."""
    span = max(call.ended for call in calls) - min(call.began for call in calls)
    return sum(call.tokens for call in calls) / span
