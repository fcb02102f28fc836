"""What a training moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """A prompt's weights before and after a training; `saved` when it is one of the open set."""

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
        """Half the sum of absolute differences, in [0, 1]."""
        names = self.before.keys() | self.after.keys()
        return sum(abs(self.after.get(name, 0.0) - self.before.get(name, 0.0)) for name in names) / 2


def top(weights: Mapping[str, float]) -> str:
    """The strongest adapter."""
    return max(weights, key=lambda name: weights[name], default="")


def moves_text(moved: Sequence[Moved], text: str, names: Sequence[str]) -> str:
    """What moved for one prompt: `tone 0.12 \u2192 0.80, style 0.60 \u2192 0.08`; empty when it was not compared."""
    change = next((change for change in moved if change.text == text.strip()), None)
    if change is None:
        return ""
    moves = [
        f"{name} {change.before[name]:.2f} \u2192 {change.after[name]:.2f}"
        for name in names
        if name in change.before and abs(change.after.get(name, 0.0) - change.before[name]) >= 0.005
    ]
    return f"{', '.join(moves)}." if moves else "No weight of this prompt moved."


def changed_text(moved: Sequence[Moved]) -> str:
    """How many prompts have another strongest adapter, as a sentence; empty when none has."""
    changed = sum(change.top_changed for change in moved)
    have = "has" if changed == 1 else "have"
    return f"{changed} of {len(moved)} remembered prompts {have} another top adapter now." if changed else ""
