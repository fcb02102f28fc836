"""ModulatedPiSSA against its dense formula and against an implementation that changes W."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dlm_tui.model import ModulatedPiSSA, PiSSAHistoryBake
from dlm_tui.model.modulated.pissa import direction_scores
from dlm_tui.model.modulated.targets import ModulationError
from tests.unit.test_modulated_lora import IDS, PackedLinear, dense_delta, logits, tiny_llama

Q0 = "model.layers.0.self_attn.q_proj"


def merged(model: nn.Module, additions: list[tuple[ModulatedPiSSA, float]]) -> nn.Module:
    """W + c · U diag(Δs) Vh, in float64."""
    result = copy.deepcopy(model)
    for pissa, c in additions:
        for name in pissa.target_names:
            weight = result.get_submodule(name).weight
            change = pissa.U[name].double() @ torch.diag(pissa.delta_s[name].double()) @ pissa.Vh[name].double()
            weight.data = (weight.double() + c * change).detach().to(weight.dtype)
    return result


def spread(pissa: ModulatedPiSSA, seed: int) -> ModulatedPiSSA:
    """The adapter after some training: Δs of both signs and of the size of S."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in pissa.delta_s.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return pissa


class MutatingPissa:
    """The established form, written from its description: W_res in the base, U diag(S + c·Δs) Vh in a hook.

    Its checkpoint carries no keys of ours. Rounds that follow each other decompose what the round before left.
    """

    def __init__(self, model: nn.Module, names: list[str], r: int, seed: int) -> None:
        self.model, self.r = model, r
        self.parts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            layer = model.get_submodule(name)
            left, singular, right = torch.linalg.svd(layer.weight.data.double(), full_matrices=False)
            u, s, vh = (value.float() for value in (left[:, :r], singular[:r], right[:r]))
            layer.weight.data -= (u * s) @ vh
            self.parts[name] = (u, s, vh, torch.randn(r, generator=generator) * 0.4)

    def attach(self, c: float) -> None:
        for name, (u, s, vh, delta) in self.parts.items():
            change = u @ torch.diag(s + c * delta) @ vh

            def hook(_layer: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor, w: torch.Tensor = change):
                return y + nn.functional.linear(args[0], w)

            self.handles.append(self.model.get_submodule(name).register_forward_hook(hook))

    def save(self, path: Path) -> None:
        tensors = {}
        for name, (u, s, vh, delta) in self.parts.items():
            key = name.replace(".", "__")
            tensors |= {f"U.{key}": u, f"S.{key}": s, f"Vh.{key}": vh, f"delta_s.{key}": delta}
        metadata = {"kind": "pissa", "r": str(self.r), "targets": "q_proj,down_proj", "selection_score": "s_only"}
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)


def test_c_zero_is_bitwise_the_base_and_the_base_never_changes() -> None:
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = logits(model)
    pissa = ModulatedPiSSA(model, r=4, seed=0)
    with pissa(model, c=0.0):
        assert torch.equal(logits(model), base)
    with pissa(model, c=2.0):
        assert (logits(model) - base).abs().max() > 1e-3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("c", [-2.0, -1.0, 0.5, 1.0, 2.0])
def test_forward_equals_the_dense_formula(c: float) -> None:
    model = tiny_llama()
    pissa = spread(ModulatedPiSSA(model, r=5, seed=0), seed=1)
    expected = logits(merged(model, [(pissa, c)]))
    with pissa(model, c=c):
        assert (logits(model) - expected).abs().max() < 1e-5


def test_directions_are_singular_vectors_of_the_weight() -> None:
    model = tiny_llama()
    pissa = ModulatedPiSSA(model, r=24, targets="q_proj", seed=0)
    weight = model.get_submodule(Q0).weight.double()
    rebuilt = pissa.U[Q0].double() * pissa.S[Q0].double() @ pissa.Vh[Q0].double()
    assert (rebuilt - weight).abs().max() < 1e-5
    top = ModulatedPiSSA(model, r=3, targets="q_proj", seed=0)
    reference = torch.linalg.svdvals(weight)[:3]
    assert (top.S[Q0].double() - reference).abs().max() < 1e-5


