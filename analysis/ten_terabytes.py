"""`chameleon init` and `chameleon mix` on ten terabytes of text in an object store, as a person runs them: `python -m analysis.ten_terabytes`

The store makes its text as it is read and counts what it sends (`benchmarks/text_store.py`): four domains of 2,500 files each, half of them compressed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from analysis.benchmarks.text_store import BUCKET, TextStore

SMALL = ("proxy.steps=40", "embedding.samples_per_domain=128", "corpus.heldout_tokens=16384")


def run(folder: Path, *changes: str) -> tuple[TextStore, str]:
    """The store, with what it sent, and what the commands printed."""
    store = TextStore(domains=4, files=2500, blocks=16_000)
    told = ""
    with store.serve():
        for arguments in (("init", f"s3://{BUCKET}", "--out", "text.yaml"), ("mix", "text.yaml", *changes)):
            done = subprocess.run(
                [str(Path(sys.executable).with_name("chameleon")), *arguments], cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False
            )
            told += f"$ chameleon {' '.join(arguments)}\n{done.stderr}{done.stdout}"
            assert done.returncode == 0, told
    return store, told


def main() -> None:
    """Print what the commands said, and what was read."""
    with tempfile.TemporaryDirectory() as folder:
        store, told = run(Path(folder))
    print(told)
    print(f"{store.sent_bytes / 1e6:.1f} MB sent in {store.requests:,} requests, of {store.text_bytes / 1e12:.1f} TB of text")


if __name__ == "__main__":
    main()
