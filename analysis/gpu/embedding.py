"""Tokens per second of an embedding actor's work, over the bare forward pass of the truncated model and over the path in the authors' script."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from analysis.benchmarks.published import Published
from analysis.gpu.setting import Setting
from chameleon_ray.config import ModelConfig
from chameleon_ray.corpus.chunks import chunks_of
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.embedding.worker import EmbedWorker, chunk_rows
from chameleon_ray.models.architecture import middle_layer
from chameleon_ray.models.load import load_truncated
from chameleon_ray.models.memory import forward_rows

AIM_OVER_FORWARD = 0.95
AIM_OVER_PUBLISHED = 3.0


def run(setting: Setting, preset: str) -> dict[str, Any]:
    """The actor on every chunk of the corpus; the others on batches that are ready, as many rows at a time."""
    corpus, hardware, folder = setting.corpus, setting.hardware, setting.model_folder(preset)
    layer = middle_layer(ModelConfig(preset=preset).shape[0])
    actor = EmbedWorker(corpus, folder, layer, hardware.device.type == "cuda", torch.get_num_threads())
    size = chunk_rows([setting.embedded_rows] * len(corpus.names))
    chunks = [{key: np.array([value]) for key, value in asdict(chunk).items()} for chunk in chunks_of(corpus, [folder], ["train"], size)]
    rows = forward_rows(hardware, corpus.row_tokens)
    reader = RowReader(corpus)
    blocks = [reader.read(name, np.arange(setting.embedded_rows)).tokens for name in corpus.names]
    tokens = torch.from_numpy(np.concatenate(blocks).astype(np.int64))
    ready = tokens.to(hardware.device).split(rows)
    truncated = load_truncated(folder, layer, hardware)
    published = Published(folder, layer, corpus.row_tokens, hardware)
    of_published = tokens.split(rows)[:2]

    def work() -> None:
        for chunk in chunks:
            actor(chunk)

    @torch.inference_mode()
    def forward() -> None:
        for batch in ready:
            truncated(input_ids=batch, use_cache=False)

    def by_script() -> None:
        for batch in of_published:
            published(batch)

    for side in (work, forward, by_script):
        side()
    speeds = [tokens.numel() / setting.seconds(work), tokens.numel() / setting.seconds(forward)]
    speeds.append(sum(batch.numel() for batch in of_published) / setting.seconds(by_script))
    actor_speed, forward_speed, published_speed = speeds
    return {
        "layer": layer,
        "rows": rows,
        "actor_tokens_per_second": actor_speed,
        "forward_tokens_per_second": forward_speed,
        "published_tokens_per_second": published_speed,
        "over_forward": actor_speed / forward_speed,
        "aim_over_forward": AIM_OVER_FORWARD,
        "over_published": actor_speed / published_speed,
        "aim_over_published": AIM_OVER_PUBLISHED,
    }