def test_rank_is_clamped_per_layer_and_the_start_is_near_four_hundredths() -> None:
    model = tiny_llama()
    pissa = ModulatedPiSSA(model, r=1000, seed=0)
    assert len(pissa.delta_s["model.layers.0.self_attn.k_proj"]) == 12
    assert len(pissa.delta_s[Q0]) == 24
    values = torch.cat([parameter.detach() for parameter in pissa.parameters()])
    assert abs(values.mean() - 0.04) < 0.01 and abs(values.std() - 0.04) < 0.01
    again = ModulatedPiSSA(model, r=1000, seed=0)
    assert all(torch.equal(pissa.delta_s[name], again.delta_s[name]) for name in pissa.target_names)


def test_scores_follow_their_formulas() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5, dtype=torch.float64)
    _, singular, vh = torch.linalg.svd(weight, full_matrices=False)
    inputs, other = torch.randn(30, 5, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64) * 2
    projected = torch.stack([torch.stack([row @ direction for direction in vh]) for row in inputs])
    strength = projected.abs().sum(0) / 30
    assert torch.equal(direction_scores("w", singular, vh, "s_only", None), singular)
    assert torch.allclose(direction_scores("w", singular, vh, "wanda", inputs), singular * strength)
    assert torch.allclose(direction_scores("w", singular, vh, "act_only", inputs), strength)
    deviation = ((projected - projected.mean(0)).square().sum(0) / 29).sqrt()
    others = torch.stack([torch.stack([row @ direction for direction in vh]) for row in other])
    other_deviation = ((others - others.mean(0)).square().sum(0) / 19).sqrt()
    found = direction_scores("w", singular, vh, "cho_rej_min_std", {"cho": inputs, "rej": other})
    assert torch.allclose(found, torch.minimum(deviation, other_deviation))


def test_calibrated_selection_finds_the_directions_that_are_used() -> None:
    model = tiny_llama()
    _, _, vh = torch.linalg.svd(model.get_submodule(Q0).weight.detach(), full_matrices=False)
    used = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) @ vh[[20, 17, 22]]
    pattern = r"layers\.0\.self_attn\.q_proj"
    pissa = ModulatedPiSSA(
        model, r=3, targets=pattern, selection_score="act_only", calibration_activations={Q0: used}, seed=0
    )
    assert pissa.chosen[Q0].tolist() == [17, 20, 22]
    assert pissa.tail_depth[Q0] == pytest.approx((59 / 3 - 1) / 21)
    assert ModulatedPiSSA(model, r=3, targets=pattern).tail_depth == {Q0: 0.0}
    assert ModulatedPiSSA(model, r=24, targets=pattern).mean_tail_depth == 0.0


@pytest.mark.parametrize(
    ("selection", "activations", "message"),
    [
        ("wanda", None, "needs calibration activations"),
        ("act_only", {}, "needs calibration activations"),
        ("cho_rej_min_std", {Q0: torch.zeros(4, 24)}, "'cho' and 'rej'"),
        ("wanda", {Q0: {"cho": torch.zeros(4, 24), "rej": torch.zeros(4, 24)}}, "one tensor"),
        ("wanda", {Q0: torch.zeros(4, 23)}, r"not \[tokens, 24\]"),
        ("wanda", {Q0: torch.zeros(0, 24)}, r"not \[tokens, 24\]"),
        ("cho_rej_min_std", {Q0: {"cho": torch.zeros(1, 24), "rej": torch.zeros(9, 24)}}, "two tokens"),
        ("best", None, "selection must be one of"),
    ],
)
def test_missing_or_unfit_calibration_is_one_sentence(selection: str, activations: object, message: str) -> None:
    with pytest.raises(ModulationError, match=message):
        ModulatedPiSSA(
            tiny_llama(),
            r=2,
            targets=r"layers\.0\.self_attn\.q_proj",
            selection_score=selection,
            calibration_activations=activations,  # type: ignore[arg-type]
        )


def test_gradients_reach_the_changes_and_nothing_else() -> None:
    model = tiny_llama()
    pissa = ModulatedPiSSA(model, r=4, seed=0)
    with pissa(model, c=1.0):
        model(IDS).logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in pissa.parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_checkpoint_of_an_implementation_that_changes_the_weight(tmp_path: Path) -> None:
    original = tiny_llama()
    changed = copy.deepcopy(original)
    names = [name for name, _ in original.named_modules() if name.endswith(("q_proj", "down_proj"))]
    theirs = MutatingPissa(changed, names, r=5, seed=7)
    path = tmp_path / "pissa.safetensors"
    theirs.save(path)
    ours = ModulatedPiSSA.from_checkpoint(original, path)
    for c in (-2.0, -1.0, 0.5, 1.0, 2.0):
        theirs.attach(c)
        expected = logits(changed)
        for handle in theirs.handles:
            handle.remove()
        with ours(original, c=c):
            assert (logits(original) - expected).abs().max() < 1e-5


