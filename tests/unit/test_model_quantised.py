"""Bases in 4 and 8 bits: the same model as the numbers they stand for, under every mix, and as PEFT has it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from dlm_tui.model import Base, BaseUnavailable, MixedModel, load_base, resolve_base, save_peft_adapter
from dlm_tui.model.backend_selection import why_slower
from dlm_tui.model.quantised import compute_exactly, dequantised, quantisation_config
from dlm_tui.progress import run_to_end
from tests.tiny_models import random_adapter, tiny_base, write_tiny_base

pytest.importorskip("bitsandbytes")
OF_TORCHAO = ("torchao-int8",) if importlib.util.find_spec("torchao") else ()  # see test_torchao.py
KINDS = ("nf4", "fp4", "int8", *OF_TORCHAO)
SIZES = {"hidden_size": 64, "intermediate_size": 96}


def opened(folder: Path, quantize: Any = None) -> Base:
    source = msgspec.structs.replace(resolve_base("hf:test/llama", folder), quantize=quantize)
    return run_to_end(load_base(source, device="cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), "llama", **SIZES)


def plain_float64(base: Base, folder: Path) -> nn.Module:
    """The model as it was before, in float64, with the weights that the quantised ones stand for."""
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for name, module in base.model.named_modules():
        if type(module).__name__.startswith("Exact"):
            plain.get_submodule(name).weight.data = dequantised(module).double()
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_mix_is_that_of_the_dequantised_weights(kind: str, folder: Path) -> None:
    base = opened(folder, kind)
    adapters = {name: random_adapter(base, name, seed=at) for at, name in enumerate(("one", "two"))}
    model = MixedModel(base, adapters)
    ids = torch.randint(0, base.vocab_size, (2, 17), generator=torch.Generator().manual_seed(1))
    mixes = torch.tensor([[0.7, -0.4], [0.0, 0.0]])
    cache = model.backbone.new_cache(2, 17)
    first = model.backbone.forward(ids[:, :9], cache, mixes)
    found = model.backbone.logits(torch.cat([first, model.backbone.forward(ids[:, 9:], cache, mixes)], dim=1))

    plain = plain_float64(base, folder)
    untouched = {name: parameter.clone() for name, parameter in plain.named_parameters()}
    for row, mix in enumerate(mixes.double()):
        for name, parameter in plain.named_parameters():
            parameter.data = untouched[name].clone()
        for coefficient, adapter in zip(mix, adapters.values(), strict=True):
            for module, pair in adapter.modules.items():
                addition = pair.lora_B.double() @ pair.lora_A.double() * pair.scale
                plain.get_submodule(module).weight.data += coefficient * addition
        with torch.no_grad():
            wanted = plain(ids[row : row + 1]).logits[0]
        assert (found[row].double() - wanted).abs().max() < 1e-4
    assert model.backbone.tier == "onednn"
    assert why_slower(base) == f"its weights are quantised as {kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_what_peft_makes_of_it(kind: str, folder: Path, tmp_path: Path) -> None:
    base = opened(folder, kind)
    adapter = random_adapter(base, "one")
    model = MixedModel(base, {"one": adapter})
    save_peft_adapter(adapter, tmp_path / "one", base.identity.id)
    ids = torch.arange(3, 20)[None]
    ours = model.backbone.logits(model.backbone.forward(ids, None, torch.ones(1, 1)))

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantisation_config(kind), device_map={"": "cpu"}
    )
    compute_exactly(loaded)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(loaded, tmp_path / "one").eval()(ids).logits
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_answers_alike_alone_and_beside_others(kind: str, folder: Path) -> None:
    """The library's own 8-bit product takes outliers from the whole batch."""
    backbone = MixedModel(opened(folder, kind), {}).backbone
    ids = torch.randint(0, 300, (4, 12), generator=torch.Generator().manual_seed(2))
    alone = backbone.forward(ids[:1])
    assert torch.allclose(backbone.forward(ids)[:1], alone, atol=1e-5)


def test_it_is_smaller_and_computes_in_float32(folder: Path) -> None:
    whole, small = opened(folder), opened(folder, "nf4")
    layer: Any = small.target_module("model.layers.0.mlp.up_proj")
    assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
    assert small.dtype == torch.float32
    assert small.parameters == whole.parameters


