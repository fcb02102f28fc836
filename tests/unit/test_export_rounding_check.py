"""One row or column of a large tensor that is not what was meant is seen; rounding alone never is."""

from __future__ import annotations

from collections.abc import Callable

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


def rounded(weight: Tensor, kind: Type, importance: np.ndarray | None = None) -> Tensor:
    if kind not in QUANTISED:
        dtype = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}[kind]
        return weight.to(dtype).float()
    found = dequantise(quantise(weight.numpy(), kind, importance), kind, weight.shape[1])
    return torch.from_numpy(np.array(found))


def share(stored: Tensor, weight: Tensor, kind: Type, *, weighed: bool = False) -> float:
    """The worst row or column, read in two pieces as large tensors are."""
    check = RoundingCheck(kind, weighed=weighed)
    half = len(weight) // 2
    for start, stop in ((0, half), (half, len(weight))):
        check.add(stored[start:stop], weight[start:stop], start)
    try:
        check.judge("w")
    except ExportRefused:
        assert check.worst > 1
    return check.worst


@pytest.mark.parametrize("make", [normal, heavy, of_all_sizes, outlier])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_alone_is_never_seen(kind: Type, make: Callable[[], Tensor]) -> None:
    weight = make()
    assert share(rounded(weight, kind), weight, kind) <= 1
    if kind in QUANTISED:
        importance = np.random.default_rng(0).random(weight.shape[1], dtype=np.float32) ** 4 * 10 + 1e-3
        assert share(rounded(weight, kind, importance), weight, kind, weighed=True) <= 1


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
