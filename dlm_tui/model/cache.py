"""The key-value cache of the reference path: crop to any length, rows of unequal length, any architecture.

Layers that attend to everything or to a sliding window keep all their keys and values, so that cropping is a slice;
the window is then only a matter of the mask. Architectures with running states (linear attention and its like) cannot
go back: their cache remembers the tokens and runs them again. So does that of a base whose rotary table depends on the
length of the text, where the longest row comes to another table: like the library it reads a batch by its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dlm_tui.model.architectures.spec import switch_length

_CROPPABLE = {"full_attention", "sliding_attention"}


class ReferenceCache:
    """Keys and values in slots; a row that is shorter than others has gaps, which are masked."""

    def __init__(self, batch: int, config: Any, stateful: bool = False) -> None:
        self.batch = batch
        self.lengths = [0] * batch
        self._config = config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None)
        self._window = int(window) if window else None
        self.recomputes = stateful or not kinds <= _CROPPABLE
        self._switch = switch_length(config)
        self._far: bool | None = False  # whether the keys were turned as those behind the switch; None: some of them
        self._cache: Any = DynamicCache()
        self._valid: Tensor | None = None  # [B, slots] bool; None: no gaps
        self._ids: list[list[int]] = [[] for _ in range(batch)]

    @property
    def slots(self) -> int:
        """Positions allocated per row, gaps included."""
        return int(self._valid.shape[1]) if self._valid is not None else max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        kv = [layer for layer in self._cache.layers if layer.is_initialized]
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in kv)

    def extend(self, ids: Tensor, lengths: Sequence[int] | None, run: Callable[..., Tensor]) -> Tensor:
        """Run new tokens `ids` [B, T] on top of what is held; see `Backbone.forward`."""
        batch, count = ids.shape
        if batch != self.batch:
            raise ValueError(f"{batch} rows for a cache of {self.batch}")
        new = list(lengths) if lengths is not None else [count] * batch
        empty = any(kv + more < 1 for kv, more in zip(self.lengths, new, strict=False))
        if len(new) != batch or min(new) < 0 or max(new) > count or empty:
            raise ValueError(f"lengths {new} do not fit ids of shape {tuple(ids.shape)}")
        for row, row_ids in enumerate(ids.tolist()):
            self._ids[row] += row_ids[: new[row]]
        if self._switch is not None:
            far = max(map(len, self._ids)) > self._switch
            turned, self._far = far != self._far and any(self.lengths), far
            if turned and not self.recomputes:
                return self._run_anew(ids, new, run)
        gaps = self._valid is not None or min(new) != max(new)
        if self.recomputes or (gaps and self._window is not None and self.slots + count > self._window):
            return self._recompute(ids, new, run)
        held = torch.tensor(self.lengths, device=ids.device)[:, None]
        positions = held + torch.arange(count, device=ids.device)
        if self._switch is not None:
            # padding stands where its row ends: the library takes the last position for the length of the text
            positions = torch.minimum(positions, held + torch.tensor(new, device=ids.device).clamp(min=1)[:, None] - 1)
        mask = None
        if self._valid is not None:
            # the new tokens count as real here: padding stands after them, where causal attention does not look
            fresh = torch.ones(batch, count, dtype=torch.bool, device=ids.device)
            mask = torch.cat([self._valid, fresh], dim=1).long()
        hidden = run(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions if mask is not None or (gaps and self._switch is not None) else positions[:1],
            past_key_values=self._cache,
            use_cache=True,
        )
        if gaps:
            kv = self._valid
            if kv is None:
                kv = torch.ones(batch, self.slots, dtype=torch.bool, device=ids.device)
            real = torch.arange(count, device=ids.device)[None] < torch.tensor(new, device=ids.device)[:, None]
            self._valid = torch.cat([kv, real], dim=1)
        self.lengths = [length + more for length, more in zip(self.lengths, new, strict=True)]
        return hidden

    def crop(self, length: int) -> None:
        """Keep at most the first `length` tokens of every row."""
        if length >= max(self.lengths, default=0):
            return
        self.lengths = [min(kv, length) for kv in self.lengths]
        self._ids = [kv[:length] for kv in self._ids]
        if self._valid is not None:
            self._close_gaps()
        elif length == 0:
            # the library's own crop cannot empty a cache
            self._cache = DynamicCache()
        else:
            self._each_layer(lambda tensor: tensor[:, :, :length])

    def repeat(self, batch: int) -> ReferenceCache:
        """A new cache of `batch` rows, each a copy of this cache's only row."""
        if self.batch != 1:
            raise ValueError("only a cache of one row can be repeated")
        return self.select([0] * batch)

    def select(self, rows: Sequence[int]) -> ReferenceCache:
        """A new cache of the given rows, in that order."""
        other = ReferenceCache(len(rows), self._config)
        other.recomputes = self.recomputes
        other.lengths, other._far = [self.lengths[row] for row in rows], self._far
        other._ids = [list(self._ids[row]) for row in rows]
        other._valid = self._valid[list(rows)] if self._valid is not None else None
        for index, layer in enumerate(self._cache.layers):
            if layer.is_initialized:
                other._cache.update(layer.keys[list(rows)], layer.values[list(rows)], index)
        if other._valid is not None and min(other.lengths) == max(other.lengths):
            other._close_gaps()
        return other

    def joined(self, others: Sequence[ReferenceCache]) -> ReferenceCache:
        """A new cache of this one's rows followed by those of `others`."""
        parts = [self, *others]
        other = ReferenceCache(sum(part.batch for part in parts), self._config)
        other.recomputes = any(part.recomputes for part in parts)
        other._far = self._far if all(part._far == self._far for part in parts) else None
        other.lengths = [length for part in parts for length in part.lengths]
        other._ids = [list(row) for part in parts for row in part._ids]
        if other.recomputes:
            return other
        slots = max(part.slots for part in parts)

        def padded(tensor: Tensor, part: ReferenceCache) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, 0, 0, slots - part.slots))

        for index, layers in enumerate(zip(*(part._cache.layers for part in parts), strict=True)):
            pairs = list(zip(layers, parts, strict=True))
            keys = torch.cat([padded(layer.keys, part) for layer, part in pairs])
            values = torch.cat([padded(layer.values, part) for layer, part in pairs])
            other._cache.update(keys, values, index)
        device = other._cache.layers[0].keys.device
        valid = [
            part._valid if part._valid is not None else torch.ones(part.batch, part.slots, dtype=torch.bool)
            for part in parts
        ]
        other._valid = torch.cat(
            [torch.nn.functional.pad(rows.to(device), (0, slots - rows.shape[1])) for rows in valid]
        )
        other._close_gaps()
        return other

    def adopt(self, source: Any, length: int) -> None:
        """Hold the first `length` tokens of the only row of `source` in every row, instead of what was held."""
        if not isinstance(source, ReferenceCache):
            raise TypeError("this cache belongs to another tier")
        if source.batch != 1 or not 0 <= length <= source.lengths[0]:
            raise ValueError(f"only the first tokens of a single row can be adopted, not {length} of {source.lengths}")
        copies = source.select([0] * self.batch)
        copies.crop(length)
        self.lengths, self.recomputes = copies.lengths, copies.recomputes
        self._ids, self._cache, self._valid, self._far = copies._ids, copies._cache, copies._valid, copies._far

    def _close_gaps(self) -> None:
        """Move every row's tokens together, dropping what `lengths` no longer counts."""
        assert self._valid is not None
        longest = max(self.lengths)
        if longest == 0:
            self._cache, self._valid = DynamicCache(), None
            return
        # a stable sort puts the real slots first and keeps their order
        order = torch.argsort((~self._valid).to(torch.uint8), dim=1, stable=True)[:, :longest]

        def gather(tensor: Tensor) -> Tensor:
            index = order[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            return tensor.gather(2, index)

        self._each_layer(gather)
        device = self._valid.device
        valid = torch.arange(longest, device=device)[None] < torch.tensor(self.lengths, device=device)[:, None]
        self._valid = None if bool(valid.all()) else valid

    def _each_layer(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = change(layer.keys), change(layer.values)

    def _recompute(self, ids: Tensor, new: list[int], run: Callable[..., Tensor]) -> Tensor:
        """Run everything again, right-padded, and return the hidden states of the new tokens."""
        self.recomputes = True
        self._cache, self._valid = DynamicCache(), None
        self.lengths = [len(row) for row in self._ids]
        longest = max(self.lengths)
        padded = [row + [0] * (longest - len(row)) for row in self._ids]
        hidden = run(input_ids=torch.tensor(padded, device=ids.device), use_cache=False)
        return self._new_ones(hidden, ids, new)

    def _run_anew(self, ids: Tensor, new: list[int], run: Callable[..., Tensor]) -> Tensor:
        """The same, and keep the keys and values of it."""
        rows, self._ids = self._ids, [[] for _ in range(self.batch)]
        self._cache, self._valid, self.lengths = DynamicCache(), None, [0] * self.batch
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=ids.device)
        return self._new_ones(self.extend(padded, [len(row) for row in rows], run), ids, new)

    def _new_ones(self, hidden: Tensor, ids: Tensor, new: list[int]) -> Tensor:
        """Of the hidden states of whole rows those of their last `new` tokens, shaped as `ids` [B, T]."""
        starts = torch.tensor(
            [length - more for length, more in zip(self.lengths, new, strict=True)], device=ids.device
        )
        index = (starts[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(max=hidden.shape[1] - 1)
        return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))
