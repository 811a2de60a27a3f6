"""Arrays in safetensors files, written and read without a second copy in memory.

The library's own functions for NumPy hold the bytes of the whole file beside the arrays, some of them twice. The format is a 64-bit length, that many bytes
of JSON (name -> dtype, shape, data_offsets) and the data: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chameleon_ray import storage

_CODES = {"F64": np.float64, "F32": np.float32, "I64": np.int64}


def write_tensors(address: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of float64, float32 or int64 atomically."""
    codes = {np.dtype(dtype): code for code, dtype in _CODES.items()}
    header, data, end = {}, [], 0
    # Widest first, so that every array begins at a multiple of its item's size.
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].itemsize):
        start, end = end, end + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        data.append(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    storage.write_bytes(address, len(text).to_bytes(8, "little"), text, *data)


def read_tensors(address: str) -> dict[str, NDArray[Any]]:
    """All arrays of a file that `write_tensors`, or the library, has written with these types."""
    with storage.open_input(address) as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            found[name] = np.empty(entry["shape"], _CODES[entry["dtype"]])
            count = stream.readinto(found[name].data.cast("B")) if found[name].size else 0  # type: ignore[attr-defined]
            assert count == found[name].nbytes, f"{address}: ends after {count} of {found[name].nbytes} bytes of {name}"
    return found
