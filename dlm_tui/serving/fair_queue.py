"""A bounded queue in which clients take turns: one that asks much waits behind itself, not before the others."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from dlm_tui.serving.backend import QueueFull

T = TypeVar("T")


class FairQueue(Generic[T]):
    """At most `limit` items in all, each of a `size`. Not thread-safe: its owner locks."""

    def __init__(self, limit: int, size: Callable[[T], int] = lambda _: 1) -> None:
        self._limit, self._size = limit, size
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, client: str, item: T) -> None:
        """Wait behind what this client asked before. Raises QueueFull."""
        if self._count >= self._limit:
            raise QueueFull(f"{self._limit} requests are waiting already; try again in a moment")
        self._waiting.setdefault(client, deque()).append(item)
        self._count += 1

    def take(self, room: int) -> T | None:
        """The item whose turn it is; None when there is none or it is larger than `room`.

        The one whose turn it is is waited for: small requests never starve a large one.
        """
        if not self._waiting:
            return None
        client, items = next(iter(self._waiting.items()))
        if self._size(items[0]) > room:
            return None
        item = items.popleft()
        self._count -= 1
        del self._waiting[client]
        if items:
            self._waiting[client] = items  # behind every other client
        return item

    def remove(self, item: T) -> bool:
        """Drop an item that waits; whether it did."""
        for client, items in self._waiting.items():
            if item in items:
                items.remove(item)
                self._count -= 1
                if not items:
                    del self._waiting[client]
                return True
        return False

    def drain(self) -> list[T]:
        """Everything that waits, which then waits no more."""
        left = [item for items in self._waiting.values() for item in items]
        self._waiting.clear()
        self._count = 0
        return left
