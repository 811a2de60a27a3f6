"""What a run notes of every domain while it trains, in columns: 10,000 domains at 100 steps are a million entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray


class History:
    """Entries of a step, a domain and numbers, in the order they were added; all have the same numbers. Memory: about 40 bytes per entry."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._parts: list[dict[str, NDArray[Any]]] = []

    def __len__(self) -> int:
        return sum(len(part["step"]) for part in self._parts)

    def add(self, step: int, domains: Iterable[str], **numbers: ArrayLike) -> None:
        """One entry per domain: `numbers` by name, each [n] or one for all."""
        index = np.array([self._names.setdefault(name, len(self._names)) for name in domains], np.int32)
        self._parts.append({name: np.broadcast_to(values, index.shape).copy() for name, values in {"step": step, "domain": index, **numbers}.items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every column whole: step, domain (a number of this history's own) and the numbers; none where nothing was added."""
        if len(self._parts) > 1:
            self._parts = [{name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}]
        return dict(self._parts[0]) if self._parts else {}

    def table(self) -> pa.Table:
        """The columns, domains by name."""
        columns = self.columns()
        if columns:
            columns["domain"] = pa.DictionaryArray.from_arrays(columns["domain"], list(self._names)).dictionary_decode()
        return pa.table(columns)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": list(self._names), "columns": self.columns()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> History:
        """Back from `to_dict`; columns may have become tensors."""
        history = cls()
        history._names = {name: index for index, name in enumerate(state["names"])}
        history._parts = [{name: np.asarray(values) for name, values in state["columns"].items()}] if state["columns"] else []
        return history
