"""What a training moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """A prompt's weights before and after a training."""

    text: str
    before: dict[str, float]
    after: dict[str, float]

    @property
    def top_changed(self) -> bool:
        """Whether another adapter is now the strongest."""
        return top(self.before) != top(self.after)

    @property
    def distance(self) -> float:
        """Half the sum of absolute differences, in [0, 1]."""
        names = self.before.keys() | self.after.keys()
        return sum(abs(self.after.get(name, 0.0) - self.before.get(name, 0.0)) for name in names) / 2


def top(weights: Mapping[str, float]) -> str:
    """The strongest adapter."""
    return max(weights, key=lambda name: weights[name], default="")