def test_a_quantised_base_is_another_one_and_a_near_relative(folder: Path) -> None:
    whole, small, other = opened(folder), opened(folder, "nf4"), opened(folder, "int8")
    assert len({base.identity.weights_sha256 for base in (whole, small, other)}) == 3
    recorded = msgspec.to_builtins(whole.identity.sample)
    assert small.identity.other_dtype(recorded) == ("F32", "nf4")
    assert small.identity.other_dtype(msgspec.to_builtins(other.identity.sample)) == ("int8", "nf4")
    assert opened(folder, "nf4").identity == small.identity


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_quantised_already_opens_as_such(kind: str, folder: Path, tmp_path: Path) -> None:
    made: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantisation_config(kind), device_map={"": "cpu"}
    )
    shutil.copytree(folder, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    made.save_pretrained(tmp_path / "small")
    found = opened(tmp_path / "small")
    assert found.quantisation == kind
    wanted = opened(folder, kind)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(MixedModel(found, {}).backbone.forward(ids), MixedModel(wanted, {}).backbone.forward(ids))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_was_quantised_from_bfloat16_computes_in_float32(
    kind: str, family: str, tmp_path: Path
) -> None:
    plain = write_tiny_base(tmp_path / "plain", family, **SIZES)
    made: Any = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=quantisation_config(kind), device_map={"": "cpu"}
    )
    shutil.copytree(plain, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    made.save_pretrained(tmp_path / "small")
    base = run_to_end(load_base(resolve_base(f"hf:test/{family}", tmp_path / "small"), device="cpu"))
    assert base.quantisation == kind and base.dtype == torch.float32
    # torchao's weights call themselves what they were made from
    plain_ones = {name: one for name, one in base.model.named_parameters() if type(one) is nn.Parameter}
    assert plain_ones and not [name for name, one in plain_ones.items() if one.dtype == torch.bfloat16]
    wanted = plain_float64(base, plain)
    stored = dict(base.model.named_parameters())
    for name, parameter in wanted.named_parameters():
        if type(stored.get(name)) is nn.Parameter and stored[name].is_floating_point():
            parameter.data = stored[name].double()  # rounded to bfloat16 when it was stored
    ids = torch.arange(3, 20)[None]
    backbone = MixedModel(base, {}).backbone
    with torch.no_grad():
        apart = backbone.logits(backbone.forward(ids)).double() - cast("Any", wanted)(ids).logits
    assert apart.abs().max() < 1e-4
    other = "int8" if kind == "nf4" else "nf4"
    source = msgspec.structs.replace(base.source, quantize=other)
    with pytest.raises(BaseUnavailable, match=rf"stored as {kind} and cannot be quantised as {other}.*none"):
        run_to_end(load_base(source, device="cpu"))


def test_four_bits_packed_in_what_is_called_bfloat16_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    settings = quantisation_config("nf4")
    settings.bnb_4bit_quant_storage = torch.bfloat16
    made: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=settings, device_map={"": "cpu"}
    )
    layer = "model.layers.0.mlp.up_proj"
    assert made.get_submodule(layer).weight.dtype == torch.bfloat16
    shutil.copytree(folder, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    made.save_pretrained(tmp_path / "small")
    found = opened(tmp_path / "small")
    assert torch.equal(dequantised(found.target_module(layer)), dequantised(made.get_submodule(layer)))


def test_what_cannot_be_opened_is_said_with_the_remedy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseUnavailable, match=r"quantised by 'gptq', and.*--quantize"):
        opened(tmp_path / "other")
    config["quantization_config"] = {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}},
    }
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseUnavailable, match=r"'torchao' \(Int4WeightOnlyConfig\).*--quantize"):
        opened(tmp_path / "other")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseUnavailable, match=r"as nf4 needs bitsandbytes: pip install 'dlm-tui\[quant\]'"):
        opened(folder, "nf4")
    with pytest.raises(BaseUnavailable, match=r"as torchao-int8 needs torchao: pip install torchao"):
        opened(folder, "torchao-int8")


def test_an_ordinary_base_is_not_touched(folder: Path) -> None:
    assert tiny_base(folder).quantisation is None
