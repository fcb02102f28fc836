"""Progress as messages on the wire: the one place where they are made."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from dlm_tui.engine.protocol import Event, Log, Looked, Progress
from dlm_tui.progress import NOTE, WARNING, Eta, map_steps
from dlm_tui.progress import Progress as Step

T = TypeVar("T")


class ProgressEvents:
    """Turns the steps of one request's work into messages, with the time left."""

    def __init__(self, scope: str | None = None, eta: Eta | None = None) -> None:
        """`scope` stands where a step names none of its own."""
        self._scope = scope
        self._eta = eta or Eta()

    def event(self, step: Step) -> Progress | Log | Looked:
        """A step as a message; notes and warnings are lines of the log."""
        if step.look is not None:
            return Looked(scope=step.scope or self._scope or "", look=step.look)
        if step.stage in {NOTE, WARNING}:
            return Log(text=step.text or "", level="warning" if step.stage == WARNING else "info")
        return Progress(
            stage=step.stage,
            done=step.done,
            total=step.total,
            scope=step.scope or self._scope,
            loss=step.loss,
            loss_kind=step.loss_kind,
            entropy=step.entropy,
            eta=self._eta.of(step),
            text=step.text,
        )


def progress_events(work: Generator[Step, None, T], scope: str | None = None) -> Generator[Event, None, T]:
    """Pass on what `work` says as messages and return its result; closing this closes the work."""
    return (yield from map_steps(work, ProgressEvents(scope).event))
