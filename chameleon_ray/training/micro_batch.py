"""How many rows go through the model at a time. It changes nothing but rounding and speed."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.backend import TrainJob
from chameleon_ray.errors import UserError
from chameleon_ray.models import memory
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.hardware import Hardware


@dataclass(frozen=True)
class MicroBatch:
    """Rows at a time, and whether activations are computed again in the backward pass instead of kept (a third more operations, far less memory)."""

    rows: int
    recompute: bool = False

    def limited_by(self, before: MicroBatch, share: int) -> MicroBatch:
        """No more rows than an attempt before left, perhaps by another number of workers, when it ran out of memory; `share`: a worker's rows of a batch."""
        return MicroBatch(_largest_divisor(share, min(self.rows, before.rows)), self.recompute or before.recompute)

    def halved(self, job: TrainJob, row_tokens: int) -> MicroBatch:
        """Half as many rows; of a single row, its activations computed again.

        Raises:
            UserError: a single row with recomputation does not fit.
        """
        if self.rows > 1:
            return MicroBatch(_largest_divisor(self.rows, self.rows // 2), self.recompute)
        if not self.recompute:
            return MicroBatch(1, True)
        raise UserError(
            f"{job.key('model')}: one row of {row_tokens} tokens does not fit the device's memory, even with its activations computed again; "
            f"raise {job.key('zero_stage')} or resources.num_workers, shorten corpus.row_tokens, or take a smaller model"
        )


def choose_micro_batch(job: TrainJob, corpus: TokenCorpus, hardware: Hardware, world_size: int, kept_bytes: int = 0, room: int | None = None) -> MicroBatch:
    """As configured, else the largest divisor of a worker's rows that fits; with recomputation only where a single row would not fit without.

    Args:
        kept_bytes: what the device keeps beside the model's own states.
        room: bytes that a device has for rows and states, where it is not this machine's.
    """
    training, model = job.training, Architecture.of(job, corpus)
    rows = training.batch_rows // world_size
    if training.micro_batch_rows is not None:
        return MicroBatch(training.micro_batch_rows)
    bytes_each = memory.number_bytes(hardware)
    room = memory.free_bytes(hardware) if room is None else room
    if hardware.device.type == "cuda":
        room -= kept_bytes + memory.state_bytes(model, bytes_each, training.zero_stage, world_size)
    logits = memory.logits_bytes(corpus.row_tokens, corpus.vocab_size, bytes_each)
    for recompute in (False, True):
        fitting = room // (memory.activation_bytes(model, corpus.row_tokens, bytes_each, recompute) + logits)
        if fitting >= 1:
            return MicroBatch(_largest_divisor(rows, int(fitting)), recompute)
    return MicroBatch(1, hardware.device.type == "cuda")


def _largest_divisor(rows: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, min(rows, at_most) + 1) if rows % divisor == 0)
