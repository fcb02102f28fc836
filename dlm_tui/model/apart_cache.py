"""The cache of bases whose forward counts the columns of a cache, not positions: MPT's ALiBi, GPT-Neo's local windows.

Gaps in shorter rows would move what stands behind them. Rows run together while they are of one length, each alone from
then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlm_tui.model.cache import ReferenceCache


class ApartCache:
    """Rows in `parts`: all in one while they are of one length, else each in its own."""

    def __init__(self, parts: Sequence[ReferenceCache]) -> None:
        self.parts = list(parts)

    @property
    def batch(self) -> int:
        return sum(part.batch for part in self.parts)

    @property
    def lengths(self) -> list[int]:
        return [length for part in self.parts for length in part.lengths]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def split(self, new: Sequence[int]) -> list[ReferenceCache]:
        """The parts to which the rows' next `new` tokens are added, as many to every row of a part."""
        if len(self.parts) == 1 and min(new) != max(new):
            self.parts = _rows(self.parts)
        return self.parts

    def crop(self, length: int) -> None:
        """Keep at most the first `length` tokens of every row."""
        for part in self.parts:
            part.crop(length)
        self.parts = _together(self.parts)

    def repeat(self, batch: int) -> ApartCache:
        """A new cache of `batch` rows, each a copy of this cache's only row."""
        return ApartCache([self._only().repeat(batch)])

    def select(self, rows: Sequence[int]) -> ApartCache:
        """A new cache of the given rows, in that order."""
        if len(self.parts) == 1:
            return ApartCache([self.parts[0].select(rows)])
        return ApartCache(_together([self.parts[row].select([0]) for row in rows]))

    def joined(self, others: Sequence[ApartCache]) -> ApartCache:
        """A new cache of this one's rows followed by those of `others`."""
        parts = [part for one in (self, *others) for part in one.parts]
        return ApartCache(_together([part.select(range(part.batch)) for part in parts]))

    def adopt(self, source: Any, length: int) -> None:
        """Hold the first `length` tokens of the only row of `source` in every row, instead of what was held."""
        if not isinstance(source, ApartCache):
            raise TypeError("this cache belongs to another tier")
        if source.batch != 1 or not 0 <= length <= source.lengths[0]:
            raise ValueError(f"only the first tokens of a single row can be adopted, not {length} of {source.lengths}")
        copies = source._only().repeat(self.batch)
        copies.crop(length)
        self.parts = [copies]

    def _only(self) -> ReferenceCache:
        if self.batch != 1:
            raise ValueError("only a cache of one row can be repeated")
        return self.parts[0]


def _together(parts: list[ReferenceCache]) -> list[ReferenceCache]:
    """One part where all rows are of one length, else one for each row."""
    lengths = {length for part in parts for length in part.lengths}
    if len(parts) == 1 or len(lengths) > 1 or lengths == {0}:
        return parts if len(parts) == 1 else _rows(parts)
    return [parts[0].joined(parts[1:])]


def _rows(parts: Sequence[ReferenceCache]) -> list[ReferenceCache]:
    return [part.select([row]) for part in parts for row in range(part.batch)]
