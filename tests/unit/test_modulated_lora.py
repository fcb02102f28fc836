"""ModulatedLoRA against merged weights, with its hooks, targets and checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dlm_tui.model import HistoryBake, ModulatedLoRA, ModulatedPiSSA, PiSSAHistoryBake
from dlm_tui.model.modulated.targets import ModulationError, dense_weight, match_targets, suffix_patterns

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def tiny_llama(seed: int = 0, layers: int = 3) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4.0)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


def trained(model: nn.Module, seed: int = 1, **settings: object) -> ModulatedLoRA:
    """An adapter with a B that is not zero."""
    lora = ModulatedLoRA(model, seed=seed, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed + 100)
    for parameter in lora.B.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return lora


@torch.no_grad()
def dense_delta(modulated: ModulatedLoRA | ModulatedPiSSA, name: str) -> torch.Tensor:
    """What c = 1 adds to the weight of a layer, [d_out, d_in]."""
    lora_A, lora_B, scale = modulated.pair(name)
    return scale * (lora_B.float() @ lora_A.float())


def merged(model: nn.Module, additions: list[tuple[ModulatedLoRA, float]]) -> nn.Module:
    """A copy of the model whose weights hold the sum, formed in float64."""
    result = copy.deepcopy(model)
    for lora, c in additions:
        for name in lora.target_names:
            weight = result.get_submodule(name).weight
            lora_A, lora_B, scale = lora.pair(name)
            weight.data = (weight.double() + c * scale * (lora_B.double() @ lora_A.double())).to(weight.dtype)
    return result


def test_fresh_adapter_and_c_zero_are_the_base_bit_for_bit() -> None:
    model = tiny_llama()
    base = logits(model)
    with ModulatedLoRA(model, r=4)(model, c=1.0):
        assert torch.equal(logits(model), base)
    with trained(model, r=4)(model, c=0.0):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("c", [-2.0, -1.0, 0.5, 1.0, 2.0])
def test_forward_equals_the_merged_weight(c: float) -> None:
    model = tiny_llama()
    lora = trained(model, r=4, alpha=6.0)
    base, expected = logits(model), logits(merged(model, [(lora, c)]))
    with lora(model, c=c):
        found = logits(model)
    assert (found - expected).abs().max() < 1e-5
    assert (found - base).abs().max() > 1e-2


def test_coefficient_changes_inside_the_block_and_falls_to_zero_after_it() -> None:
    model = tiny_llama()
    lora = trained(model, r=4)
    with lora(model) as same:
        assert same is lora and lora.c == 1.0
        strong = logits(model)
        lora.set_coeff(0.25)
        assert lora.c == 0.25
        assert not torch.equal(logits(model), strong)
    assert lora.c == 0.0 and not lora.attached


def test_reentry_is_refused_and_exceptions_remove_the_hooks() -> None:
    model = tiny_llama()
    base = logits(model)
    lora = trained(model, r=4)
    with pytest.raises(ModulationError, match="attached already"), lora(model), lora(model):
        pass
    with pytest.raises(ZeroDivisionError), lora(model, c=2.0):
        raise ZeroDivisionError
    assert torch.equal(logits(model), base)
    with lora(model, c=1.0):
        assert lora.attached


def test_gradients_reach_both_factors_and_nothing_else() -> None:
    model = tiny_llama()
    lora = trained(model, r=4)
    with lora(model, c=1.5):
        model(IDS).logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in lora.parameters())
    assert len(list(lora.parameters())) == 2 * len(lora.target_names)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_initialisation_is_kaiming_uniform_and_seeded() -> None:
    model = tiny_llama()
    lora = ModulatedLoRA(model, r=4, seed=5)
    for lora_A in lora.A.values():
        bound = 1 / lora_A.shape[1] ** 0.5  # gain √(2 / (1 + 5)) times √(3 / fan-in)
        assert lora_A.abs().max() <= bound
        assert lora_A.abs().max() > 0.8 * bound
    again = ModulatedLoRA(model, r=4, seed=5)
    assert all(torch.equal(lora.A[name], again.A[name]) for name in lora.A)


def test_targets_exclusions_and_layer_range() -> None:
    model = tiny_llama(layers=10)
    assert len(match_targets(model)) == 70
    assert "lm_head" not in match_targets(model)
    assert "lm_head" in match_targets(model, exclude=())
    chosen = match_targets(model, [r"[qv]_proj$"], layer_range=(0.3, 0.7))
    assert [name.split(".")[2] for name in chosen] == [str(layer) for layer in (3, 3, 4, 4, 5, 5, 6, 6)]
    outside = match_targets(model, [r"q_proj", "lm_head"], exclude=(), layer_range=(0.0, 0.1))
    assert list(outside) == ["model.layers.0.self_attn.q_proj", "lm_head"]
    assert list(match_targets(model, suffix_patterns(["layers.1.self_attn.q_proj"]))) == [
        "model.layers.1.self_attn.q_proj"
    ]


def test_layer_range_counts_the_depth_of_the_model_not_of_the_targets() -> None:
    model = tiny_llama(layers=10)
    with pytest.raises(ModulationError, match="no linear layer"):
        match_targets(model, r"layers\.[0-3]\.self_attn\.q_proj", layer_range=(0.5, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "no_such_layer"}, "no linear layer matches 'no_such_layer'"),
        ({"targets": "("}, "not a regular expression"),
        ({"layer_range": (0.5, 0.5)}, "rising fractions"),
        ({"layer_range": (-0.1, 0.5)}, "rising fractions"),
        ({"targets": "lm_head", "exclude": (), "layer_range": (0.0, 0.5)}, "layer range was given"),
        ({"r": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_one_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModulationError, match=message):
        ModulatedLoRA(tiny_llama(), **settings)  # type: ignore[arg-type]


def test_attaching_to_another_model_is_checked() -> None:
    model, other = tiny_llama(seed=0), tiny_llama(seed=3)
    lora = trained(model, r=4)
    with lora(other, c=0.5):
        found = logits(other)
    assert (found - logits(merged(other, [(lora, 0.5)]))).abs().max() < 1e-5
    with pytest.raises(ModulationError, match="no module"), lora(tiny_llama(layers=1)):
        pass
    with pytest.raises(ModulationError, match=r"layers\.2"), lora(tiny_llama(layers=2)):
        pass


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = tiny_llama()
    lora = trained(model, r=4, alpha=6.0, targets=[r"layers\.\d{1,2}\..*[qv]_proj"], layer_range=(0.0, 0.7))
    path = tmp_path / "adapter.safetensors"
    lora.save(path, {"note": "kept"})
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata()["note"] == "kept"
        assert {"r", "alpha", "targets", "layer_range", "kind"} <= set(handle.metadata())
        assert "A.model__layers__0__self_attn__q_proj" in handle.keys()  # noqa: SIM118
    loaded = ModulatedLoRA.from_checkpoint(model, path)
    assert loaded.target_names == lora.target_names and loaded.scale == lora.scale and loaded.spec == lora.spec
    with lora(model, c=-1.0):
        expected = logits(model)
    with loaded(model, c=-1.0):
        assert torch.equal(logits(model), expected)
    other = ModulatedLoRA(model, r=4, alpha=6.0, targets=lora.spec.targets, layer_range=(0.0, 0.7))
    other.load(path)
    assert all(torch.equal(other.B[name], lora.B[name]) for name in lora.B)


def test_another_rank_or_scale_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = tiny_llama()
    path = tmp_path / "adapter.safetensors"
    trained(model, r=4, alpha=6.0, targets="q_proj").save(path)
    for other, message in (
        (ModulatedLoRA(model, r=2, alpha=6.0, targets="q_proj", seed=1), "has rank 4, this adapter 2"),
        (ModulatedLoRA(model, r=4, alpha=8.0, targets="q_proj", seed=1), "scaled by alpha 6, this adapter by 8"),
    ):
        before = {name: value.clone() for name, value in other.A.items()}
        rank, alpha = other.r, other.alpha
        with pytest.raises(ModulationError, match=message):
            other.load(path)
        assert (other.r, other.alpha) == (rank, alpha)
        assert all(torch.equal(other.A[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("targets", "held"),
    [
        (r"layers\.[0-3]\..*q_proj", [0, 1]),  # two of the four that match; of all six it would be three
        (r"layers\.[0-3]\..*q_proj", [0, 1, 2]),
        (r"layers\.(1|3|5)\..*q_proj", [1]),  # the first of three by place; of the stack's six it is 1, too
        (r"layers\.[2-5]\..*q_proj", [2, 3]),  # by place; by number it is layer 2 alone
    ],
)
def test_a_layer_range_over_the_matched_layers_alone_is_understood(
    tmp_path: Path, targets: str, held: list[int]
) -> None:
    model = tiny_llama(layers=6)
    names = [f"model.layers.{number}.self_attn.q_proj" for number in held]
    lora = trained(model, r=2, alpha=2.0, targets=[rf"^{name}$" for name in names])
    tensors = {
        f"{part}.{name.replace('.', '__')}": values[name].detach().clone()
        for part, values in (("A", lora.A), ("B", lora.B))
        for name in names
    }
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path, {"r": "2", "alpha": "2.0", "targets": targets, "layer_range": "0.0,0.5"})
    loaded = ModulatedLoRA.from_checkpoint(model, path)
    assert list(loaded.target_names) == names
    assert all(torch.equal(dense_delta(loaded, name), dense_delta(lora, name)) for name in names)
    again = tmp_path / "ours.safetensors"
    loaded.save(again)
    assert ModulatedLoRA.from_checkpoint(model, again).target_names == loaded.target_names


def test_a_layer_range_that_fits_no_reading_is_refused(tmp_path: Path) -> None:
    model = tiny_llama(layers=6)
    lora = trained(model, r=2, alpha=2.0, targets=r"layers\.5\..*q_proj")
    path = tmp_path / "odd.safetensors"
    lora.save(path, {"targets": "q_proj", "targets_json": '["q_proj"]', "layer_range": "0.0,0.5"})
    with pytest.raises(ModulationError, match="would be dropped"):
        ModulatedLoRA.from_checkpoint(model, path)


def test_an_empty_history_is_a_value_error_and_a_pissa_history_has_a_gate_that_does_nothing() -> None:
    model = tiny_llama()
    for kind in (HistoryBake, PiSSAHistoryBake):
        with pytest.raises(ValueError, match="at least one kept round"):
            kind(model, [])
    pissa = ModulatedPiSSA(model, r=2, targets="q_proj", seed=1)
    with torch.no_grad():
        for parameter in pissa.parameters():
            parameter.fill_(0.5)
    baked = PiSSAHistoryBake(model, [(pissa, 1.0)])
    on = logits(model)
    baked.set_gate(lambda: False)
    assert torch.equal(logits(model), on), "the history is part of the weights"
    baked.remove()
    assert not torch.equal(logits(model), on)


def test_target_mismatch_says_what_would_be_lost(tmp_path: Path) -> None:
    model = tiny_llama()
    path = tmp_path / "adapter.safetensors"
    trained(model, r=4, targets=r"[qv]_proj").save(path)
    target = ModulatedLoRA(model, r=4, targets=r"[qko]_proj")
    before = {name: value.clone() for name, value in target.B.items()}
    with pytest.raises(ModulationError, match="6 trained tensors would be dropped and 12 left empty"):
        target.load(path)
    assert all(torch.equal(target.B[name], before[name]) for name in before)


def test_established_form_without_the_added_keys_loads(tmp_path: Path) -> None:
    model = tiny_llama()
    lora = trained(model, r=4, alpha=6.0, targets=[r"q_proj", r"v_proj"])
    path = tmp_path / "plain.safetensors"
    tensors = {}
    for name in lora.target_names:
        tensors["A." + name.replace(".", "__")] = lora.A[name].detach().clone()
        tensors["B." + name.replace(".", "__")] = lora.B[name].detach().clone()
    save_file(tensors, path, {"r": "4", "alpha": "6.0", "targets": "q_proj,v_proj", "layer_range": "0.0,1.0"})
    loaded = ModulatedLoRA.from_checkpoint(model, path)
    assert all(torch.equal(dense_delta(loaded, name), dense_delta(lora, name)) for name in lora.target_names)


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(ModulationError, match="not a readable"):
        ModulatedLoRA.from_checkpoint(model, path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModulationError, match="not a readable"):
        ModulatedLoRA.from_checkpoint(model, path)
    save_file({"A.x": torch.zeros(1)}, path, {"r": "4", "alpha": "4"})
    with pytest.raises(ModulationError, match="does not say which layers"):
        ModulatedLoRA.from_checkpoint(model, path)
    lora = trained(model, r=4, targets="q_proj")
    shapes = {f"{part}.{n.replace('.', '__')}": torch.zeros(2, 2) for n in lora.target_names for part in "AB"}
    save_file(shapes, path, {"r": "4", "alpha": "4", "targets": "q_proj"})
    with pytest.raises(ModulationError, match=r"layers\.0\.self_attn\.q_proj"):
        lora.load(path)


def test_history_of_unequal_ranks_composes_in_any_order() -> None:
    model = tiny_llama()
    first = trained(model, seed=1, r=2, targets="q_proj")
    second = trained(model, seed=2, r=5, alpha=3.0, targets=["q_proj", "mlp"])
    third = trained(model, seed=3, r=3, targets="v_proj")
    base = logits(model)
    rounds = [(first, 1.0), (second, -0.5), (third, 2.0)]
    expected = logits(merged(model, rounds))
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        bake = HistoryBake(model, [rounds[index] for index in order])
        assert bake.ranks["model.layers.0.self_attn.q_proj"] == 7
        assert (logits(model) - expected).abs().max() < 1e-5
        bake.remove()
        assert torch.equal(logits(model), base)
    with pytest.raises(ModulationError, match="at least one"):
        HistoryBake(model, [])


def test_history_gate_leaves_the_reference_untouched() -> None:
    model = tiny_llama()
    base = logits(model)
    kept, current = trained(model, seed=1, r=2), trained(model, seed=2, r=2)
    bake = HistoryBake(model, [(kept, 1.0)])
    bake.set_gate(lambda: current.c != 0.0)
    with current(model, c=0.0):
        assert torch.equal(logits(model), base)
        current.set_coeff(1.0)
        assert (logits(model) - logits(merged(tiny_llama(), [(kept, 1.0), (current, 1.0)]))).abs().max() < 1e-5
    bake.remove()


def test_half_precision_adapter_on_a_float32_base() -> None:
    model = tiny_llama()
    lora = trained(model, r=4, dtype=torch.bfloat16)
    with lora(model, c=1.0):
        found = logits(model)
    assert found.dtype == torch.float32
    assert (found - logits(merged(model, [(lora, 1.0)]))).abs().max() < 0.1


class PackedLinear(nn.Linear):
    """A linear layer that keeps its weight as int8 with one scale, as quantised layers do."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None)
        self.step = source.weight.abs().max().item() / 127
        packed = (source.weight / self.step).round().to(torch.int8).flatten()
        del self.weight
        self.weight = nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]
        if source.bias is not None:
            self.bias.data = source.bias.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(self.out_features, self.in_features).float() * self.step
        return nn.functional.linear(x, weight, self.bias)


def test_weight_of_a_packed_layer_is_what_it_does() -> None:
    torch.manual_seed(0)
    packed = PackedLinear(nn.Linear(6, 9))
    expected = packed.weight.view(9, 6).float() * packed.step
    assert torch.allclose(dense_weight(packed), expected, atol=1e-6)
