"""The rooms' progress as messages on the wire: the one place where they are made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from dlm_tui.engine.pace import Pace
from dlm_tui.engine.protocol import Event, Progress


class Relay:
    """Turns what one request's work says on the way into `Progress`, with the time left by its pace."""

    def __init__(self, scope: str | None = None, pace: Pace | None = None) -> None:
        """`scope` stands where a step names none of its own."""
        self._scope = scope
        self._pace = pace or Pace()

    def progress(self, step: Any) -> Progress:
        """Any room's progress object as the wire's; the rooms call the same things by the same names."""

        def number(*names: str) -> float | None:
            for name in names:
                value = getattr(step, name, None)
                if isinstance(value, int | float):
                    return float(value)
            return None

        stage = str(getattr(step, "stage", "work"))
        scope = getattr(step, "scope", None) or self._scope
        done, total = number("done", "step") or 0.0, number("total", "steps") or 0.0
        left = self._pace.left((stage, scope), done, total)
        known = number("eta")
        return Progress(
            stage=stage,
            done=done,
            total=total,
            scope=scope,
            loss=number("loss"),
            entropy=number("entropy"),
            eta=left if known is None else known,
            text=getattr(step, "text", None),
        )

    def run(
        self, work: Iterator[Any], event: Callable[[Any], Event | None] | None = None
    ) -> Generator[Event | None, None, Any]:
        """Pass on what a room's generator yields and return its result; closing this closes the room's work.

        `event` makes the message of what is not progress; by default everything is, and None a step without news.
        """
        make = event or (lambda step: None if step is None else self.progress(step))
        generator = work if isinstance(work, Generator) else iter(work)
        try:
            while True:
                yield make(next(generator))
        except StopIteration as finished:
            return finished.value
        finally:
            if isinstance(generator, Generator):
                generator.close()
