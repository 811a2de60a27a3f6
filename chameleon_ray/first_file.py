"""A first experiment file for text that was found: commented, made for the machine at hand, and ready to run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chameleon_ray.corpus.survey import Survey, Text
from chameleon_ray.errors import UserError

LEAST_BYTES, LEAST_DOCUMENTS = 200_000, 40  # that domains can be found in
DOCUMENT_ENDINGS = (".txt", ".txt.gz", ".txt.zst")


@dataclass(frozen=True)
class Machine:
    """What models are to be trained on."""

    gpus: int
    cpus: int

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        import torch

        return cls(torch.cuda.device_count() if torch.cuda.is_available() else 0, os.cpu_count() or 1)


def experiment_text(place: str, found: Survey, machine: Machine, file: str) -> str:
    """The experiment file as text.

    Args:
        place: what the person named.
        file: what it will be called, for the commands in its comments.
    Raises:
        UserError: nothing divides the text into domains, and it is too little to find some in.
    """
    name = _label(place)
    lines = [
        f"# How much of each domain of {place} to train on; written by `chameleon init`, and runs as it is:",
        f"#   chameleon mix {file}        # only the weights",
        f"#   chameleon compare {file}    # and what they are worth against uniform weights, with a report",
        f"name: {name}",
        "seeds: [0]  # one base model per method and seed: three show what is noise",
        "storage: runs  # where results lie: a local path, s3://… or gs://…",
        "corpus:",
        *_domains(place, found),
        f"  text_column: {json.dumps(found.text_column, ensure_ascii=False)}",
        *(["  bytes_literals: true  # the text is written as Python prints bytes, b'…'"] if found.bytes_literals else []),
        "  tokens_per_domain: auto  # read as much of each domain as this experiment needs, spread over all of it; null: everything",
        *_models(machine),
        "methods:",
        "  uniform: {}",
        "  chameleon: {}  # others: proportional, doremi, doge, regmix; fixed: {weights: {…}}",
        "# budget: {tokens: 10_000_000_000}  # what the weights are for: mixtures then say how often each domain is read in it",
        _resources(machine),
    ]
    return "\n".join(lines) + "\n"


def _domains(place: str, found: Survey) -> list[str]:
    if found.column is not None:
        values = found.values or {}
        shown = ", ".join(list(values)[:8]) + (", …" if len(values) > 8 else "")
        where = f"huggingface: {_quoted(found.data_set)}" if found.data_set else f"files: {_list(found.files)}"
        only = f"  #   a first look found {len(values)}: {shown}; only: [names] takes some of them"
        return [f"  domains_from: {{{where}, domain_column: {_quoted(found.column)}}}  # each value is a domain", only]
    if len(found.domains) < 2:
        return _clusters(place, found)
    lines = [f"  domains:  # {len(found.domains)} by folder or file name, {_size(found.likely_bytes)} of text or so"]
    return [*lines, *(f"    {_quoted(name)}: {_source(text)}  # {_files(text)}" for name, text in found.domains.items())]


def _clusters(place: str, found: Survey) -> list[str]:
    """Nothing says what the domains are."""
    (text,) = found.domains.values()
    if found.likely_bytes < LEAST_BYTES and not (found.data_set and not text.num_files):
        few = f"{_size(found.likely_bytes)} of text are too little to find some in"
        raise UserError(f"{place}: nothing divides it into domains, and {few}; put domains in folders of their own")
    if all(pattern.endswith(DOCUMENT_ENDINGS) for pattern in text.files) and text.files and text.num_files < LEAST_DOCUMENTS:
        raise UserError(
            f"{place}: nothing divides it into domains, and {text.num_files} text files, each one document, are too few to find some among; "
            "put domains in folders of their own, or give JSON lines, one document a line"
        )
    where = f"huggingface: {{path: {_quoted(found.data_set)}}}" if found.data_set else f"of: {_list(text.files)}"
    return [
        f"  # Nothing labels these {_files(text)}: as many domains are found among the documents, by what a model that is trained on them finds alike.",
        f"  domains_from: {{clusters: {{k: {num_clusters(found.likely_bytes)}, {where}}}}}  # embed: NAME takes a pretrained model instead",
    ]


def num_clusters(text_bytes: int) -> int:
    """How many domains to look for in so much text: one for every half megabyte, from 5 to 100."""
    return min(100, max(5, text_bytes // 500_000))


def _source(text: Text) -> str:
    return f"{{files: {_list(text.files)}{f', heldout: {_list(text.heldout)}' if text.heldout else ''}}}"


def _files(text: Text) -> str:
    return f"{text.num_files:,} file{'s' if text.num_files > 1 else ''}, {_size(text.likely_bytes)} or so"


def _models(machine: Machine) -> Sequence[str]:
    if not machine.gpus:
        model = "{layers: 4, heads: 4, width: 128}"
        return (
            "  tokenizer: {train: {vocab_size: 4096, bytes_per_domain: 1000000}}  # or pretrained: NAME",
            "  row_tokens: 256",
            "  heldout_tokens: 65536  # of each domain, at most, in each of valid and test",
            f"# Small models for {machine.cpus} CPU cores: minutes. On GPUs take presets such as 82M for the proxy and 684M for the base model.",
            f"proxy: {{model: {model}, steps: 200, batch_rows: 16, learning_rate: 2.0e-3, min_learning_rate: 2.0e-4}}",
            "embedding: {samples_per_domain: 512}",
            f"base: {{model: {model}, steps: 400, batch_rows: 16, learning_rate: 2.0e-3, min_learning_rate: 2.0e-4}}",
        )
    large = machine.gpus >= 4
    base = "preset: 684M}, steps: 10000, learning_rate: 1.5e-4, min_learning_rate: 5.0e-5, zero_stage: 1" if large else "preset: 124M}, steps: 5000"
    return (
        "  tokenizer: {train: {vocab_size: 50257}}  # or pretrained: NAME",
        "  row_tokens: 512",
        f"# The paper's proxy, and a base model for {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}.",
        "proxy: {model: {preset: 82M}, steps: 2000}",
        f"base: {{model: {{{base}}}",
    )


def _resources(machine: Machine) -> str:
    if not machine.gpus:
        return "resources: {num_workers: 1, cpus_per_worker: 1}  # of one training run; several go side by side where there is room"
    return f"resources: {{num_workers: {machine.gpus}, gpus_per_worker: 1}}"


def _label(place: str) -> str:
    """A name for the experiment from the last part of the place."""
    last = re.split(r"[/\\]", re.split(r"[*?\[]", place)[0].rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")[:60] or "mine"


def _size(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{max(1, round(count / 1000))} kB"


def _quoted(name: str | None) -> str:
    """A YAML scalar: plain where that is safe."""
    text = str(name)
    reserved = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return text if re.fullmatch(r"[A-Za-z_][\w.-]*", text) and not reserved else json.dumps(text, ensure_ascii=False)


def _list(patterns: Sequence[str]) -> str:
    return "[" + ", ".join(json.dumps(pattern, ensure_ascii=False) for pattern in patterns) + "]"


def names_of(found: Survey) -> Mapping[str, int]:
    """Domain -> bytes of text, or of a column how often a value was seen; nothing where domains are yet to be found."""
    if found.column is None and len(found.domains) < 2:
        return {}
    return found.values or {name: text.likely_bytes for name, text in found.domains.items()}
