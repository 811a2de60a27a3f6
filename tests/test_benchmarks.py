"""Every benchmark runs at tiny size and prints one line; what they measure with is checked against known answers."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.benchmarks import BENCHMARKS, measure, synthetic
from chameleon_ray.artifacts import TokenCorpus
from chameleon_ray.corpus.rows import RowReader
from chameleon_ray.corpus.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
KEYS = {
    "embed_vs_published": {"model", "batch", "threads", "pool_tokens_per_second", "other_tokens_per_second"},
    "embed_vs_forward": {"model", "batch", "threads", "pool_tokens_per_second", "other_tokens_per_second"},
    "train_vs_plain": {"model", "batch", "threads", "production_tokens_per_second", "plain_tokens_per_second"},
    "small_model": {"model", "batch", "threads", "production_gflops_per_thread", "products_gflops_per_thread", "over_usual"},
    "plan_vs_training": {"model", "batch", "threads", "stream_rows_per_second", "training_rows_per_second", "many_ranks", "many_domains"},
    "krls_100k": {"seconds", "bytes", "bound_seconds", "bound_bytes", "beside"},
    "weigh_100k": {"seconds", "bytes", "bound_seconds", "bound_bytes", "domains", "width", "groups", "beside"},
    "encode_text": {"threads", "made", "python"},
    "sample_reads": {"read_megabytes", "wanted_megabytes", "requests", "train_tokens"},
    "cluster_documents": {"model", "documents", "threads", "search_documents_per_second", "alone_documents_per_second"},
    "tokenize_memory": {"text_megabytes", "used_megabytes", "runs"},
    "doge_step_k7": {"model", "batch", "threads", "plain_seconds", "rule_seconds"},
    "doge_step_k17": {"model", "batch", "threads", "plain_seconds", "rule_seconds"},
    "doremi_step_k7": {"model", "batch", "threads", "plain_seconds", "rule_seconds"},
    "regmix_swarm": {"model", "batch", "threads", "swarm_proxies_per_minute", "pool_proxies_per_minute", "alone_proxies_per_minute"},
}
SHORT = {"encode_text", "krls_100k", "weigh_100k"}


@pytest.mark.parametrize("name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in BENCHMARKS])
def test_a_benchmark_prints_one_line(name: str) -> None:
    command = [sys.executable, "-m", f"analysis.benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    outcome = json.loads(line)
    assert outcome["benchmark"] == name
    assert outcome["quick"] is True
    assert outcome["ratio"] > 0
    assert outcome["bound"] > 0
    assert KEYS[name] <= set(outcome)


def test_every_benchmark_is_listed() -> None:
    files = (REPOSITORY / "analysis" / "benchmarks").glob("*.py")
    assert {path.stem for path in files if "\nBOUND = " in path.read_text()} == set(BENCHMARKS)


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = measure.interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 3)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_the_steady_rate_leaves_out_uneven_ends() -> None:
    from analysis.benchmarks.embedding_pool import Call, steady_rate, whole_rate

    calls = [Call(1, 0, 10, 100), Call(1, 10, 20, 100), Call(2, 5, 15, 100), Call(2, 16, 26, 100)]
    assert steady_rate(calls) == pytest.approx((50 + 100 + 100 + 40) / 15)
    assert whole_rate(calls) == pytest.approx(400 / 26)
    with pytest.raises(RuntimeError, match="never worked at the same time"):
        steady_rate([Call(1, 0, 1, 10), Call(2, 2, 3, 10)])


def test_memory_of_a_tree_counts_shared_pages_once() -> None:
    size = 64 << 20
    hold = (
        "import mmap, sys\n"
        "shared = mmap.mmap(int(sys.argv[1]), 0)\n"
        "total = sum(shared[i] for i in range(0, len(shared), 4096))\n"
        f"private = bytearray(b'x') * {size}\n"
        "print(len(private), flush=True)\n"
        "sys.stdin.read()"
    )
    path = Path(f"/dev/shm/benchmark-test-{os.getpid()}")
    with path.open("w+b") as file:
        path.unlink()
        before = measure.tree_bytes(os.getpid())
        file.write(b"y" * size)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as shared:
            assert sum(shared[i] for i in range(0, size, 4096)) == ord("y") * size // 4096
            command = [sys.executable, "-c", hold, str(file.fileno())]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file.fileno()])
            assert child.stdout is not None
            child.stdout.readline()
            grown = measure.tree_bytes(os.getpid()) - before
            child.communicate()
    assert 2 * size <= grown < 2.4 * size


def peak_of_a_block(size: int) -> tuple[int, int]:
    """Memory of this process before, and the peak that is seen while it holds a block for a while."""
    before = measure.tree_bytes(os.getpid())
    with measure.PeakMemory(interval_seconds=0.02) as peak:
        block = np.ones(size, np.uint8)
        seen = peak.samples
        while peak.samples < seen + 3:
            time.sleep(0.02)
        del block
    return before, peak.bytes


def test_peak_memory_is_seen_when_it_is_over() -> None:
    size = 128 << 20
    before, peak = measure.in_fresh_process(peak_of_a_block, size)
    assert before + 0.95 * size < peak < before + 1.5 * size


def test_a_synthetic_corpus_is_a_corpus(tmp_path: Path) -> None:
    made = synthetic.make_corpus(str(tmp_path), 3, 20, 64)
    corpus = TokenCorpus.load(str(tmp_path))
    assert corpus == made
    assert corpus.rows() == {"domain-0": 20, "domain-1": 20, "domain-2": 20}
    rows = RowReader(corpus).read("domain-1", np.arange(20))
    assert rows.tokens.shape == (20, 64)
    assert (rows.length == 64).all()
    words = {name: synthetic.DomainText(i) for i, name in enumerate(corpus.names)}
    known = set(" ".join(words["domain-1"].document() for _ in range(200)).replace(".", "").split())
    text = load_tokenizer(corpus.tokenizer_address)[0].decode(rows.tokens.ravel().tolist()).replace(".", " ").split()
    assert np.mean([word in known for word in text]) > 0.9


def test_synthetic_text_depends_on_seed_and_domain() -> None:
    first, again, other = (synthetic.DomainText(domain).document() for domain in (0, 0, 1))
    assert first == again
    assert not set(first.split()) & set(other.split()) - {word for word in other.split() if len(word) < 5}
