"""A comparison in which one domain is too small to be measured (it is trained on, every average leaves it out, and the report names it), and one text is a
target: it is measured and never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from chameleon_ray.mixing.swarm import read_swarm
from tests.ray.test_end_to_end import run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("session")]


@pytest.mark.long
def test_one_tiny_domain(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps({"text": f"note {i} " + "of two words " * 40}) + "\n" for i in range(2)))
    model = {"layers": 1, "heads": 2, "width": 16}
    training = {"model": model, "steps": 3, "batch_rows": 4}
    files = {"recipes": texts / "recipes.jsonl", "letters": texts / "letters.jsonl", "tiny": tmp_path / "tiny.jsonl"}
    document = {
        "name": "unmeasured",
        "storage": str(tmp_path / "runs"),
        "corpus": {
            "domains": {name: {"files": [str(path)]} for name, path in files.items()},
            "targets": {"numbers": {"files": [str(texts / "numbers.jsonl")]}},
            "tokenizer": {"train": {"vocab_size": 400, "bytes_per_domain": 20000}},
            "row_tokens": 32,
            "heldout_tokens": 128,
        },
        "proxy": training,
        "base": training,
        "methods": {
            "uniform": {},
            "regmix": {
                "num_proxies": 12, "regressor": "linear", "samples": 500, "top": 10, "valid_tokens": 64, "proxy": {"model": model, "steps": 2},
            },
        },
    }  # fmt: skip
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(document, sort_keys=False))
    status, out, err = run(capsys, "compare", experiment, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert set(found["mixtures"]["regmix"]["weights"]) == set(files)
    assert any("tiny is learned counts for nothing" in warning for warning in found["mixtures"]["regmix"]["warnings"])
    scores = [row for row in found["measurements"] if row["method"] == "uniform"]
    assert {row["domain"] for row in scores} == {"recipes", "letters", "numbers", "all"}
    assert {row["metric"] for row in scores if row["domain"] == "numbers"} == {"loss_nats", "perplexity", "bits_per_byte"}
    assert {row["n"] for row in scores if row["domain"] == "all"} == {2}
    assert all(row["n"] < 128 for row in scores), "the bound in tokens"
    (folder,) = (tmp_path / "runs" / "mixtures").glob("regmix-*")
    swarm = read_swarm(str(folder / "ratios.csv"), str(folder / "metrics.csv"))
    assert (swarm.domains, swarm.targets, swarm.averaged) == (tuple(files), ("recipes", "letters", "numbers"), ("letters", "recipes"))
    text = Path(found["report"]).with_suffix(".md").read_text()
    assert "Trained on and not measured, because fewer than two distinct documents could be held out: tiny." in text
    assert "| tiny | – | – |" in text
    assert "Text that no model was trained on and no average includes" in text and "| numbers, bits per byte |" in text
    status, out, _ = run(capsys, "compare", experiment, "corpus.require_heldout=true")
    assert status == 2, "the corpus is there already, and is refused all the same"
