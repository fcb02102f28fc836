"""What the tasks of a cluster tell while they run. No torch: the process that keeps it is there in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from dlm_tui.progress import WARNING, Progress

_SECONDS = 0.25


class Board:
    """An actor that keeps what tasks tell until whoever asked for them takes it."""

    def __init__(self) -> None:
        self._news: list[tuple[int, Progress]] = []
        self._begun: set[str] = set()

    def begin(self, run: int, task: str, label: str) -> None:
        """A task of `run` begins. Its process was lost where it had begun before: only then Ray gives it out again."""
        if task in self._begun:
            text = f"{label}: the process that worked at it was lost; its work is done again"
            self._news.append((run, Progress(WARNING, text=text)))
        self._begun.add(task)

    def tell(self, run: int, steps: list[Progress]) -> None:
        """Steps of a task that was given out in this `run`."""
        self._news += [(run, step) for step in steps]

    def take(self, run: int) -> list[Progress]:
        """What the tasks of `run` told since the last time; what those of an earlier one told too late is dropped."""
        news, self._news = self._news, []
        return [step for told, step in news if told == run]


class Teller:
    """Hands steps on in batches, one every quarter of a second at most: a fast training has dozens of steps in that."""

    def __init__(self, send: Callable[[list[Progress]], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._send, self._clock = send, clock
        self._waiting: list[Progress] = []
        self._sent: float | None = None

    def tell(self, step: Progress) -> None:
        """Send it, or keep it for the next batch."""
        self._waiting.append(step)
        if self._sent is None or self._clock() - self._sent >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            self._send(self._waiting)
            self._waiting, self._sent = [], self._clock()
