"""How much of a base that lies on the disk is in memory at once."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import accelerate.hooks
from torch import nn


@dataclass
class Fetched:
    """Bytes of the weights that were read and are still somebody's, by who they are, and the most there ever were."""

    alive: dict[int, int] = field(default_factory=dict)
    peak: int = 0

    def add(self, weight: nn.Parameter) -> None:
        """One more, until nobody keeps it: neither its module nor a graph."""
        key = id(weight)
        self.alive[key] = weight.nbytes
        weakref.finalize(weight, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))


@contextlib.contextmanager
def watched_fetches() -> Iterator[Fetched]:
    """Counts what accelerate's hooks fetch."""
    found, put = Fetched(), accelerate.hooks.set_module_tensor_to_device

    def watched(module: nn.Module, name: str, *arguments: Any, **more: Any) -> None:
        put(module, name, *arguments, **more)
        if not (weight := getattr(module, name)).is_meta:
            found.add(weight)

    with mock.patch.object(accelerate.hooks, "set_module_tensor_to_device", watched):
        yield found
