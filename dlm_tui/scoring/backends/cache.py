"""Scores that were computed before, and the rule that one view is open at a time."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from dlm_tui.scoring.errors import ViewActive

T = TypeVar("T")


@dataclass(frozen=True)
class CacheStats:
    """How often an answer was at hand, how often it had to be computed, how many are kept."""

    hits: int
    misses: int
    entries: int


class ScoreCache:
    """At most `capacity` results, the least recently used leave first."""

    def __init__(self, capacity: int = 4096) -> None:
        self._kept: OrderedDict[Hashable, object] = OrderedDict()
        self._capacity = capacity
        self._hits = self._misses = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(self._hits, self._misses, len(self._kept))

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The kept result, else the computed one; an error is not kept."""
        if key in self._kept:
            return cast("T", self._hit(key))
        self._misses += 1
        value = compute()
        self.put(key, value)
        return value

    def peek(self, key: Hashable) -> object | None:
        """The kept result or None; counts as a hit or a miss."""
        if key in self._kept:
            return self._hit(key)
        self._misses += 1
        return None

    def put(self, key: Hashable, value: object) -> None:
        """Keep a result."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget the results; the statistics stay."""
        self._kept.clear()

    def _hit(self, key: Hashable) -> object:
        self._hits += 1
        self._kept.move_to_end(key)
        return self._kept[key]


class ViewLock:
    """Lets one view in at a time; a view asks `check` before each answer."""

    def __init__(self) -> None:
        self._open: str | None = None
        self._entries = 0

    @contextlib.contextmanager
    def enter(self, label: str) -> Iterator[Callable[[], None]]:
        """Yields the check of this view. Raises ViewActive while another view is open."""
        if self._open is not None:
            raise ViewActive(f"view {self._open!r} is still open: leave it before entering {label!r}")
        self._entries += 1
        ticket, self._open = self._entries, label

        def check() -> None:
            if self._open is None or self._entries != ticket:
                raise ViewActive(f"view {label!r} was used after its block")

        try:
            yield check
        finally:
            self._open = None
