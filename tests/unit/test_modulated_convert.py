"""Modulated adapters, PEFT directories and mixer adapters hold the same additions, checked with PEFT itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from dlm_tui.model import Adapter, LowRank, ModulatedLoRA, ModulatedPiSSA
from dlm_tui.model.adapters import load_peft_adapter
from dlm_tui.model.modulated.calibration import build_pissa, collect_calibration
from dlm_tui.model.modulated.convert import (
    lora_from_adapter,
    pissa_from_adapter,
    save_peft,
    to_adapter,
)
from dlm_tui.model.modulated.targets import ModulationError
from tests.unit.test_modulated_lora import IDS, dense_delta, logits, tiny_llama, trained
from tests.unit.test_modulated_pissa import spread


def delta(adapter: Adapter, name: str) -> torch.Tensor:
    pair = adapter.modules[name]
    return pair.scale * (pair.lora_B.double() @ pair.lora_A.double())


@torch.no_grad()
def peft_logits(model: nn.Module, path: Path) -> torch.Tensor:
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model), str(path)).eval()(IDS).logits


def test_lora_to_mixer_and_back_keeps_every_bit() -> None:
    model = tiny_llama()
    lora = trained(model, r=3, alpha=7.0, targets=["q_proj", "down_proj"])
    adapter = to_adapter(lora, "tone")
    assert adapter.name == "tone" and adapter.parameterization == "lora" and adapter.rank == 3
    back = lora_from_adapter(model, adapter)
    assert back.target_names == lora.target_names and back.scale == lora.scale
    assert all(torch.equal(back.A[n], lora.A[n]) and torch.equal(back.B[n], lora.B[n]) for n in lora.target_names)
    adapter.modules[lora.target_names[0]].lora_B.zero_()
    assert lora.B[lora.target_names[0]].abs().sum() > 0


def test_lora_with_unequal_ranks_and_scales() -> None:
    model = tiny_llama()
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    torch.manual_seed(0)
    pairs = {
        name: LowRank(torch.randn(rank, 24), torch.randn(24, rank), scale)
        for name, rank, scale in zip(names, (2, 5, 3), (0.5, 0.3, 0.5), strict=True)
    }
    adapter = Adapter("tone", pairs)
    lora = lora_from_adapter(model, adapter)
    for name in names:
        assert (dense_delta(lora, name).double() - delta(adapter, name)).abs().max() < 1e-6
    assert lora.spec.exclude == ()


def test_peft_directory_round_trip_agrees_with_peft(tmp_path: Path) -> None:
    model = tiny_llama()
    lora = trained(model, r=3, alpha=7.0, targets=["q_proj", "down_proj"])
    save_peft(lora, tmp_path / "tone", "tiny")
    with lora(model, c=1.0):
        expected = logits(model)
    assert (peft_logits(model, tmp_path / "tone") - expected).abs().max() < 1e-5
    back = lora_from_adapter(model, load_peft_adapter(tmp_path / "tone", "tone"))
    assert set(back.target_names) == set(lora.target_names)
    assert all(torch.equal(back.A[n], lora.A[n]) and torch.equal(back.B[n], lora.B[n]) for n in lora.target_names)
    with back(model, c=1.0):
        assert (logits(model) - expected).abs().max() < 1e-6


def test_pissa_is_an_ordinary_lora_elsewhere(tmp_path: Path) -> None:
    model = tiny_llama()
    # k_proj has 12 directions, q_proj 24: ranks differ per layer
    pissa = spread(ModulatedPiSSA(model, r=14, targets=["q_proj", "k_proj"], seed=0), seed=1)
    with pissa(model, c=1.0):
        expected = logits(model)
    save_peft(pissa, tmp_path / "style", "tiny")
    assert (peft_logits(model, tmp_path / "style") - expected).abs().max() < 1e-5
    read = load_peft_adapter(tmp_path / "style", "style")
    for back in (pissa_from_adapter(model, read), lora_from_adapter(model, read)):
        for name in pissa.target_names:
            assert (dense_delta(back, name) - dense_delta(pissa, name)).abs().max() < 1e-6
        with back(model, c=1.0):
            assert (logits(model) - expected).abs().max() < 1e-5


def test_pissa_from_a_lora_loads_where_the_weight_is_changed(tmp_path: Path) -> None:
    model = tiny_llama()
    lora = trained(model, r=3, targets=["q_proj", "down_proj"])
    pissa = pissa_from_adapter(model, to_adapter(lora, "tone"))
    pissa.save(tmp_path / "pissa.safetensors")
    loaded = ModulatedPiSSA.from_checkpoint(model, tmp_path / "pissa.safetensors")
    with lora(model, c=-1.5):
        expected = logits(model)
    with loaded(model, c=-1.5):
        assert (logits(model) - expected).abs().max() < 1e-5
    changed = copy.deepcopy(model)
    for name in loaded.target_names:
        u, s, vh, change = loaded.U[name], loaded.S[name], loaded.Vh[name], loaded.delta_s[name].detach()
        weight = changed.get_submodule(name).weight
        weight.data = (weight.data - u * s @ vh) + u * (s - 1.5 * change) @ vh
    assert (logits(changed) - expected).abs().max() < 1e-5


def test_conversion_needs_a_model_with_those_layers() -> None:
    adapter = to_adapter(ModulatedLoRA(tiny_llama(), r=2, targets="q_proj"), "tone")
    with pytest.raises(ModulationError, match="no module"):
        lora_from_adapter(tiny_llama(layers=2), adapter)
    with pytest.raises(ModulationError, match="no modules"):
        pissa_from_adapter(tiny_llama(), Adapter("empty", {}))


def test_calibration_takes_real_tokens_only_and_feeds_the_selection() -> None:
    model = tiny_llama()
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    batch = {"input_ids": IDS, "attention_mask": mask}
    found = collect_calibration(model, [batch, IDS[:1]], ["q_proj", "o_proj"], max_tokens=1000)
    inputs = found["model.layers.0.self_attn.q_proj"]
    assert isinstance(inputs, torch.Tensor) and inputs.shape == (13 + 8, 24)
    decoder = model.model  # type: ignore[union-attr]
    normed = decoder.layers[0].input_layernorm(decoder.embed_tokens(IDS))
    expected = torch.cat([normed[0], normed[1, :5], normed[0]])
    assert torch.allclose(inputs, expected, atol=1e-6)
    few = collect_calibration(model, [batch, IDS[:1]], ["q_proj"], max_tokens=6)
    assert few["model.layers.0.self_attn.q_proj"].shape == (6, 24)  # type: ignore[union-attr]
    pissa = build_pissa(model, ["q_proj", "o_proj"], 4, "wanda", found, seed=3)
    assert len(pissa.target_names) == 6 and pissa.mean_tail_depth is not None
    sides = collect_calibration(model, {"cho": [IDS[:1]], "rej": [IDS[1:]]}, ["q_proj"])
    both = build_pissa(model, ["q_proj"], 4, "cho_rej_min_std", sides, seed=3)
    assert both.selection_score == "cho_rej_min_std"
    with pytest.raises(ModulationError, match="at least one batch"):
        collect_calibration(model, [], ["q_proj"])
    with pytest.raises(ModulationError, match="at least one token"):
        collect_calibration(model, [{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}], ["q_proj"])


def test_a_built_adapter_trains() -> None:
    model = tiny_llama()
    pissa = build_pissa(model, ["q_proj", "down_proj"], 6, seed=0)
    optimiser = torch.optim.Adam(pissa.parameters(), lr=0.05)
    losses = []
    with pissa(model, c=1.0):
        for _ in range(60):
            loss = model(IDS, labels=IDS).loss
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert losses[-1] < losses[0] - 0.2
