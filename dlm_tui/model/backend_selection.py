"""Which forward a base gets: the fused one where it proves itself against the reference, else a safe one."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from dlm_tui.model.backbone import Backbone, ReferenceBackbone
from dlm_tui.model.base import Base
from dlm_tui.model.fused.compiled_decode import compiles, fits
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.fused.weights import FusedWeights, eligible
from dlm_tui.model.linear import onednn_works
from dlm_tui.model.mixer import Mixer
from dlm_tui.model.onednn import OneDnnBackbone
from dlm_tui.model.pages import give_back_freed
from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.system_errors import first_line

LOGITS_TOLERANCE = 1e-4
HIDDEN_TOLERANCE = 1e-5
_PROBE = 24
_NARROW = 12
"""A window, in tokens, that the probe is longer than."""
_BEHIND = (_PROBE, 100, 511)
"""Positions that the probe does not come to."""
_DOES_NOT_FIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_NOT_COMPILED = "the compiled step cannot be built here, or gave other numbers"

_APART = (
    "it counts what stands between tokens, not their positions, so answers of unequal length are decoded one by one"
)


class _Refused(Exception):
    """Why the fused forward is not taken, as a clause."""


def fastest(base: Base, mixer: Mixer) -> Backbone:
    """The quickest backbone that is right for this base. The first call runs the self-check, later ones reuse it.

    Raises BaseUnavailable, by the first call, for a base whose numbers are not finite.
    """
    if base.fused is None:
        fused = _admit(base)
        if isinstance(fused, str):  # the self-check passes with finite numbers only
            _refuse_not_finite(base)
        base.fused = fused
        give_back_freed()
    if isinstance(base.fused, FusedWeights):
        return FusedBackbone(
            base, base.fused, mixer, compiled=base.fused.compiled, uses_bf16_weights=base.fused.uses_bf16_weights
        )
    quick = base.device.type == "cpu" and not base.is_offloaded and onednn_works(base.dtype)
    backbone = OneDnnBackbone(base, mixer) if quick else ReferenceBackbone(base, mixer)
    if not base.is_offloaded:  # one that lies on the disk is read for that once a cache is asked for
        backbone.settle_rows()
    return backbone


def why_slower(base: Base) -> str:
    """Why this base does not get the compiled fused forward, as a clause; "" where it does. After `fastest`."""
    if isinstance(base.fused, str):
        return f"{base.fused}; {_APART}" if base.rows_apart else base.fused
    if isinstance(base.fused, FusedWeights) and not base.fused.compiled and base.device.type == "cpu":
        return _NOT_COMPILED
    return ""


def _admit(base: Base) -> FusedWeights | str:
    """The fused weights, or why they do not apply: the base is not described, or they disagree with the reference.

    Only the compiled step is quick with weights that are kept as stored: for all others they are widened.
    """
    if (reason := eligible(base)) is None:
        try:
            return _proven(base)
        except _Refused as refusal:
            reason = str(refusal)
        except _DOES_NOT_FIT as error:  # whatever a module that is built differently leads to
            reason = f"its architecture's description does not fit it: {first_line(error)}"
    if base.is_as_stored:
        base.widen()
    return reason


def _proven(base: Base) -> FusedWeights:
    """The fused weights, on the quickest step that agrees with the reference. Raises _Refused where none does."""
    weights = FusedWeights(base)
    compiled = fits(weights) and compiles()
    if weights.is_as_stored:
        weights.compiled = compiled and _is_right(base, weights, compiled=True, uses_bf16_weights=True)
        weights.uses_bf16_weights = weights.compiled
        if weights.compiled:
            return weights
        base.widen()
        if base.is_as_stored:
            raise _Refused("its weights have no room as float32")
        return _proven(base)
    weights.compiled = compiled and _is_right(base, weights, compiled=True)
    weights.uses_bf16_weights = weights.compiled and _has_memory_for_bf16_copy(weights) and weights.is_exact_in_bf16()
    if weights.compiled or _is_right(base, weights):
        return weights
    raise _Refused("the fused forward gave other numbers than transformers")


def _is_right(base: Base, weights: FusedWeights, *, compiled: bool = False, uses_bf16_weights: bool = False) -> bool:
    """Whether these weights on that step agree with the reference, also where a window slides and behind the probe."""
    reference = ReferenceBackbone(base)
    with _narrow_windows(base, weights):
        step = FusedBackbone(base, weights, reference.mixer, compiled=compiled, uses_bf16_weights=uses_bf16_weights)
        return agrees(step, reference, 2 if weights.spec.experts else 1) and _turns_alike(weights)


@contextlib.contextmanager
def _narrow_windows(base: Base, weights: FusedWeights) -> Iterator[None]:
    """Windows shorter than the probe in place of the true ones, here and in the library, which are longer."""
    window, layers = getattr(base.config, "sliding_window", None), weights.layers
    if not window:
        yield
        return
    base.config.sliding_window = narrow = min(window, _NARROW)
    weights.layers = [
        replace(layer, spec=replace(layer.spec, window=narrow)) if layer.spec.window else layer for layer in layers
    ]
    try:
        yield
    finally:
        base.config.sliding_window, weights.layers = window, layers


def _turns_alike(weights: FusedWeights) -> bool:
    """Whether the rotary tables hold behind the probe what the library says of each position alone."""
    tables = weights.rope(max(_BEHIND) + 1)
    alone = [weights.rotation(torch.tensor([position], device=weights.device)) for position in _BEHIND]
    return all(
        close(table[:, position], wanted[:, 0], HIDDEN_TOLERANCE)
        for position, pair in zip(_BEHIND, alone, strict=True)
        for table, wanted in zip(tables, pair, strict=True)
    )


def _refuse_not_finite(base: Base) -> None:
    """Raises BaseUnavailable where a first token has a hidden state or a logit that is not finite: such a base answers
    nothing, without a word. One that lies on the disk is not read once more for that."""
    if base.is_offloaded:
        return
    reference = ReferenceBackbone(base)
    hidden = reference.forward(torch.zeros(1, 1, dtype=torch.long))
    if not (bool(hidden.isfinite().all()) and bool(reference.logits(hidden).isfinite().all())):
        raise BaseUnavailable(
            f"the base {base.source.title} gives numbers that are not finite; its files are damaged: fetch them again"
        )


def _has_memory_for_bf16_copy(weights: FusedWeights) -> bool:
    """Whether a copy of half the weights' size takes at most an eighth of the memory that is free."""
    copy = sum(part.numel() for layer in weights.matrices for parts in layer for part in parts) * 2
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return False  # macOS does not tell
    return copy * 8 <= os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def agrees(candidate: Backbone, reference: Backbone, probes: int = 1) -> bool:
    """Whether two backbones give the same numbers on a seeded probe: whole, in pieces, with unequal rows, and one row
    by twelve, one, two and eight tokens.

    One of several `probes` is enough: with experts a router that hardly prefers one to the next can choose the other.

    In float32, hidden states within 1e-5 and logits within 1e-4 of the reference, both relative to the largest value
    where that exceeds 1; for half-precision weights within 5 %, the size of that format's own rounding.

    Where the rotary table depends on how long a text is, once as a short one and once as a long one.
    """
    if not any(_agrees(candidate, reference, seed) for seed in range(probes)):
        return False
    if not isinstance(candidate, FusedBackbone) or candidate.weights.switch is None:
        return True
    with _as_long_texts(candidate.weights):
        return any(_agrees(candidate, reference, seed) for seed in range(probes))


