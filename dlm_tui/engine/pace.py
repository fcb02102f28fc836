"""How long work has yet to go, judged by the pace it had lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 10.0
"""Seconds that count as lately."""
_KNOWN = 0.25
"""Seconds before which a pace is chance."""


class Pace:
    """Fed with counts of one stage after the other; a new stage, another total or a count that falls starts afresh."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._stage: tuple[object, float] | None = None
        self._marks: deque[tuple[float, float]] = deque()  # when the count rose, and to what

    def left(self, stage: object, done: float, total: float) -> float | None:
        """Seconds until `total` is reached; None while that cannot be known: no total, no step done, or too early.

        A step that takes as long as the ones before counts down; one that takes longer slows the estimate.
        """
        now, marks = self._clock(), self._marks
        if (stage, total) != self._stage or (marks and done < marks[-1][1]):
            self._stage = (stage, total)
            marks.clear()
        if not marks or done > marks[-1][1]:
            marks.append((now, done))
        while len(marks) > 2 and now - marks[1][0] >= _WINDOW:
            marks.popleft()
        (began, first), (latest, last) = marks[0], marks[-1]
        if total <= 0 or last <= first or now - began < _KNOWN:
            return None
        since, step = now - latest, (latest - began) / (len(marks) - 1)
        pace = (latest - began + max(0.0, since - step)) / (last - first)
        return max(0.0, pace * (total - last) - min(since, step))
