"""What a long computation says while it runs. Plain data, no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar, cast

import msgspec

T = TypeVar("T")
P = TypeVar("P")


class Progress(msgspec.Struct, frozen=True):
    """`done` of `total` units of `stage`; `total` 0 means that it is not known. `text` says what is being done."""

    stage: str
    done: int = 0
    total: int = 0
    text: str | None = None


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
    """Run a generator to its end, passing what it yields to `report`; returns its result."""
    try:
        while True:
            step = next(work)
            if report is not None:
                report(step)
    except StopIteration as finished:
        return cast("T", finished.value)
    finally:
        work.close()
