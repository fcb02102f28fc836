"""Prompts and answers that have been run, by exact mix: the next request that begins alike starts behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from dlm_tui.model.backbone import Backbone
from dlm_tui.model.pages import give_back_freed
from dlm_tui.model.prefix_reuse import Key, PrefilledBatch, common_prefix, family

LEAST_TOKENS = 16
"""Shorter common beginnings are not worth the copy."""
GIVE_BACK_EVERY = 16 << 20
"""Bytes that are kept between two times that freed memory goes back to the system. Rows that stay lie between batches
that come and go, so that the C library would hold what it was freed of: several times what is kept."""


class PrefixStore:
    """Rows of at most `limit_bytes` keys and values in all; the one that was used longest ago goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._rows: list[PrefilledBatch] = []  # the newest last
        self._kept_since = 0
        self.reused_tokens = 0

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        return sum(row.cache.nbytes for row in self._rows)

    def clear(self) -> None:
        """Forget everything, as when the adapters changed."""
        self._rows.clear()

    def keep(self, row: PrefilledBatch) -> None:
        """Add one row; a kept one that it continues goes."""
        if row.cache.nbytes * 2 > self._limit or len(row.keys[0][0]) < LEAST_TOKENS:
            return
        ids, mix = row.keys[0]
        self._rows = [
            other
            for other in self._rows
            if other.keys[0][1] != mix or common_prefix(other.keys[0][0], ids) < len(other.keys[0][0])
        ]
        self._rows.append(row)
        while self.nbytes > self._limit:
            self._rows.pop(0)
        self._kept_since += row.cache.nbytes
        if self._kept_since >= GIVE_BACK_EVERY:
            self._kept_since = 0
            give_back_freed()

    def before(self, engine: Backbone, keys: Iterable[Key]) -> PrefilledBatch | None:
        """The rows that these prompts begin like, as one batch; None when there are none."""
        kin = family(engine)
        found: list[PrefilledBatch] = []
        for ids, mix in keys:
            best, longest = None, LEAST_TOKENS - 1
            for row in self._rows:
                (other, other_mix) = row.keys[0]
                same = other_mix == mix and row.family[0] == kin[0] and row.family[1] is kin[1]
                if same and (length := common_prefix(ids, other)) > longest:
                    best, longest = row, length
            if best is not None:
                self.reused_tokens += min(longest, len(ids) - 1)
                if all(best is not row for row in found):
                    found.append(best)
        if not found:
            return None
        self._rows = [row for row in self._rows if all(row is not one for one in found)] + found
        first, *others = found
        if not others:
            return first
        return replace(
            first,
            keys=tuple(row.keys[0] for row in found),
            cache=first.cache.joined([row.cache for row in others]),
            hidden=torch.cat([row.hidden for row in found]),
        )
