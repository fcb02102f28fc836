"""What training says while it runs. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """One step of training.

    `scope` is an adapter's name or "gate"; `done` of `total` counts optimiser steps of the whole run; `loss` is in
    nats per token; `eta` in seconds. With `stage` "note" only `text` matters: a line for the log.
    """

    stage: Literal["prepare", "sft", "dpo", "orpo", "embed", "gate", "commit", "note"]
    scope: str | None = None
    done: int = 0
    total: int = 0
    loss: float | None = None
    entropy: float | None = None
    eta: float | None = None
    text: str | None = None


# Called at every step from the thread that trains; raising `Cancelled` in it stops the run cleanly.
Report = Callable[[TrainProgress], None]


def note(report: Report, text: str) -> None:
    """A line for the log."""
    report(TrainProgress(stage="note", text=text))
