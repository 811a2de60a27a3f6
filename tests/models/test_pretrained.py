"""Models that others trained: found, looked over, refused in one line, and trained further."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma3Config, MixtralConfig, RobertaConfig, T5Config, T5ForConditionalGeneration

from chameleon_ray import cache
from chameleon_ray.artifacts import Cost, TokenCorpus
from chameleon_ray.config import ModelConfig, Resources
from chameleon_ray.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from chameleon_ray.errors import UserError
from chameleon_ray.models.architecture import Architecture
from chameleon_ray.models.build import build_model
from chameleon_ray.models.hardware import Hardware
from chameleon_ray.models.load import load_losses, load_to_train, save_merged
from chameleon_ray.models.pretrained import architecture_of, laid_out, open_pretrained
from chameleon_ray.progress import Reporter
from chameleon_ray.ray_backend import RayBackend
from chameleon_ray.records import write_record
from tests.corpora import make_corpus
from tests.families import FAMILIES, family_model, publish

CPU = Hardware(torch.device("cpu"), torch.float32, "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_paper_s_layout_is_counted_alike_both_ways() -> None:
    config = ModelConfig(layers=3, heads=2, width=32)
    model = build_model(config, 101, 16, 0, seed=0)
    assert asdict(architecture_of(model)) == asdict(Architecture.gpt2(config, 101, 16))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2", "opt", "olmo2"])
def test_parameters_and_operations_of_other_families_are_those_that_are_run(family: str) -> None:
    model = family_model(family, 101)
    found = architecture_of(model)
    assert found.num_parameters == sum(p.numel() for p in model.parameters()) and (found.layers, found.width) == (4, 32)
    model.config._attn_implementation = "eager"
    tokens = torch.randint(0, 101, (3, 16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens)
    assert found.forward_flops(16) * 48 == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_of_many_experts_those_count_that_a_token_runs_through() -> None:
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    few, more = (architecture_of(laid_out(MixtralConfig(**shape, num_local_experts=count, num_experts_per_tok=2), "here")) for count in (4, 8))
    attention, expert = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48
    assert few.block_products == pytest.approx(attention + 2 * expert, rel=0.03) and more.block_products == pytest.approx(few.block_products, rel=0.03)
    assert more.num_parameters > few.num_parameters + 3 * 4 * expert - 1


# Not qwen2, whose tokenizer class replaces the pre-tokenizer of the tests' tokenizer by its own.
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen2"}))
def test_a_folder_is_used_where_it_lies(family: str, corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish(family, corpus, tmp_path / "model")
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    model = backend.open_model(folder, corpus)
    assert (model.address, model.vocab_size, model.tokenizer_sha256) == (folder, corpus.vocab_size, corpus.tokenizer_sha256)
    assert model.details["architecture"]["layers"] == 4 and not model.weights and not model.allow_remote_code
    shutil.copytree(folder, tmp_path / "copy")
    assert backend.open_model(str(tmp_path / "copy"), corpus).digest == model.digest
    weights = tmp_path / "copy" / "model.safetensors"
    os.utime(weights, (1, 1))
    monkeypatch.setattr(cache, "HASHED_EACH_TIME_BYTES", 1)
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # a copy of a large model, written at another time
        assert open_pretrained(str(tmp_path / "copy"), str(tmp_path), "here").digest == model.digest
    size = weights.stat().st_size
    family_model(family, corpus.vocab_size, seed=1).save_pretrained(tmp_path / "copy")
    os.utime(weights, (1, 1))
    assert weights.stat().st_size == size
    assert open_pretrained(str(tmp_path / "copy"), str(tmp_path), "here").digest != model.digest


def test_a_model_of_the_hub_is_kept_in_the_storage(corpus: TokenCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's library lays its downloads out, without a network."""
    from huggingface_hub import constants

    home = tmp_path / "hub" / "models--someone--tiny"
    publish("llama", corpus, home / "snapshots" / "c0ffee")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    model = backend.open_model("someone/tiny", corpus)
    assert model.address.startswith(str(tmp_path / "runs" / "pretrained" / "someone--tiny-"))
    shutil.rmtree(home / "snapshots" / "c0ffee")
    assert AutoModelForCausalLM.from_pretrained(model.address).config.model_type == "llama"
    assert backend.open_model(model.address, corpus).digest == model.digest
    with pytest.raises(UserError, match=r"^proxy\.model\.pretrained: 'someone/other' is no folder here and cannot be had from the hub \("):
        backend.open_model("someone/other", corpus, "proxy.model.pretrained")
    with pytest.raises(UserError, match="is no folder here, and no name on the hub either"):
        backend.open_model("some where/else/deep", corpus)


