"""A prompt's gate weights before and after a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """A prompt with its weights before and after; `saved` when it belongs to the open prompt set."""

    text: str
    before: dict[str, float]
    after: dict[str, float]
    saved: bool = False

    @property
    def top_changed(self) -> bool:
        """Whether another adapter is now the strongest."""
        return top(self.before) != top(self.after)

    @property
    def distance(self) -> float:
        """Total variation between both: half the sum of absolute differences, in [0, 1]."""
        names = self.before.keys() | self.after.keys()
        return sum(abs(self.after.get(name, 0.0) - self.before.get(name, 0.0)) for name in names) / 2


def top(weights: Mapping[str, float]) -> str:
    """The adapter with the largest weight, the first of equals; empty for no weights."""
    return max(weights, key=lambda name: weights[name], default="")
