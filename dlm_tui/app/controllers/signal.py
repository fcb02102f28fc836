"""How a controller tells others that something happened, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Signal(Generic[P]):
    """An event with typed arguments. `emit` calls the listeners at once, in the order in which they were connected."""

    def __init__(self) -> None:
        self._listeners: list[Callable[P, object]] = []

    def connect(self, *listeners: Callable[P, object]) -> None:
        """Call these whenever the signal is emitted."""
        self._listeners += listeners

    def emit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell everybody; what a listener raises reaches the caller."""
        for listener in self._listeners:
            listener(*args, **kwargs)
