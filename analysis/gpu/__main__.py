"""Every measurement in turn, one JSON line each."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from analysis.gpu import agreement, embedding, rules, training
from analysis.gpu.setting import Setting, make_setting
from chameleon_ray.models.compiled import compiles


def main() -> None:
    """Print the machine, then each measurement's line as it comes."""
    parser = argparse.ArgumentParser(prog="python -m analysis.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too, to see that everything runs; the numbers mean nothing")
    tiny = parser.parse_args().tiny
    if not tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs everything at tiny size on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(folder, tiny)
        hardware = setting.hardware
        machine = {"device": setting.device_name, "number_format": hardware.reason, "torch": torch.__version__}
        _print("machine", {**machine, "compiles": compiles(hardware.device.type)})
        for name, measure in _measurements(setting).items():
            started = time.monotonic()
            _print(name, {**measure(), "took_seconds": time.monotonic() - started})
            setting.give_back()


def _measurements(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    small, large = setting.layouts
    return {
        "agreement": partial(agreement.run, setting, small),
        f"embedding {small}": partial(embedding.run, setting, small),
        f"embedding {large}": partial(embedding.run, setting, large),
        f"training {small}": partial(training.run, setting, small),
        f"training {large}": partial(training.run, setting, large),
        "doge step": partial(rules.run, setting, small, "doge"),
        "doremi step": partial(rules.run, setting, small, "doremi"),
    }


def _print(name: str, fields: dict[str, Any]) -> None:
    short = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
    print(json.dumps({"measurement": name, **short}), flush=True)


if __name__ == "__main__":
    main()
