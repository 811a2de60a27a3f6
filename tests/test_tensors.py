"""Safetensors files: the library reads ours and we read the library's, without a second copy in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_ray.artifacts import Embeddings
from chameleon_ray.records import once
from chameleon_ray.tensors import read_tensors, write_tensors

ARRAYS = {
    "counts": np.arange(6).reshape(2, 3),
    "single": np.random.default_rng(0).standard_normal((3, 1, 5), dtype=np.float32),
    "sums": np.random.default_rng(0).standard_normal((2, 3, 4))[:, ::-1],
}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write_tensors(str(tmp_path / "file"), ARRAYS)
    for found in (load_file(tmp_path / "file"), read_tensors(str(tmp_path / "file"))):
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}, tmp_path / "file", metadata={"format": "np"})
    found = read_tensors(str(tmp_path / "file"))
    assert set(found) == set(ARRAYS) and all(np.array_equal(found[name], array) for name, array in ARRAYS.items())


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    write_tensors(str(tmp_path / "file"), ARRAYS)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-8])
    with pytest.raises(AssertionError, match="ends after"):
        read_tensors(str(tmp_path / "file"))


def test_saving_and_loading_embeddings_holds_them_once(tmp_path: Path) -> None:
    sums = np.ones((200, 32, 256))
    embeddings = Embeddings(tuple(map(str, range(200))), sums, np.ones((200, 32), np.int64), 1)
    tracemalloc.start()
    once(str(tmp_path), "embeddings", "x", lambda: embeddings.save(str(tmp_path)))
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    Embeddings.load(str(tmp_path))
    loading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert saving < 0.2 * sums.nbytes
    assert loading < 1.2 * sums.nbytes
