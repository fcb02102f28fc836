"""The outcome of a sweep, as `dlm-tui sweep --json` prints it and the wire carries it. No torch."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dlm_tui.counting import counted

By = Literal["loss", "effect", "accuracy", "log_loss"]
JUDGED_BY: tuple[By, ...] = ("loss", "effect", "accuracy", "log_loss")
_HIGHER: frozenset[By] = frozenset({"effect", "accuracy"})
FIGURES: dict[By, str] = {
    "loss": "held-out loss",
    "effect": "effect",
    "accuracy": "gate accuracy",
    "log_loss": "gate log loss",
}
COLUMNS = ("trial", "loss", "base_loss", "effect", "accuracy", "log_loss", "best")


class TrialReport(msgspec.Struct, kw_only=True):
    """One combination, judged on held-out sections: losses in nats per token, `effect` the mean KL(adapter ‖ base) at
    the next token in nats; of the gate accuracy and log loss (nats). None where nothing of it was tried."""

    settings: dict[str, str]
    loss: float | None = None
    base_loss: float | None = None
    effect: float | None = None
    adapters: dict[str, float] = {}
    accuracy: float | None = None
    log_loss: float | None = None

    def figure(self, by: By) -> float | None:
        """The figure that trials are compared by."""
        value: float | None = getattr(self, by)
        return value


class SweepReport(msgspec.Struct, kw_only=True):
    """All trials in the order of the grid. `best` is the index of the best by `by`, None where none has that figure or
    where it is the same for all.

    `fresh` of `works` trainings were done in this run, the others before. `written` is what went into the document, and
    `reason` why."""

    run_id: int
    by: By
    folds: int
    seed: int
    trials: list[TrialReport]
    best: int | None
    works: int
    fresh: int
    notes: list[str]
    seconds: float
    written: dict[str, str] | None = None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as a plain object."""
        return dict(msgspec.to_builtins(self))

    @property
    def judged(self) -> bool:
        """Whether any trial has the figure that they are compared by."""
        return any(trial.figure(self.by) is not None for trial in self.trials)

    def rows(self) -> list[list[str | int | float | None]]:
        """A row per trial: its number, its settings, the figures, 1 for the best."""
        return [
            [
                number + 1,
                *trial.settings.values(),
                trial.loss,
                trial.base_loss,
                trial.effect,
                trial.accuracy,
                trial.log_loss,
                int(number == self.best),
            ]
            for number, trial in enumerate(self.trials)
        ]

    def chart(self, width: int) -> list[str]:
        """A bar per trial of what it is judged by, at most `width` cells."""
        return bars(self.trials, self.by, width)

    def scale(self) -> str:
        """What the shortest and the longest bar of `chart` stand for; empty where there is none."""
        known = [value for trial in self.trials if (value := trial.figure(self.by)) is not None]
        return f"{min(known):.3f}\u2013{max(known):.3f}" if known else ""

    def header(self) -> list[str]:
        """The names of the columns of `rows`."""
        first, *rest = COLUMNS
        return [first, *(self.trials[0].settings if self.trials else ()), *rest]


def best_of(trials: list[TrialReport], by: By) -> int | None:
    """The index of the best trial, the first of equals; None where several were judged and all are equal."""
    sign = -1.0 if by in _HIGHER else 1.0
    known = [(sign * value, index) for index, trial in enumerate(trials) if (value := trial.figure(by)) is not None]
    if not known or (len(known) > 1 and min(known)[0] == max(known)[0]):
        return None
    return min(known)[1]


def reason_text(report: SweepReport) -> str:
    """Why the best is the best, in one sentence, or that there is no difference; empty where nothing was judged."""
    if not report.judged:
        return ""
    unit = {"loss": " nats per token", "effect": " nats", "log_loss": " nats", "accuracy": ""}[report.by]
    tried = f"{counted(len(report.trials), 'trial')} over {counted(report.folds, 'fold')}"
    if report.best is None:
        value = next(value for trial in report.trials if (value := trial.figure(report.by)) is not None)
        return f"no difference between the trials: {FIGURES[report.by]} {value:.4g}{unit} in all {tried}"
    best = report.trials[report.best]
    settings = ", ".join(f"{path} {value}" for path, value in best.settings.items())
    order = "highest" if report.by in _HIGHER else "lowest"
    figure = f"{FIGURES[report.by]} {best.figure(report.by):.4g}{unit}"
    return f"{settings}: {figure}, the {order} of {tried}"


def bars(trials: list[TrialReport], by: By, width: int) -> list[str]:
    """A bar per trial between the least and the greatest figure, which are a tenth and all of `width` cells long."""
    values = [trial.figure(by) for trial in trials]
    known = [value for value in values if value is not None]
    if not known:
        return ["" for _ in trials]
    low, high = min(known), max(known)

    def cells(value: float) -> int:
        return round(width * (1.0 if high == low else 0.1 + 0.9 * (value - low) / (high - low)))

    return ["" if value is None else "█" * max(1, cells(value)) for value in values]
