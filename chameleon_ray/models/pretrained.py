"""Models that others trained: found by hub name, folder or GGUF file, and looked over before anything is computed with them.

A folder in Hugging Face layout is used where it lies. What comes from the hub, and a GGUF file, which is no such folder, is kept in the storage once, so
that workers on every machine read it from there. Weights are read from safetensors (or GGUF) alone; code that lies beside them is run only where
that is allowed.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chameleon_ray import storage
from chameleon_ray.artifacts import Cost, TrainedModel
from chameleon_ray.cache import content_hash
from chameleon_ray.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256
from chameleon_ray.errors import UserError, one_line
from chameleon_ray.hub import refusal, terms_to_accept
from chameleon_ray.identity import foreign_digest
from chameleon_ray.models.adapters import ADAPTER_CONFIG
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.records import once
from chameleon_ray.tensors import write_tensors

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?|[\w.-]+")
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
GGUF = ".gguf"
CAUSAL_THOUGH_SILENT = ("gpt_neox_japanese",)  # has the setting of families that are encoders unless it is set, and always masks what comes later


def open_pretrained(name: str, root: str, where: str, allow_remote_code: bool = False) -> TrainedModel:
    """A model that others trained, with what it takes to use it: digest of all that is in its files, tokenizer, shape.

    Args:
        name: a folder (local or in object storage), a GGUF file, or a hub name, with `@revision` where it is not the newest.
        root: the storage, where a model from the hub or of a GGUF file is kept.
        where: the setting that names the model, for errors.
    Raises:
        UserError: nothing there, no safetensors, code that would have to be run, no decoder.
    """
    place = storage.absolute(name)
    if name.endswith(GGUF):
        address = _from_gguf(place, root, where)
    elif storage.exists(place):
        address = place
    else:
        address = _from_hub(name, root, where, allow_remote_code)
    _check_weights(address, where)
    folder = storage.local_directory(address)
    config = read_config(folder, where, allow_remote_code)
    if getattr(config, "vocab_size", None) is None:
        raise UserError(f"{where}: {config.model_type} is no model of text alone: no vocab_size in {folder}/config.json; give the language model within it")
    endings = ("*.safetensors", *(["*.py"] if allow_remote_code else []))
    files = [str(file) for ending in endings for file in sorted(Path(folder).glob(ending))]
    digest = foreign_digest(content_hash(f"{folder}/config.json"), [content_hash(file) for file in files])
    sha256 = tokenizer_sha256(*load_tokenizer(address))
    found = TrainedModel(address, digest, {}, int(config.vocab_size), sha256, Cost(), {"pretrained": name}, allow_remote_code)
    return described(found, where)


def described(model: TrainedModel, where: str) -> TrainedModel:
    """The model with its architecture, and the tokens that it reads at most, in its details."""
    if {"architecture", "linear_maps"} <= model.details.keys():
        return model
    config = read_config(storage.local_directory(model.address), where, model.allow_remote_code)
    skeleton = laid_out(config, where, model.allow_remote_code)
    found = {"architecture": asdict(architecture_of(skeleton)), "linear_maps": linear_maps(skeleton), "context": _context(skeleton)}
    return replace(model, details={**model.details, **found})


def check_context(model: TrainedModel, row_tokens: int, where: str) -> None:
    """Raise `UserError` when rows are longer than what the model reads."""
    context = model.details.get("context")
    if context is not None and context < row_tokens:
        raise UserError(f"{where}: {model.address} reads at most {context:,} tokens and corpus.row_tokens is {row_tokens:,}; lower corpus.row_tokens")


def read_config(folder: str, where: str, allow_remote_code: bool = False) -> Any:
    """The configuration of a model in a folder.

    Raises:
        UserError: none there, one of a family that this library does not know, or that brings its own code where that is not allowed.
    """
    from transformers import AutoConfig

    if not (Path(folder) / "config.json").exists():
        if (Path(folder) / ADAPTER_CONFIG).exists():
            told = "adapters alone, without the model that they belong to"
            raise UserError(f"{where}: {folder} holds {told}; merge them first (peft: PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…))")
        raise UserError(f"{where}: no config.json in {folder}, so no model in Hugging Face layout lies here; give a model's folder or a hub name")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=allow_remote_code)
    except Exception as error:  # whatever the library says of a file, or of a value in it
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{where}: {folder} brings code of its own, which would be run; read it, and if it can be trusted give the model as "
                "proxy.model or base.model with allow_remote_code: true, or add --allow-remote-code where a command names it"
            ) from None
        raise UserError(f"{where}: {folder}: {one_line(error)}") from None


def laid_out(config: Any, where: str, allow_remote_code: bool = False) -> Any:
    """The causal LM of a configuration without memory for its weights.

    Raises:
        UserError: code of its own that lacks a package; a model that is no decoder with a list of blocks, so that there is no hidden state to embed with; an
            encoder that fills in masked tokens: it sees the token that it is asked for.
    Cost: seconds for models of tens of blocks.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from chameleon_ray.models.compiled import blocks_of

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=allow_remote_code)
        blocks_of(model.base_model)
        _head_width(config)
    except ImportError as error:
        raise UserError(f"{where}: {config.model_type} cannot be built: {one_line(error)}") from None
    except (ValueError, AttributeError, StopIteration):
        raise UserError(f"{where}: {config.model_type} is no decoder with a list of blocks, so that it has no hidden states to embed with") from None
    if _looks_ahead(model):
        raise UserError(
            f"{where}: {config.model_type} reads text in both directions, so that every position sees the token that it is to predict; give a causal model "
            "(or set is_decoder in its config.json, if it was trained as one)"
        )
    return model