def test_their_rounds_one_after_another_are_our_stack_in_any_order(tmp_path: Path) -> None:
    original = tiny_llama()
    changed = copy.deepcopy(original)
    names = [name for name, _ in original.named_modules() if name.endswith(("q_proj", "down_proj"))]
    rounds = []
    for number, c in enumerate((1.0, -1.5, 0.5)):
        theirs = MutatingPissa(changed, names, r=3 + number, seed=number)
        theirs.save(tmp_path / f"round{number}.safetensors")
        rounds.append((theirs, c))
    for theirs, c in rounds:
        theirs.attach(c)
    expected = logits(changed)
    ours = [
        (ModulatedPiSSA.from_checkpoint(original, tmp_path / f"round{number}.safetensors"), c)
        for number, (_, c) in enumerate(rounds)
    ]
    for order in ([0, 1, 2], [2, 1, 0]):
        bake = PiSSAHistoryBake(original, [ours[index] for index in order])
        assert (logits(original) - expected).abs().max() < 1e-5
        bake.remove()
    assert (logits(original) - expected).abs().max() > 1e-2


def test_checkpoint_round_trip_and_mismatch(tmp_path: Path) -> None:
    model = tiny_llama()
    pissa = spread(ModulatedPiSSA(model, r=14, targets=["q_proj", "k_proj"], seed=0), seed=2)
    path = tmp_path / "pissa.safetensors"
    pissa.save(path)
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
        keys = set(handle.keys())
    assert metadata["kind"] == "pissa" and metadata["r"] == "14" and metadata["selection_score"] == "s_only"
    assert {"U", "S", "Vh", "delta_s"} == {key.split(".")[0] for key in keys}
    loaded = ModulatedPiSSA.from_checkpoint(model, path)
    assert loaded.tail_depth == {} and loaded.mean_tail_depth is None
    with pissa(model, c=-1.0):
        expected = logits(model)
    with loaded(model, c=-1.0):
        assert torch.equal(logits(model), expected)
    other = ModulatedPiSSA(model, r=3, targets=["k_proj", "v_proj"], seed=0)
    with pytest.raises(ModulationError, match="12 trained tensors would be dropped and 12 left empty"):
        other.load(path)
    same = ModulatedPiSSA(model, r=3, targets=["q_proj", "k_proj"], seed=0)
    same.load(path)
    with same(model, c=-1.0):
        assert torch.equal(logits(model), expected)


def test_lora_checkpoints_are_not_taken_for_pissa(tmp_path: Path) -> None:
    from dlm_tui.model import ModulatedLoRA

    model = tiny_llama()
    ModulatedLoRA(model, r=2).save(tmp_path / "lora.safetensors")
    ModulatedPiSSA(model, r=2).save(tmp_path / "pissa.safetensors")
    with pytest.raises(ModulationError, match="not a PiSSA checkpoint"):
        ModulatedPiSSA.from_checkpoint(model, tmp_path / "lora.safetensors")
    with pytest.raises(ModulationError, match="not a LoRA"):
        ModulatedLoRA.from_checkpoint(model, tmp_path / "pissa.safetensors")


def test_packed_weights_can_be_steered_too() -> None:
    model = tiny_llama()
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.q_proj = PackedLinear(layer.self_attn.q_proj)
    base = logits(model)
    pissa = spread(ModulatedPiSSA(model, r=6, targets="q_proj", seed=0), seed=3)
    dense = copy.deepcopy(model)
    for name in pissa.target_names:
        packed = dense.get_submodule(name)
        plain = nn.Linear(packed.in_features, packed.out_features, bias=False)
        plain.weight.data = packed.weight.view(packed.out_features, -1).float() * packed.step + dense_delta(pissa, name)
        dense.set_submodule(name, plain)
    with pissa(model, c=1.0):
        assert (logits(model) - logits(dense)).abs().max() < 1e-5
    assert torch.equal(logits(model), base)
