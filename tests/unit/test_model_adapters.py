"""Adapters against PEFT itself: same numbers after reading, PEFT reads what is written, everything else is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from dlm_tui.model.adapters import Adapter, AdapterError, LowRank, load_peft_adapter, save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.mixed import MixedModel
from tests.tiny_models import random_adapter, read_config, tiny_base

IDS = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


def trained_by_peft(base: Base, folder: Path, **settings: Any) -> torch.Tensor:
    """Save a PEFT adapter with random halves and return its logits on IDS."""
    torch.manual_seed(5)
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "o_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
            "alpha_pattern": {"q_proj": 3, r".*\.2\.mlp\.down_proj": 1},
        },
        {"r": 2, "lora_alpha": 5, "target_modules": ["k_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "one-layer"],
)
def test_reading_what_peft_saved_gives_the_logits_of_peft(base: Base, tmp_path: Path, settings: dict[str, Any]) -> None:
    wanted = trained_by_peft(base, tmp_path, **settings)
    model = MixedModel(base, {"a": load_peft_adapter(tmp_path, "a", base)})
    coefficients = model.coefficients({"a": 1.0})[None]
    for backbone in (model.reference, model.backbone):
        found = backbone.logits(backbone.forward(IDS, None, coefficients))
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_conv1d_layers_are_exact_too(gpt2: Base, tmp_path: Path) -> None:
    wanted = trained_by_peft(gpt2, tmp_path, r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    model = MixedModel(gpt2, {"a": load_peft_adapter(tmp_path, "a", gpt2)})
    found = model.backbone.logits(model.backbone.forward(IDS, None, model.coefficients({"a": 1.0})[None]))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_peft_reads_what_is_written(base: Base, tmp_path: Path) -> None:
    wide, narrow = random_adapter(base, "wide", rank=5), random_adapter(base, "narrow", rank=2, seed=1)
    names = list(wide.modules)
    mixed = Adapter("m", {name: (wide if i % 3 else narrow).modules[name] for i, name in enumerate(names)})
    pair = mixed.modules[names[0]]
    mixed = Adapter("m", {**mixed.modules, names[0]: LowRank(pair.lora_A, pair.lora_B, 0.37)})
    save_peft_adapter(mixed, tmp_path / "a", "test/llama", dropout=0.05)
    model = MixedModel(base, {"m": mixed})
    wanted = model.reference.logits(model.reference.forward(IDS, None, model.coefficients({"m": 1.0})[None]))
    peft = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "a"))
    with torch.no_grad():
        torch.testing.assert_close(peft(IDS).logits, wanted, atol=2e-4, rtol=1e-4)
    again = load_peft_adapter(tmp_path / "a", "m", base)
    assert again.modules.keys() == mixed.modules.keys()
    for name, read in again.modules.items():
        assert torch.equal(read.lora_A, mixed.modules[name].lora_A)
        assert read.scale == pytest.approx(mixed.modules[name].scale, rel=1e-12)
    assert read_config(tmp_path / "a")["lora_dropout"] == 0.05


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "changed base"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"r": 3}, "declares rank 3"),
    ],
)
def test_what_a_pair_cannot_express_is_refused(base: Base, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    save_peft_adapter(random_adapter(base, "a"), tmp_path / "a", "test/llama")
    edit_config(tmp_path / "a", **changes)
    with pytest.raises(AdapterError, match=says) as caught:
        load_peft_adapter(tmp_path / "a", "a", base)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(base: Base, tmp_path: Path) -> None:
    save_peft_adapter(random_adapter(base, "a"), tmp_path / "a", "test/llama")
    file = tmp_path / "a" / "adapter_model.safetensors"
    good = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    damages: list[tuple[dict[str, torch.Tensor], str]] = [
        ({**good, key: torch.full_like(good[key], float("nan"))}, "not finite"),
        ({name: value for name, value in good.items() if name != key}, "one half"),
        ({**good, key: good[key][:, :-1].contiguous()}, "is .* in the base"),
        ({**good, key.replace("lora_A", "lora_magnitude_vector"): torch.ones(3)}, "not a low-rank pair"),
        ({**good, key.replace("layers.0", "layers.99"): good[key].clone()}, "one half|no module"),
        ({}, "no low-rank weights"),
    ]
    for tensors, says in damages:
        save_file(tensors, file)
        with pytest.raises(AdapterError, match=says):
            load_peft_adapter(tmp_path / "a", "a", base)
    file.write_bytes(b"nonsense")
    with pytest.raises(AdapterError, match="cannot be read"):
        load_peft_adapter(tmp_path / "a", "a", base)
    file.unlink()
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(AdapterError, match="pickled"):
        load_peft_adapter(tmp_path / "a", "a", base)
    with pytest.raises(AdapterError, match="not a readable adapter"):
        load_peft_adapter(tmp_path / "nowhere", "a", base)


def test_modules_outside_the_decoder_are_refused(base: Base, gpt2: Base) -> None:
    head = Adapter("a", {"lm_head": LowRank(torch.ones(1, 32), torch.ones(base.vocab_size, 1), 1.0)})
    with pytest.raises(AdapterError, match="lm_head"):
        MixedModel(base, {"a": head})
    with pytest.raises(AdapterError, match="no module"):
        MixedModel(gpt2, {"a": random_adapter(base, "a")})


def test_nothing_broken_is_ever_written(base: Base, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    broken = Adapter("a", {name: LowRank(torch.full((1, 32), float("inf")), torch.ones(32, 1), 1.0)})
    with pytest.raises(AdapterError, match="not finite"):
        save_peft_adapter(broken, tmp_path / "a", "x")
    with pytest.raises(AdapterError, match="no modules"):
        save_peft_adapter(Adapter("a", {}), tmp_path / "a", "x")
    assert not (tmp_path / "a").exists()
