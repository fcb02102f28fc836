"""One row, column or block of a large tensor that is not what was meant is seen; rounding alone never is."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from dlm_tui.export.quantisation.blocks import dequantise, quantise
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.rounding_check import RoundingCheck

QUANTISED = [
    Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q4_0, Type.Q4_1, Type.IQ4_NL, Type.IQ4_XS,
]  # fmt: skip
KINDS = [Type.F32, Type.F16, Type.BF16, *QUANTISED]


def normal() -> Tensor:
    return torch.randn(3000, 512, generator=torch.Generator().manual_seed(0)) * 0.02


def heavy() -> Tensor:
    torch.manual_seed(0)
    return torch.distributions.StudentT(2.5).sample((600, 512)) * 0.02


def of_all_sizes() -> Tensor:
    return normal()[:600] * torch.logspace(-6, 1, 512)


def outlier() -> Tensor:
    weight = normal()[:600]
    weight[:, 5] *= 100
    return weight


def spiked() -> Tensor:
    weight = normal()[:600]
    return torch.where(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 1 / 300, 100, 1) * weight


def shifted() -> Tensor:
    return normal()[:600] + 0.1


def with_empty_blocks() -> Tensor:
    weight = normal()[:600]
    weight.view(600, -1, 32)[:, ::3] = 0
    weight[::7, :256] = 0
    return weight


def with_tiny_blocks() -> Tensor:
    weight = normal()[:600]
    weight.view(600, -1, 32)[:, ::3] *= 1e-6
    weight[::7, :256] *= 1e-38
    return weight


def blocks_of_all_sizes() -> Tensor:
    sizes = torch.randn(600, 16, 1, generator=torch.Generator().manual_seed(1)).mul(3).exp()
    return (normal()[:600].view(600, 16, 32) * sizes).view(600, 512)


WEIGHTS = [
    normal, heavy, of_all_sizes, outlier, spiked, shifted, with_empty_blocks, with_tiny_blocks, blocks_of_all_sizes,
]  # fmt: skip
_RANDOM = np.random.default_rng(0)
IMPORTANCE: dict[str, np.ndarray | None] = {
    "without importance": None,
    "mild importance": np.exp(_RANDOM.normal(size=512)).astype(np.float32),
    "steep importance": _RANDOM.random(512, dtype=np.float32) ** 4 * 10 + np.float32(1e-3),
    "steepest importance": np.exp(3 * _RANDOM.normal(size=512)).astype(np.float32),
}


def rounded(weight: Tensor, kind: Type, importance: np.ndarray | None = None) -> Tensor:
    if kind not in QUANTISED:
        dtype = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}[kind]
        return weight.to(dtype).float()
    found = dequantise(quantise(weight.numpy(), kind, importance), kind, weight.shape[1])
    return torch.from_numpy(np.array(found))


def share(stored: Tensor, weight: Tensor, kind: Type, importance: np.ndarray | None = None) -> float:
    """The worst row, column or block, read in two pieces as large tensors are."""
    check = RoundingCheck(kind, importance)
    half = len(weight) // 2
    for start, stop in ((0, half), (half, len(weight))):
        check.add(stored[start:stop], weight[start:stop], start)
    try:
        check.judge("w")
    except ExportRefused:
        assert check.worst > 1
    return check.worst


@pytest.mark.parametrize("make", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_alone_is_never_seen(kind: Type, make: Callable[[], Tensor]) -> None:
    weight = make()[:600]
    for weighed in IMPORTANCE if kind in QUANTISED else ["without importance"]:
        importance = IMPORTANCE[weighed]
        assert share(rounded(weight, kind, importance), weight, kind, importance) <= 1, weighed


def long_rows(make: Callable[[], Tensor]) -> Tensor:
    return make().reshape(-1, 512 * 10)


@pytest.mark.parametrize("weighed", IMPORTANCE)
@pytest.mark.parametrize("make", [normal, heavy])
@pytest.mark.parametrize("kind", QUANTISED)
def test_one_block_of_a_long_row_is_seen(kind: Type, make: Callable[[], Tensor], weighed: str) -> None:
    weight, importance = long_rows(make), IMPORTANCE[weighed]
    importance = None if importance is None else np.tile(importance, 10)
    stored = rounded(weight, kind, importance)
    assert share(stored, weight, kind, importance) <= 1
    size = int(gguf.GGML_QUANT_SIZES[kind][0])
    stored[11, 4 * size : 5 * size] = 0
    with pytest.raises(ExportRefused, match=r"row 11 |column "):
        judged(stored, weight, kind, importance)


@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.IQ4_XS])
def test_a_part_of_a_block_with_a_scale_of_its_own_is_seen(kind: Type) -> None:
    weight = long_rows(normal)
    stored, size = rounded(weight, kind), 16 if kind == Type.Q6_K else 32
    stored[9, 3 * size : 4 * size] = 0
    with pytest.raises(ExportRefused, match=rf"row 9 \(columns {3 * size} to {4 * size - 1}\)"):
        judged(stored, weight, kind)


def judged(stored: Tensor, weight: Tensor, kind: Type, importance: np.ndarray | None = None) -> None:
    check = RoundingCheck(kind, importance)
    check.add(stored, weight)
    check.judge("w")


def wiped_row(stored: Tensor) -> str:
    stored[2017] = 0
    return "row 2017"


def swapped_rows(stored: Tensor) -> str:
    stored[[5, 2900]] = stored[[2900, 5]]
    return "row "


def wiped_column(stored: Tensor) -> str:
    stored[:, 17] = 0
    return "column 17"


def shifted_columns(stored: Tensor) -> str:
    stored[:, [3, 4]] = stored[:, [4, 3]]
    return "column "


def not_a_number(stored: Tensor) -> str:
    stored[7, 7] = torch.nan
    return "row 7"


@pytest.mark.parametrize("damage", [wiped_row, swapped_rows, wiped_column, shifted_columns, not_a_number])
@pytest.mark.parametrize("kind", KINDS)
def test_one_row_or_column_is_seen(kind: Type, damage: Callable[[Tensor], str]) -> None:
    weight = normal()
    stored = rounded(weight, kind).clone()
    where, check = damage(stored), RoundingCheck(kind)
    check.add(stored, weight)
    with pytest.raises(ExportRefused, match=where):
        check.judge("w")


def test_a_vector_and_matrices_of_experts_are_looked_at_too() -> None:
    vector = torch.linspace(0.5, 2, 300)
    check = RoundingCheck(Type.F32)
    check.add(vector, vector)
    check.judge("norm")
    changed = vector.clone()
    changed[9] *= 1.01
    check.add(changed, vector)
    with pytest.raises(ExportRefused, match="column 9 of norm"):
        check.judge("norm")
    experts = normal()[:60].reshape(3, 20, 512)
    check = RoundingCheck(Type.BF16)
    check.add(experts[:2].bfloat16(), experts[:2])
    wrong = experts[2:].bfloat16()
    wrong[0, 4] = 0
    check.add(wrong, experts[2:], 2)
    with pytest.raises(ExportRefused, match="row 44 of experts"):
        check.judge("experts")
