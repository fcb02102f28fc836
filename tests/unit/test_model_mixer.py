"""The mixer against float64 weight arithmetic: exact mixes, per-row coefficients, a base that is untouched."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm_tui.errors import UsageError
from dlm_tui.model.adapters import Adapter, load_peft_adapter, save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.mixer import Mixer
from tests.tiny_models import random_adapter, target_names, tiny_base

IDS = torch.randint(3, 300, (4, 14), generator=torch.Generator().manual_seed(3))
MIXES: list[dict[str, float]] = [{}, {"x": 1.0}, {"x": 0.3, "y": 0.7}, {"x": -0.5, "y": 1.5, "z": 2.0}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Base) -> dict[str, Adapter]:
    """Ranks and targets differ; `z` also changes MLP layers, and only every other layer."""
    mlp = target_names(base, "gate_proj", "up_proj", "down_proj")
    return {
        "x": random_adapter(base, "x", rank=4),
        "y": random_adapter(base, "y", rank=1, seed=1, targets=target_names(base, "v_proj")),
        "z": random_adapter(base, "z", rank=7, seed=2, targets=target_names(base, "q_proj")[::2] + mlp[1::2], size=0.1),
    }


@pytest.fixture(scope="module")
def model(base: Base, adapters: dict[str, Adapter]) -> MixedModel:
    return MixedModel(base, adapters)


def merged_hidden(base: Base, adapters: dict[str, Adapter], mix: dict[str, float], ids: Tensor) -> Tensor:
    """The same mix added into the weights of a float64 copy of the base."""
    module = copy.deepcopy(base.model).double()
    with torch.no_grad():
        for name, weight in mix.items():
            for target, pair in adapters[name].modules.items():
                delta = pair.lora_B.double() @ pair.lora_A.double() * pair.scale * weight
                module.get_submodule(target).weight += delta
        return module.base_model(ids).last_hidden_state


def test_every_row_has_its_own_exact_mix(base: Base, model: MixedModel, adapters: dict[str, Adapter]) -> None:
    coefficients = torch.stack([model.coefficients(mix) for mix in MIXES])
    for backbone in (model.reference, model.backbone):
        found = backbone.forward(IDS, None, coefficients)
        for row, mix in enumerate(MIXES):
            wanted = merged_hidden(base, adapters, mix, IDS[row : row + 1])[0]
            torch.testing.assert_close(found[row].double(), wanted, atol=2e-4, rtol=1e-4)


def test_the_base_is_bitwise_untouched(base: Base, model: MixedModel) -> None:
    with torch.no_grad():
        untouched = base.model(IDS)
        hidden = base.model.base_model(IDS).last_hidden_state
    zeros = torch.zeros(4, 3)
    for coefficients in (None, zeros):
        assert torch.equal(model.reference.forward(IDS, None, coefficients), hidden)
    assert torch.equal(model.reference.logits(hidden), untouched.logits)
    assert torch.equal(model.backbone.forward(IDS, None, zeros), model.backbone.forward(IDS))


def test_base_rows_of_a_mixed_batch_are_bitwise_those_of_an_unmixed_batch(model: MixedModel) -> None:
    coefficients = torch.stack([model.coefficients(mix) for mix in MIXES])
    coefficients[2] = 0.0
    for backbone in (model.reference, model.backbone):
        off, on = backbone.forward(IDS), backbone.forward(IDS, None, coefficients)
        assert torch.equal(on[0], off[0])
        assert torch.equal(on[2], off[2])
        assert not torch.equal(on[1], off[1])


def test_no_hooks_stay_behind(base: Base, model: MixedModel) -> None:
    model.reference.forward(IDS, None, torch.ones(4, 3))
    with pytest.raises(ValueError, match="coefficients must be"):
        model.reference.forward(IDS, None, torch.ones(4, 2))
    assert not any(module._forward_hooks for module in base.model.modules())


def test_the_reference_is_differentiable_in_the_coefficients(model: MixedModel) -> None:
    direction = torch.tensor([[0.3, -0.2, 0.5]])

    def loss(step: float) -> float:
        return float(model.reference.forward(IDS[:1], None, direction * step).double().square().sum())

    coefficients = torch.zeros(1, 3, requires_grad=True)
    model.reference.forward(IDS[:1], None, coefficients).double().square().sum().backward()
    assert coefficients.grad is not None
    numeric = (loss(0.01) - loss(-0.01)) / 0.02
    assert float((coefficients.grad * direction).sum()) == pytest.approx(numeric, rel=0.03)


def test_swapping_one_adapter_leaves_the_rest(base: Base, adapters: dict[str, Adapter]) -> None:
    model = MixedModel(base, adapters)
    before = model.backbone
    weights = base.fused
    fresh = random_adapter(base, "y", rank=3, seed=9)
    model.swap("y", fresh)
    assert model.names == ("x", "y", "z")
    assert base.fused is weights
    row = model.coefficients({"y": 1.0})[None]
    wanted = MixedModel(base, {"y": fresh})
    torch.testing.assert_close(
        model.backbone.forward(IDS[:1], None, row),
        wanted.backbone.forward(IDS[:1], None, torch.ones(1, 1)),
        atol=1e-5,
        rtol=1e-5,
    )
    old = MixedModel(base, adapters).backbone
    assert torch.equal(before.forward(IDS[:1], None, row), old.forward(IDS[:1], None, row))
    model.swap("x", None)
    assert model.names == ("y", "z")
    with pytest.raises(UsageError, match="'x'"):
        model.coefficients({"x": 1.0})


def test_extra_adapters_get_columns_behind_the_known_ones(base: Base, model: MixedModel) -> None:
    extra = random_adapter(base, "null", rank=2, seed=11)
    with model.with_extra([extra]) as wider:
        assert wider.columns == 4
        mix = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        found = wider.forward(IDS[:2], None, mix)
    torch.testing.assert_close(found[0], model.backbone.forward(IDS[:2], None, mix[:, :3])[0], atol=1e-5, rtol=1e-5)
    alone = MixedModel(base, {"null": extra}).backbone.forward(IDS[1:2], None, torch.ones(1, 1))[0]
    torch.testing.assert_close(found[1], alone, atol=1e-5, rtol=1e-5)


def test_mixes_are_checked(model: MixedModel) -> None:
    assert model.coefficients({"y": 0.25}).tolist() == [0.0, 0.25, 0.0]
    with pytest.raises(UsageError, match="trained: x, y, z"):
        model.coefficients({"nobody": 1.0})
    with pytest.raises(UsageError, match="finite"):
        model.coefficients({"x": float("nan")})


def test_a_model_without_adapters_is_the_base(base: Base) -> None:
    model = MixedModel(base, {})
    assert torch.equal(model.backbone.forward(IDS, None, torch.zeros(4, 0)), model.backbone.forward(IDS))


def test_a_layer_that_flattens_its_batch_takes_only_one_mix(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    layer = base.model.get_submodule("model.layers.0.mlp")
    plain = layer.forward
    layer.forward = lambda x: plain(x.flatten(0, 1)).view_as(x)  # type: ignore[method-assign]
    adapter = random_adapter(base, "a", targets=["model.layers.0.mlp.up_proj"])
    model = MixedModel(base, {"a": adapter}, fast=False)
    same = model.reference.forward(IDS[:2], None, torch.ones(2, 1))
    layer.forward = plain  # type: ignore[method-assign]
    torch.testing.assert_close(same, model.reference.forward(IDS[:2], None, torch.ones(2, 1)))
    layer.forward = lambda x: plain(x.flatten(0, 1)).view_as(x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="share one mix"):
        model.reference.forward(IDS[:2], None, torch.tensor([[1.0], [0.5]]))


def test_stacks_fold_the_scales_in(base: Base, adapters: dict[str, Adapter]) -> None:
    mixer = Mixer(list(adapters.values()))
    name = "model.layers.0.self_attn.q_proj"
    x_pair, z_pair = adapters["x"].modules[name], adapters["z"].modules[name]
    stack = mixer.stacks[name]
    assert stack.lora_A.shape[0] == 11
    torch.testing.assert_close(
        stack.lora_B @ stack.lora_A,
        x_pair.lora_B @ x_pair.lora_A * x_pair.scale + z_pair.lora_B @ z_pair.lora_A * z_pair.scale,
    )
    assert mixer.layouts[stack.layout].tolist() == [0] * 4 + [2] * 7


def test_a_loaded_adapter_survives_giving_its_pages_back(
    base: Base, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    save_peft_adapter(adapters["x"], tmp_path / "x", "test/llama")
    loaded = load_peft_adapter(tmp_path / "x", "x", base)
    MixedModel(base, {"x": loaded})
    (tmp_path / "x" / "adapter_model.safetensors").unlink()
    for module, pair in adapters["x"].modules.items():
        assert torch.equal(loaded.modules[module].lora_A, pair.lora_A)
        assert torch.equal(loaded.modules[module].lora_B, pair.lora_B)