def _looks_ahead(model: Any) -> bool:
    """Whether attention sees later tokens, as in encoders, which have classes for causal models too. Most families say so module by module, the others by a
    setting that is there for that alone."""
    if model.config.model_type in CAUSAL_THOUGH_SILENT:
        return False
    causal = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    return True not in causal and (False in causal or getattr(model.config, "is_decoder", None) is False)


def linear_maps(model: Any) -> dict[str, int]:
    """Linear maps of a decoder's blocks, as they are called within a block -> numbers in and out, summed over blocks."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from chameleon_ray.models.compiled import blocks_of

    found: dict[str, int] = {}
    for block in blocks_of(model.base_model):
        for name, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                found[name] = found.get(name, 0) + sum(module.weight.shape)
    return found


def architecture_of(model: Any) -> Architecture:
    """Shape of a decoder of any family, from its modules."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from chameleon_ray.models.compiled import blocks_of
    from chameleon_ray.models.pooling import last_projection

    config, blocks = model.config, blocks_of(model.base_model)
    heads = _head_width(config)
    maps = [module for module in blocks.modules() if isinstance(module, (nn.Linear, Conv1D))]
    # A family of experts stacks their maps, [experts, in, out]; of each stack a token runs through a few.
    stacks = [parameter for parameter in blocks.parameters() if parameter.ndim == 3]
    routed = getattr(config, "num_experts_per_tok", None) or 1
    products = sum(module.weight.numel() for module in maps) + sum(stack.numel() // len(stack) * routed for stack in stacks)
    last = last_projection(blocks[0])
    widest = max(max(module.weight.shape) for module in maps)
    gated = len(maps) / len(blocks) > 6
    head = model.get_output_embeddings()
    return Architecture(
        layers=len(blocks),
        width=config.hidden_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        block_products=products // len(blocks),
        query_width=heads * config.num_attention_heads,
        last_products=last.weight.numel() if last is not None else 0,
        last_width=last.weight.numel() // config.hidden_size if last is not None else 0,
        head_products=head.weight.numel() if head is not None else 0,
        # Inputs of two norms, of attention's projections and of the feed-forward network; q, k, v and attention's result; two or, gated, four of its own.
        kept_numbers=4 * config.hidden_size + 4 * heads * config.num_attention_heads + (4 if gated else 2) * widest,
    )


def _head_width(config: Any) -> int:
    """Of one head of attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _check_weights(address: str, where: str) -> None:
    """Raise `UserError` where a model's weights are not safetensors."""
    if not storage.glob(storage.join(address, "*.safetensors")) and storage.exists(storage.join(address, "config.json")):
        raise UserError(f"{where}: no *.safetensors file in {address}; save the model with save_pretrained (pickled weights are not read)")


def _context(model: Any) -> int | None:
    """Tokens that a model reads at most, where it says so."""
    found = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "max_seq_len", None)  # the second of MPT
    # The first position comes after that of padding, where there is one.
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    padding = max((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0)
    return int(found) - padding if found else None


def _from_hub(name: str, root: str, where: str, allow_remote_code: bool) -> str:
    """A model of the hub as it is kept in the storage."""
    from huggingface_hub import snapshot_download

    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is no folder here, and no name on the hub either")
    repository, _, revision = name.partition("@")
    patterns = [*HUB_FILES, *(["*.py"] if allow_remote_code else [])]
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # whatever the network, the hub or its library say
        told = f"{name!r} is no folder here and cannot be had from the hub ({one_line(error)})"
        raise UserError(f"{where}: {told}{f'; {terms_to_accept(repository)}' if refusal(error) == 'gated' else ''}") from None
    commit = Path(folder).name
    read_config(folder, where, allow_remote_code)
    _check_weights(folder, where)
    digest = foreign_digest(repository, [commit, *patterns])
    address = storage.join(root, "pretrained", f"{repository.replace('/', '--')}-{digest}")

    def keep() -> dict[str, Any]:
        storage.publish(folder, address)
        return {"pretrained": repository, "commit": commit}

    once(address, "pretrained", digest, keep)
    return address


def _from_gguf(file: str, root: str, where: str) -> str:
    """The model of a GGUF file as safetensors in Hugging Face layout, in the storage."""
    if not storage.exists(file):
        raise UserError(f"{where}: no file {file}; check the path")
    copy = storage.local_file(file)
    digest = foreign_digest(content_hash(copy), [GGUF])
    address = storage.join(root, "pretrained", f"{Path(file).stem}-{digest}")

    def convert() -> dict[str, Any]:
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise UserError(f"{where}: reading GGUF needs the package {error.name}; pip install gguf") from None
        try:
            _convert(Path(copy), address)
        except Exception as error:  # whatever the libraries say of a file that is cut short, or of an architecture they do not know
            raise UserError(f"{where}: {file} cannot be read as GGUF ({one_line(error)}); give another file, or a folder with safetensors") from None
        return {"pretrained": file}

    once(address, "pretrained", digest, convert)
    return address


def _convert(file: Path, address: str) -> None:
    """Write a GGUF file's model, its weights in fp32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # Tied weights are stored once; the names that are left are those that loading expects.
    kept = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    model.config.__dict__.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        config = Path(folder, "config.json")
        settings = json.loads(config.read_text())
        settings.pop("transformers_version", None)  # the same file is the same model, whichever version reads it
        config.write_text(json.dumps(settings, indent=2, sort_keys=True))
        storage.publish(folder, address)
    write_tensors(storage.join(address, "model.safetensors"), kept)
    save_tokenizer(*load_tokenizer(str(file)), address, like=str(file))
