"""A number on its way to the screen, for which no step waits."""

from __future__ import annotations

from typing import Any

import torch


class Gauge:
    """The mean of values on a device, as of the last time that one arrived; not a number before the first.

    On a GPU a mean travels in the background, one at a time, while steps go on.
    """

    def __init__(self) -> None:
        self._value = float("nan")
        self._travelling: tuple[Any, torch.Tensor] | None = None

    def read(self, values: torch.Tensor) -> float:
        """The latest number that is here; `values` are sent on their way if nothing else is."""
        if values.device.type != "cuda":
            self._value = float(values.mean())
            return self._value
        if self._travelling is not None and self._travelling[0].query():
            self._value, self._travelling = float(self._travelling[1]), None
        if self._travelling is None:
            here = torch.empty((), dtype=values.dtype, pin_memory=True)
            here.copy_(values.mean(), non_blocking=True)
            arrived: Any = torch.cuda.Event()
            arrived.record()
            self._travelling = arrived, here
        return self._value