@contextlib.contextmanager
def _as_long_texts(weights: FusedWeights) -> Iterator[None]:
    """Every text is read as one behind the length at which the rotary table changes, here and by the library."""
    weights.rope(1, far=True)  # the library makes the other table when it is first asked, and by the true length
    rope, before = weights.rotary.config.rope_parameters, weights.switch
    key = "original_max_position_embeddings"
    stated = rope[key]
    weights.switch = rope[key] = 0
    try:
        yield
    finally:
        weights.switch, rope[key] = before, stated


def _agrees(candidate: Backbone, reference: Backbone, seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    count = min(_PROBE, reference.vocab_size)
    ids = torch.randint(0, reference.vocab_size, (2, count), generator=generator)
    wanted = reference.forward(ids)
    exact = wanted.dtype == torch.float32
    cache = candidate.new_cache(2, count)
    first = candidate.forward(ids[:, : count // 2], cache, lengths=[count // 2, count // 3])
    ragged = torch.stack([ids[0, count // 2 :], ids[1, count // 3 : count // 3 + count - count // 2]])
    second = candidate.forward(ragged[:, :-1], cache)
    third = candidate.forward(ragged[:, -1:], cache)
    pieces = torch.cat([second, third], dim=1)
    alone = candidate.new_cache(1, count)
    ends = (0, count // 2, count // 2 + 1, count // 2 + 3, min(count, count // 2 + 11))
    single = torch.cat([candidate.forward(ids[:1, a:b], alone) for a, b in pairwise(ends)], dim=1)
    expected = torch.stack([wanted[0, count // 2 :], wanted[1, count // 3 : count // 3 + count - count // 2]])
    hidden_limit, logits_limit = (HIDDEN_TOLERANCE, LOGITS_TOLERANCE) if exact else (5e-2, 5e-2)
    alike = (
        close(candidate.forward(ids), wanted, hidden_limit)
        and close(first[0], wanted[0, : count // 2], hidden_limit)
        and close(pieces, expected, hidden_limit)
        and close(single, wanted[:1, : ends[-1]], hidden_limit)
    )
    give_back_freed()  # before the vocabulary's pages come, which may be most of the base
    return alike and close(candidate.logits(wanted[:, -1]), reference.logits(wanted[:, -1]), logits_limit)


def close(found: Tensor, wanted: Tensor, limit: float) -> bool:
    """Largest difference at most `limit` times the largest wanted magnitude (or 1)."""
    largest = max(1.0, _largest(wanted.float()))
    return _largest(found.float() - wanted.float()) <= limit * largest


def _largest(numbers: Tensor) -> float:
    return float(torch.linalg.vector_norm(numbers, math.inf))
