"""Null adapters: random ones of the same shapes and size as the trained ones, to tell an effect from noise.

A null has, on every layer that any trained adapter changes, Gaussian factors lora_B [d_out, r] and lora_A [r, d_in],
r the largest trained rank there. Their standard deviation σ is chosen per layer so that the expected squared Frobenius
norm of the addition, scale² · r · d_out · d_in · σ⁴, is the mean of the trained adapters' squared norms on that
layer (an adapter without the layer counts as 0): a random change as large as a trained one. With a fixed
`init_scale`, σ = init_scale · √rank_scale everywhere instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dlm_tui.model import Adapter, LowRank, MixedModel
from dlm_tui.scoring.protocols import null_scale

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class NullShape:
    """One layer of a null: dimensions, scale, and σ of a null as large as the trained adapters."""

    d_in: int
    d_out: int
    rank: int
    scale: float
    matched: float
    tokens: bool = False


def null_shapes(adapters: Mapping[str, Adapter]) -> dict[str, NullShape]:
    """The layers of a null for these trained adapters, sorted by name."""
    shapes = {}
    for module in sorted({module for adapter in adapters.values() for module in adapter.modules}):
        pairs = [adapter.modules[module] for adapter in adapters.values() if module in adapter.modules]
        widest = max(pairs, key=lambda pair: pair.rank)
        rank, d_in, d_out = widest.rank, widest.lora_A.shape[1], widest.lora_B.shape[0]
        scale = abs(widest.scale) or 1.0
        power = sum(squared_norm(pair) for pair in pairs) / len(adapters)
        matched = (power / (scale**2 * rank * d_in * d_out)) ** 0.25
        shapes[module] = NullShape(d_in, d_out, rank, scale, matched, widest.tokens)
    return shapes


@torch.no_grad()
def squared_norm(pair: LowRank) -> float:
    """‖scale · lora_B · lora_A‖² (Frobenius) as the trace of two small Gram matrices' product."""
    lora_A, lora_B = pair.lora_A.double(), pair.lora_B.double()
    trace = float(((lora_B.T @ lora_B) * (lora_A @ lora_A.T)).sum())
    return float(pair.scale**2 * trace)


def null_adapter(
    shapes: Mapping[str, NullShape], seed: int, init_scale: float | None = None, rank_scale: float = 1.0
) -> Adapter:
    """The null adapter of a seed, on the CPU in float32. Raises NullScaleError for scales that are not positive and
    finite.
    """
    factor = null_scale(1.0 if init_scale is None else init_scale, rank_scale)
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for module, shape in shapes.items():
        sigma = factor * (shape.matched if init_scale is None else 1.0)
        lora_A = sigma * torch.randn(shape.rank, shape.d_in, generator=generator)
        lora_B = sigma * torch.randn(shape.d_out, shape.rank, generator=generator)
        modules[module] = LowRank(lora_A, lora_B, shape.scale, shape.tokens)
    return Adapter(f"null {seed}", modules)


def null_seeds(seed: int, count: int) -> list[int]:
    """`count` independent seeds grown from one, far from small seeds that a person would type."""
    state = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [int(value) >> 1 for value in state]


def fingerprint(model: MixedModel) -> Fingerprint:
    """Changes when an adapter is exchanged, or a weight of adapter or base is written to."""
    marks = [
        (name, id(adapter), sum(_writes(t) for pair in adapter.modules.values() for t in (pair.lora_A, pair.lora_B)))
        for name, adapter in model.adapters.items()
    ]
    marks.append(("", id(model.base), sum(_writes(weight) for weight in model.base.model.parameters())))
    return tuple(marks)


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@dataclass
class NullBank:
    """The null adapters of one model, made once and kept until a weight changes."""

    mark: Fingerprint = ()
    shapes: dict[str, NullShape] = field(default_factory=dict)
    kept: dict[int, Adapter] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()


_KEPT = 64
_BANKS: weakref.WeakKeyDictionary[MixedModel, NullBank] = weakref.WeakKeyDictionary()


def matched_nulls(model: MixedModel, seeds: Sequence[int], rank_scale: float = 1.0) -> list[Adapter]:
    """Nulls as large as the model's trained adapters, in the order of `seeds`. Empty without trained adapters.

    With another `rank_scale` than 1 their standard deviation is multiplied by its root. Raises NullScaleError.
    """
    if not model.adapters:
        return []
    bank, mark = _BANKS.setdefault(model, NullBank()), fingerprint(model)
    if bank.mark != mark:
        # the adapters are held so that a new one cannot get the address of an old one
        bank.mark, bank.adapters = mark, tuple(model.adapters.values())
        bank.shapes, bank.kept = null_shapes(model.adapters), {}
    if rank_scale != 1.0:
        return [null_adapter(bank.shapes, seed, rank_scale=rank_scale) for seed in seeds]
    found = [bank.kept.get(seed) or null_adapter(bank.shapes, seed) for seed in seeds]
    # the newest ones stay: those of the last prompt are asked for again with the next
    bank.kept = dict(list({**bank.kept, **dict(zip(seeds, found, strict=True))}.items())[-_KEPT:])
    return found
