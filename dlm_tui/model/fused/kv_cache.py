"""The preallocated key-value cache of the fused tier, with rows of unequal length packed without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlm_tui.model.backbone import KVCache

_STEP = 64


@dataclass(frozen=True)
class Plan:
    """Where the tokens of one forward pass go.

    `positions` [1 or B, T]; `start` is the common first position, None when rows differ; `mask` (True: may look)
    broadcasts to [B, heads, T, longest], None where causal order alone decides.
    """

    positions: Tensor
    start: int | None
    longest: int
    new: tuple[int, ...]
    mask: Tensor | None
    _windows: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def apart(cls, positions: Tensor, longest: int, new: tuple[int, ...]) -> Plan:
        """For rows that differ: tokens at `positions` [B, T], looking at what stands at or before them."""
        mask = torch.arange(longest, device=positions.device) <= positions[:, :, None]
        return cls(positions, None, longest, new, mask[:, None])

    def mask_within(self, window: int) -> Tensor | None:
        """`mask` for a layer that looks at most `window` tokens back, itself included (0: at all of them)."""
        if not window or window >= self.longest:
            return self.mask
        if window not in self._windows:
            places = torch.arange(self.longest, device=self.positions.device)
            queries = self.positions[:, :, None]
            self._windows[window] = ((places <= queries) & (places > queries - window))[:, None]
        return self._windows[window]


class FusedKVCache:
    """Keys and values as one tensor `kv` [layers, 2, B, kv heads, capacity, head dim], grown by half when full.

    A token of a row stands at its position; what padding wrote behind a row's end is overwritten by its next token.
    Where the rotary table depends on a row's length, `tokens` are the row's own, and `far` says by which its keys were
    turned (see `FusedWeights.rope`).
    """

    def __init__(
        self, batch: int, capacity: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.batch = batch
        self.lengths = [0] * batch
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.far = [False] * batch
        self._shape = shape
        layers, heads, width = shape
        size = -(-max(capacity, 1) // _STEP) * _STEP
        # zeros, because masked positions still take part in a product with weight 0
        self.kv = torch.zeros(layers, 2, batch, heads, size, width, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return int(self.kv.shape[4])

    @property
    def nbytes(self) -> int:
        return int(self.kv.nbytes)

    def plan(self, count: int, batch: int, lengths: Sequence[int] | None) -> Plan:
        """Make room for `count` more tokens per row and say where they go. Nothing is held until `advance`."""
        if batch != self.batch:
            raise ValueError(f"{batch} rows for a cache of {self.batch}")
        new = tuple(lengths) if lengths is not None else (count,) * batch
        empty = any(kv + more < 1 for kv, more in zip(self.lengths, new, strict=False))
        if len(new) != batch or min(new) < 0 or max(new) > count or empty:
            raise ValueError(f"lengths {new} do not fit {batch} rows of {count} tokens")
        longest = max(self.lengths) + count
        self._reserve(longest)
        device = self.kv.device
        steps = torch.arange(count, device=device)
        if len(set(self.lengths)) > 1:
            return Plan.apart(torch.tensor(self.lengths, device=device)[:, None] + steps, longest, new)
        start = self.lengths[0]
        positions = (steps + start)[None]
        mask = None
        if start > 0 and count > 1:
            mask = torch.arange(longest, device=device)[None] <= positions[0][:, None]
        return Plan(positions, start, longest, new, mask)

    def write(self, layer: int, keys: Tensor, values: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Store `keys` and `values` [B, T, kv heads, D]; returns all of the layer [B, kv heads, longest, D]."""
        held_keys, held_values = self.kv[layer]
        if plan.start is not None:
            held_keys[:, :, plan.start : plan.longest] = keys.transpose(1, 2)
            held_values[:, :, plan.start : plan.longest] = values.transpose(1, 2)
        else:
            rows = torch.arange(self.batch, device=keys.device)[:, None]
            held_keys[rows, :, plan.positions] = keys
            held_values[rows, :, plan.positions] = values
        return held_keys[:, :, : plan.longest], held_values[:, :, : plan.longest]

    def advance(self, plan: Plan) -> None:
        """Count the tokens of a finished pass."""
        self.lengths = [kv + more for kv, more in zip(self.lengths, plan.new, strict=True)]

    def note(self, ids: Tensor, plan: Plan) -> None:
        """Remember the tokens `ids` [B, T] of a finished pass, before they are counted."""
        for held, new, more in zip(self.tokens, ids.tolist(), plan.new, strict=True):
            held.extend(new[:more])

    def crop(self, length: int) -> None:
        """Keep at most the first `length` tokens of every row; costs nothing."""
        self.lengths = [min(kv, length) for kv in self.lengths]
        self.tokens = [held[:length] for held in self.tokens]

    def repeat(self, batch: int) -> FusedKVCache:
        """A new cache of `batch` rows, each a copy of this cache's only row."""
        if self.batch != 1:
            raise ValueError("only a cache of one row can be repeated")
        return self.select([0] * batch)

    def select(self, rows: Sequence[int]) -> FusedKVCache:
        """A new cache of the given rows, in that order, with the same capacity."""
        other = FusedKVCache(len(rows), self.capacity, self._shape, self.kv.dtype, self.kv.device)
        other.lengths = [self.lengths[row] for row in rows]
        other.tokens, other.far = [list(self.tokens[row]) for row in rows], [self.far[row] for row in rows]
        used = max(other.lengths, default=0)
        other.kv[..., :used, :] = self.kv[:, :, list(rows), :, :used]
        return other

    def joined(self, others: Sequence[FusedKVCache]) -> FusedKVCache:
        """A new cache of this one's rows followed by those of `others`."""
        parts = [self, *others]
        lengths = [length for part in parts for length in part.lengths]
        capacity = max(part.capacity for part in parts)
        other = FusedKVCache(len(lengths), capacity, self._shape, self.kv.dtype, self.kv.device)
        other.lengths = lengths
        other.tokens = [list(held) for part in parts for held in part.tokens]
        other.far = [far for part in parts for far in part.far]
        first = 0
        for part in parts:
            used = max(part.lengths, default=0)
            other.kv[:, :, first : first + part.batch, :, :used] = part.kv[..., :used, :]
            first += part.batch
        return other

    def adopt(self, source: KVCache, length: int) -> None:
        """Hold the first `length` tokens of the only row of `source` in every row, instead of what was held."""
        if not isinstance(source, FusedKVCache):
            raise TypeError("this cache belongs to another tier")
        if source.batch != 1 or not 0 <= length <= source.lengths[0]:
            raise ValueError(f"only the first tokens of a single row can be adopted, not {length} of {source.lengths}")
        self._reserve(length)
        self.kv[..., :length, :] = source.kv[..., :length, :]
        self.lengths = [length] * self.batch
        self.tokens = [source.tokens[0][:length] for _ in range(self.batch)]
        self.far = [source.far[0]] * self.batch

    def _reserve(self, length: int) -> None:
        if length <= self.capacity:
            return
        size = -(-max(length, self.capacity * 3 // 2) // _STEP) * _STEP
        self.kv = torch.nn.functional.pad(self.kv, (0, 0, 0, size - self.capacity))
