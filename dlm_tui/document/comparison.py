"""What moved between two gates, or between two versions of an adapter, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Moved(msgspec.Struct, frozen=True):
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


class AnswerMoved(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt under two versions of an adapter alone: the effect of each, KL(version ‖ base) at the next token, nats;
    and, where a section has the answer, log p(answer) − log p(answer, base) in nats per token.
    """

    text: str
    saved: bool
    before: float
    after: float
    before_gain: float | None = None
    after_gain: float | None = None


class VersionComparison(msgspec.Struct, kw_only=True):
    """`before` and `after` as they were asked for: two gates (`moved` has the prompts) or two versions (`answers`)."""

    before: str
    after: str
    moved: list[Moved] = []
    answers: list[AnswerMoved] = []

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.moved:
            changed = sum(one.top_changed for one in self.moved)
            return f"{changed} of {len(self.moved)} prompts have another strongest adapter under {self.after}."
        gains = [(one.before_gain, one.after_gain) for one in self.answers]
        pairs = [(before, after) for before, after in gains if before is not None and after is not None]
        if not pairs:
            return "" if self.answers else "There is no prompt to compare with: save some, or tag a section."
        before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        better = "no better" if abs(after - before) < 0.01 else "better" if after > before else "worse"
        return (
            f"{self.after} is {better} than {self.before} on {len(pairs)} of its own answers: "
            f"{before:+.2f} → {after:+.2f} nats a token against the base."
        )


def top(weights: Mapping[str, float]) -> str:
    """The adapter with the largest weight, the first of equals; empty for no weights."""
    return max(weights, key=lambda name: weights[name], default="")
