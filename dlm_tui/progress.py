"""What a long computation says while it runs, how its steps are passed on, and the time it has left. No torch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar, cast

import msgspec

T = TypeVar("T")
P = TypeVar("P")
Q = TypeVar("Q")

NOTE = "note"
"""The stage of a line for the log: only `text` matters."""
WARNING = "warning"
"""The stage of a line that a person has to see: only `text` matters."""


class EarlyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt of the document with the greedy answers of the untrained and of the half-trained adapter alone."""

    prompt: str
    before: str
    now: str


class EarlyLook(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter in training is like behind optimiser step `step` of `total`.

    The losses are over its `rows` held-out rows, in nats per token; None where no row is held out, or where a loss is
    not finite. `before` is the untrained adapter, which is the base.
    """

    step: int
    total: int
    rows: int
    held_out_before: float | None
    held_out: float | None
    answers: list[EarlyAnswer]


class Progress(msgspec.Struct, frozen=True):
    """`done` of `total` units of `stage`, which is a key of `progress_words.STAGES`, a file's name, NOTE or WARNING.

    Units are the stage's own (tokens, prompts, optimiser steps, bytes); `total` 0 means that it is not known. `text`
    says what is being done where the stage alone does not; `scope` is an adapter's name or "gate". `loss` is in the
    unit of its `loss_kind` (a key of `losses.UNITS`), `entropy` in nats, `eta` in seconds. With a `look` the step is
    about nothing but that.
    """

    stage: str
    done: float = 0
    total: float = 0
    text: str | None = None
    scope: str | None = None
    loss: float | None = None
    entropy: float | None = None
    eta: float | None = None
    look: EarlyLook | None = None
    loss_kind: str | None = None


Report = Callable[[Progress], None]
"""Called at every step from the thread that works; raising `Cancelled` in it stops the work cleanly."""


def note(report: Report, text: str) -> None:
    """A line for the log."""
    report(Progress(NOTE, text=text))


def warn(report: Report, text: str) -> None:
    """A line that a person has to see."""
    report(Progress(WARNING, text=text))


class _Outcome(Generic[T]):
    value: T | None = None
    error: BaseException | None = None


def in_thread(
    work: Callable[[], T], report: Callable[[], Progress], interval: float = 0.05
) -> Generator[Progress, None, T]:
    """Run `work` in a daemon thread and yield `report()` every `interval` seconds until it is done.

    Returns what `work` returned and raises what it raised. Closing the generator abandons the thread: use it only
    for work that leaves nothing half done, such as reading files or filling a content-addressed cache.
    """
    outcome: _Outcome[T] = _Outcome()

    def target() -> None:
        try:
            outcome.value = work()
        except BaseException as error:  # carried over to the caller's thread
            outcome.error = error

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(interval)
        yield report()
    if outcome.error is not None:
        raise outcome.error
    return cast("T", outcome.value)


def run_to_end(work: Generator[P, None, T], report: Callable[[P], None] | None = None) -> T:
    """Run a generator to its end, passing what it yields to `report`; returns its result, and closes it either way."""
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                return cast("T", finished.value)
            if report is not None:
                report(step)
    finally:
        work.close()


def map_steps(work: Generator[P, None, T], change: Callable[[P], Q]) -> Generator[Q, None, T]:
    """Yield `change(step)` for every step of `work` and return its result; closing this closes `work`."""
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                return cast("T", finished.value)
            yield change(step)
    finally:
        work.close()


def part_of(work: Generator[Progress, None, T], stage: str, turn: int, turns: int) -> Generator[Progress, None, T]:
    """The `turn`-th (from 0) of `turns` equal pieces of work, as one stage whose count goes on."""

    def counted_on(step: Progress) -> Progress:
        done, total = turn * step.total + step.done, turns * step.total
        return msgspec.structs.replace(step, stage=stage, done=done, total=total)

    return (yield from map_steps(work, counted_on))


_WINDOW = (10.0, 0.5)
"""Seconds, and share of what the stage has taken so far, that count as lately: a pause between two adapters, or
somebody else on the machine, is a larger part of ten seconds than of a minute."""
_KNOWN = 0.25
"""Seconds before which a pace is chance."""
_PATIENCE = (1.0, 0.1)
"""Seconds, and share of the estimate, by which the time told may differ from the estimate."""


class Eta:
    """The time left, by the pace of late, of one piece of work whose stages come one after the other.

    A new stage, another total or a count that falls starts afresh. What is told counts down with the clock and
    is told anew only when the estimate differs from it by more than a second and a tenth of itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._stage: tuple[object, float] | None = None
        self._began = 0.0  # when the stage did
        self._marks: deque[tuple[float, float]] = deque()  # when the count rose, and to what
        self._told: float | None = None  # the moment at which the work will have ended, as told last

    def of(self, step: Progress) -> float | None:
        """Seconds until this stage of this scope is done: what the step itself knows, else by its pace."""
        left = self.left((step.stage, step.scope), step.done, step.total)
        return left if step.eta is None else step.eta

    def left(self, stage: object, done: float, total: float) -> float | None:
        """Seconds until `total` is reached; None while that cannot be known: no total, no step done, or too early."""
        now, marks = self._clock(), self._marks
        if (stage, total) != self._stage or (marks and done < marks[-1][1]):
            self._stage, self._told, self._began = (stage, total), None, now
            marks.clear()
        if not marks or done > marks[-1][1]:
            marks.append((now, done))
        window = max(_WINDOW[0], _WINDOW[1] * (now - self._began))
        while len(marks) > 2 and now - marks[1][0] >= window:
            marks.popleft()
        (began, first), (latest, last) = marks[0], marks[-1]
        if total <= 0 or last <= first or now - began < _KNOWN:
            return None
        since, step = now - latest, (latest - began) / (len(marks) - 1)
        pace = (latest - began + max(0.0, since - step)) / (last - first)
        left = max(0.0, pace * (total - last) - min(since, step))
        if left == 0.0 or self._told is None or abs(now + left - self._told) > max(_PATIENCE[0], _PATIENCE[1] * left):
            self._told = now + left
        return max(0.0, self._told - now)
