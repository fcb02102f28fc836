"""Several adapters as one: exact, by stacking along the rank axis.

    W + Σᵢ wᵢ·sᵢ·Bᵢ·Aᵢ  =  W + [w₁s₁B₁ | w₂s₂B₂ | …] · [A₁; A₂; …]

Averaging the factors themselves (PEFT's `linear`) is a different and wrong matrix; the tests show by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dlm_tui.export.requests import ExportRefused


class LowRankLike(Protocol):
    """A low-rank addition `scale · lora_B @ lora_A`: lora_A [r, in], lora_B [out, r]."""

    @property
    def lora_A(self) -> Tensor: ...

    @property
    def lora_B(self) -> Tensor: ...

    @property
    def scale(self) -> float: ...

    @property
    def tokens(self) -> bool: ...


class AdapterLike(Protocol):
    """A named adapter: module name -> low-rank addition."""

    @property
    def modules(self) -> Mapping[str, LowRankLike]: ...


@dataclass(frozen=True)
class LoraPair:
    """lora_A [r, in] and lora_B [out, r] in float32, the scale folded into `lora_B`.

    With `tokens` it changes the token embedding, lora_A [r, vocabulary].
    """

    lora_A: Tensor
    lora_B: Tensor
    tokens: bool = False

    @property
    def rank(self) -> int:
        """Rows of `lora_A`."""
        return int(self.lora_A.shape[0])

    @property
    def turned(self) -> LoraPair:
        """The same addition to a weight that is stored as [in, out], as embeddings and GPT-2's Conv1D are."""
        return LoraPair(self.lora_B.T.contiguous(), self.lora_A.T.contiguous())


def change_embedding(pairs: Mapping[str, LoraPair]) -> bool:
    """Whether one of these changes the token embedding."""
    return any(pair.tokens for pair in pairs.values())


def check_finite(name: str, adapter: AdapterLike) -> None:
    """Raises ExportRefused when a weight of the adapter is NaN or infinite, naming adapter and module."""
    for module, low in adapter.modules.items():
        finite = torch.isfinite(low.lora_A).all() and torch.isfinite(low.lora_B).all()
        if not (finite and torch.isfinite(torch.tensor(float(low.scale)))):
            raise ExportRefused(f"the adapter {name!r} has weights that are not finite in {module!r}: train it again")


def folded(adapter: AdapterLike, weight: float = 1.0) -> dict[str, LoraPair]:
    """The adapter with `weight · scale` folded into lora_B, per module, in float32 on the CPU."""
    pairs = {}
    for module, low in adapter.modules.items():
        lora_B = low.lora_B.detach().to("cpu", torch.float64) * (float(low.scale) * weight)
        lora_A = low.lora_A.detach().to("cpu", torch.float32).contiguous()
        pairs[module] = LoraPair(lora_A, lora_B.float().contiguous(), low.tokens)
    return pairs


def concatenate(adapters: Mapping[str, AdapterLike], mix: Sequence[tuple[str, float]]) -> dict[str, LoraPair]:
    """One pair per module that any weighted adapter changes; ranks add up. Adapters with weight 0 take no part.

    Raises ExportRefused for a missing adapter, non-finite weights of either kind, or a mix of nothing.
    """
    parts: dict[str, list[LoraPair]] = {}
    for name, weight in mix:
        if weight == 0.0:
            continue
        if name not in adapters:
            raise ExportRefused(f"the mix names the adapter {name!r}, which has no trained version")
        check_finite(name, adapters[name])
        for module, pair in folded(adapters[name], weight).items():
            if not torch.isfinite(pair.lora_B).all():
                raise ExportRefused(f"the weight {weight!r} of {name!r} makes {module!r} overflow")
            parts.setdefault(module, []).append(pair)
    if not parts:
        raise ExportRefused("no adapter has a weight other than 0 in this mix: there is nothing to export")
    return {
        module: LoraPair(
            torch.cat([p.lora_A for p in pairs]), torch.cat([p.lora_B for p in pairs], dim=1), pairs[0].tokens
        )
        for module, pairs in parts.items()
    }


def padded(pairs: Mapping[str, LoraPair], shapes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, LoraPair], int]:
    """The same additions with one rank everywhere, and that rank.

    Missing rows are zeros, and every module of `shapes` (name -> (out, in)) that has no pair gets one of zeros.
    """
    rank = max(pair.rank for pair in pairs.values())
    result = {}
    for module, (rows, columns) in shapes.items():
        pair = pairs.get(module)
        lora_A, lora_B = torch.zeros(rank, columns), torch.zeros(rows, rank)
        if pair is not None:
            lora_A[: pair.rank], lora_B[:, : pair.rank] = pair.lora_A, pair.lora_B
        result[module] = LoraPair(lora_A, lora_B, pair is not None and pair.tokens)
    return result, rank
