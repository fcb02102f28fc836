"""Running a generator to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

_T = TypeVar("_T")
_P = TypeVar("_P")


def drain(work: Generator[_P, None, _T], report: Callable[[_P], None] | None = None) -> _T:
    """Run a generator to its end, passing what it yields to `report`; returns its result."""
    try:
        while True:
            step = next(work)
            if report is not None:
                report(step)
    except StopIteration as finished:
        result: _T = finished.value
        return result
    finally:
        work.close()
