"""Whole numbers that are asked for beside a document, checked before anything is loaded."""

from __future__ import annotations

from dlm_tui.errors import UsageError

MOST_FOLDS = 1000
MOST_STEPS = 2**31 - 1


def checked_folds(folds: int) -> int:
    """Parts that are held out in turn. Raises UsageError."""
    return _checked("--folds", folds, 2, MOST_FOLDS)


def checked_checkpoint_steps(steps: int | None) -> int | None:
    """Optimiser steps between two checkpoints; None leaves it to the clock. Raises UsageError."""
    return None if steps is None else _checked("--checkpoint-steps", steps, 1, MOST_STEPS)


def _checked(flag: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise UsageError(f"{flag} is {least} to {most}, not {number}")
    return number