def test_what_cannot_be_used_is_refused_in_one_line(corpus: TokenCorpus, tmp_path: Path) -> None:
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())

    def told(folder: Path) -> str:
        with pytest.raises(UserError) as refusal:
            backend.open_model(str(folder), corpus, "proxy.model.pretrained")
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    folder = Path(publish("llama", corpus, tmp_path / "pickled"))
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert told(folder).startswith("proxy.model.pretrained: no *.safetensors file in ")
    folder = Path(publish("llama", corpus, tmp_path / "short", context=16))
    assert told(folder) == f"proxy.model.pretrained: {folder} reads at most 16 tokens and corpus.row_tokens is 32; lower corpus.row_tokens"
    folder = tmp_path / "translator"
    T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)).save_pretrained(folder)
    assert told(folder) == "proxy.model.pretrained: t5 is no decoder with a list of blocks, so that it has no hidden states to embed with"
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40}
    for is_decoder in (False, True):
        folder = Path(publish("llama", corpus, tmp_path / f"roberta-{is_decoder}"))
        AutoModelForCausalLM.from_config(RobertaConfig(vocab_size=320, is_decoder=is_decoder, **shape)).save_pretrained(folder)
        if is_decoder:
            assert backend.open_model(str(folder), corpus).details["context"] == 38, "two positions come before the first token's"
        else:
            assert told(folder).startswith("proxy.model.pretrained: roberta reads text in both directions, so that every position sees the token that it is to")
    folder = Path(publish("llama", corpus, tmp_path / "sees"))
    Gemma3Config().save_pretrained(folder)
    assert told(folder).startswith("proxy.model.pretrained: gemma3 is no model of text alone: no vocab_size in ")
    folder = Path(publish("llama", corpus, tmp_path / "broken"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": "four"}))
    assert told(folder).startswith(f"proxy.model.pretrained: {folder}: ")
    other = make_corpus(tmp_path / "other", seed=1)
    assert "trained with another tokenizer than the corpus" in told(Path(publish("llama", other, tmp_path / "stranger")))
    assert told(tmp_path / "none.gguf").startswith("proxy.model.pretrained: no file ")


def test_code_beside_the_weights_is_run_only_where_that_is_allowed(corpus: TokenCorpus, tmp_path: Path) -> None:
    folder = Path(publish("llama", corpus, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Homemade", "AutoModelForCausalLM": "code.HomemadeForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        "from pathlib import Path",
        "from transformers import LlamaConfig, LlamaForCausalLM",
        "Path(__file__).with_name('it-ran').touch()",
        "class Homemade(LlamaConfig):",
        "    model_type = 'homemade'",
        "class HomemadeForCausalLM(LlamaForCausalLM):",
        "    config_class = Homemade",
    ]
    (folder / "code.py").write_text("\n".join(lines))
    backend = RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent())
    with pytest.raises(UserError, match=r"brings code of its own, which would be run; .* with allow_remote_code: true"):
        backend.open_model(str(folder), corpus)
    model = backend.open_model(str(folder), corpus, allow_remote_code=True)
    assert model.allow_remote_code and model.details["architecture"]["layers"] == 4
    with pytest.raises(UserError, match="brings code of its own"):
        backend.open_model(str(folder), corpus)
    save_merged(model, str(tmp_path / "whole"))
    assert backend.open_model(str(tmp_path / "whole"), corpus, allow_remote_code=True).details["architecture"]["layers"] == 4
    with pytest.raises(UserError, match=r"or add --allow-remote-code where a command names it"):
        backend.open_model(str(tmp_path / "whole"), corpus)
    (folder / "code.py").write_text("\n".join([*lines, "VERSION = 2"]))
    assert open_pretrained(str(folder), str(tmp_path), "here", allow_remote_code=True).digest != model.digest


def test_a_record_beside_the_weights_allows_nothing(corpus: TokenCorpus, tmp_path: Path) -> None:
    folder = Path(publish("llama", corpus, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "homemade", "auto_map": {"AutoConfig": "code.Homemade"}}))
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    fields = {"weights": {}, "vocab_size": corpus.vocab_size, "tokenizer_sha256": corpus.tokenizer_sha256}
    content = {**fields, "cost": asdict(Cost()), "details": {}, "allow_remote_code": True}
    write_record(str(folder), "model", "forged", content)
    with pytest.raises(UserError, match="brings code of its own"):
        RayBackend(str(tmp_path / "runs"), Resources(), Reporter.silent()).open_model(str(folder), corpus)


def test_a_checkpoint_without_its_head_is_refused(corpus: TokenCorpus, tmp_path: Path) -> None:
    model = family_model("llama", corpus.vocab_size, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.isfinite(load_losses(str(tmp_path), CPU)(torch.zeros((1, 8), dtype=torch.long))).all()
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (lambda: load_losses(str(tmp_path), CPU), lambda: load_to_train(str(tmp_path))):
        with pytest.raises(UserError, match=r"the checkpoint lacks lm_head\.weight; give a whole causal LM"):
            load()


def write_gguf(model: Any, corpus: TokenCorpus, file: Path) -> None:
    """A Llama model and the corpus's tokenizer as llama.cpp keeps them: its names, and the halves of rotated dimensions interleaved."""
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    config, state = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    backend, end = load_tokenizer(corpus.tokenizer_address)
    written = json.loads(backend.to_str())["model"]
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in written["merges"]])
    writer.add_token_types([gguf.TokenType.CONTROL if i == end else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}
    names["post_attention_layernorm"] = "ffn_norm"
    for name, tensor in state.items():
        parts = name.removesuffix(".weight").split(".", 3)
        if "layers" in parts:
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(names[parts[3]])
            turned = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape) if heads else tensor
            writer.add_tensor(f"blk.{parts[2]}.{names[parts[3]]}.weight", turned)
        else:
            writer.add_tensor({"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[-1]] + ".weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_model_that_it_holds(corpus: TokenCorpus, tmp_path: Path) -> None:
    model = family_model("llama", corpus.vocab_size, tie_word_embeddings=False).eval()
    write_gguf(model, corpus, tmp_path / "tiny.gguf")
    found = open_pretrained(str(tmp_path / "tiny.gguf"), str(tmp_path / "runs"), "here")
    assert found.address.startswith(str(tmp_path / "runs" / "pretrained" / "tiny-")) and found.tokenizer_sha256 == tokenizer_sha256(
        *load_tokenizer(found.address)
    )
    again = AutoModelForCausalLM.from_pretrained(found.address).eval()
    tokens = torch.randint(0, corpus.vocab_size, (2, 16))
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-5)
    ours, theirs = (load_tokenizer(address)[0] for address in (corpus.tokenizer_address, found.address))
    assert ours.encode("the words of this text").ids == theirs.encode("the words of this text").ids


def test_a_broken_gguf_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"^here: .*cut\.gguf cannot be read as GGUF \("):
        open_pretrained(str(tmp_path / "cut.gguf"), str(tmp_path / "runs"), "here")
