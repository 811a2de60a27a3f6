"""Run every benchmark in a process of its own, one after the other; exit with status 1 if one fails or falls short of its bound."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from analysis.benchmarks import BENCHMARKS


def main() -> None:
    """Print each benchmark's JSON line as it comes, and on stderr what fell short."""
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs; the numbers mean nothing and no bound holds")
    flags = ["--quick"] if parser.parse_args().quick else []
    wrong = [problem for name in BENCHMARKS if (problem := _run(name, flags))]
    for problem in wrong:
        print(problem, file=sys.stderr)
    sys.exit(1 if wrong else 0)


def _run(name: str, flags: list[str]) -> str | None:
    """What is wrong with a benchmark's outcome, if anything is."""
    done = subprocess.run([sys.executable, "-m", f"analysis.benchmarks.{name}", *flags], stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        return f"{name}: failed with status {done.returncode}"
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return None
    outcome = json.loads(done.stdout)
    return f"{name}: falls short of its bound: {outcome['ratio']:.3g} against {outcome['bound']:g}"


if __name__ == "__main__":
    main()
