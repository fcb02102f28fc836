"""Stacking adapters into one is exact, whatever their ranks, targets and scales."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dlm_tui.export.concatenate import concatenate, folded, padded
from dlm_tui.export.requests import ExportRefused


def adapter(rank: int, seed: int, modules: tuple[str, ...] = ("q", "v"), scale: float = 2.0) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        module: SimpleNamespace(
            lora_A=torch.randn(rank, 12, generator=generator),
            tokens=False,
            lora_B=torch.randn(10, rank, generator=generator),
            scale=scale,
        )
        for module in modules
    }
    return SimpleNamespace(modules=pairs)


def delta(adapters: dict[str, SimpleNamespace], mix: list[tuple[str, float]], module: str) -> Tensor:
    """The plain sum in float64."""
    total = torch.zeros(10, 12, dtype=torch.float64)
    for name, weight in mix:
        low = adapters[name].modules.get(module)
        if low is not None:
            total += weight * low.scale * low.lora_B.double() @ low.lora_A.double()
    return total


TRIO = {
    "a": adapter(4, 1, ("q", "v")),
    "b": adapter(1, 2, ("q",), scale=0.5),
    "c": adapter(9, 3, ("q", "v", "o"), scale=8 / math.sqrt(9)),
}


@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (1.0, 0.0, 0.0), (-0.7, 1.9, 0.01), (0.0, 3.0, -2.0)])
def test_the_stack_equals_the_sum(weights: tuple[float, float, float]) -> None:
    mix = list(zip("abc", weights, strict=True))
    pairs = concatenate(TRIO, mix)
    used = {name for name, weight in mix if weight}
    touched = {module for name in used for module in TRIO[name].modules}
    assert set(pairs) == touched
    for module, pair in pairs.items():
        expected = delta(TRIO, mix, module)
        assert pair.rank == sum(TRIO[n].modules[module].lora_A.shape[0] for n in used if module in TRIO[n].modules)
        error = (pair.lora_B.double() @ pair.lora_A.double() - expected).abs().max() / expected.abs().max()
        assert error < 3e-7


def test_padding_changes_nothing_and_makes_one_rank() -> None:
    mix = [("a", 0.5), ("b", 0.25), ("c", 0.25)]
    pairs = concatenate(TRIO, mix)
    shapes = {"q": (10, 12), "v": (10, 12), "o": (10, 12), "untouched.q": (6, 5)}
    uniform, rank = padded(pairs, shapes)
    assert rank == 14
    assert set(uniform) == set(shapes)
    for module, pair in uniform.items():
        assert pair.lora_A.shape == (14, shapes[module][1])
        assert pair.lora_B.shape == (shapes[module][0], 14)
        if module in pairs:
            torch.testing.assert_close(pair.lora_B @ pair.lora_A, pairs[module].lora_B @ pairs[module].lora_A)
        else:
            assert not (pair.lora_B @ pair.lora_A).any()


def test_folding_takes_the_scale_into_up() -> None:
    pair = folded(TRIO["c"], 3.0)["o"]
    low = TRIO["c"].modules["o"]
    torch.testing.assert_close(pair.lora_B, low.lora_B * (3.0 * low.scale))
    assert torch.equal(pair.lora_A, low.lora_A)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    for side in ("lora_A", "lora_B"):
        broken = adapter(2, 4)
        getattr(broken.modules["v"], side)[0, 0] = value
        with pytest.raises(ExportRefused, match=r"'broken'.*'v'"):
            concatenate({"broken": broken}, [("broken", 1.0)])


def test_a_broken_adapter_with_weight_zero_is_not_in_the_way() -> None:
    broken = adapter(2, 4)
    broken.modules["v"].lora_B[0, 0] = math.nan
    assert concatenate({"a": TRIO["a"], "x": broken}, [("a", 1.0), ("x", 0.0)])


def test_nothing_to_export_missing_and_overflowing_are_refused() -> None:
    with pytest.raises(ExportRefused, match="nothing to export"):
        concatenate(TRIO, [("a", 0.0), ("b", 0.0)])
    with pytest.raises(ExportRefused, match="'d'"):
        concatenate(TRIO, [("d", 1.0)])
    with pytest.raises(ExportRefused, match="overflow"):
        concatenate(TRIO, [("a", 1e39)])


def test_order_does_not_matter_for_the_sum() -> None:
    mix = [("a", 0.5), ("b", -0.25), ("c", 0.75)]
    sums = [
        (pair.lora_B.double() @ pair.lora_A.double())
        for order in itertools.permutations(mix)
        for pair in [concatenate(TRIO, list(order))["q"]]
    ]
    assert max((one - sums[0]).abs().max() for one in sums) < 1e-6
