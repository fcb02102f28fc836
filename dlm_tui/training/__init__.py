"""Sections become rows, rows become adapters, adapters and gate become a committed state of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm_tui.training.pipeline import TrainOutcome, TrainRequest, train_document
    from dlm_tui.training.progress import TrainProgress

__all__ = ["TrainOutcome", "TrainProgress", "TrainRequest", "train_document"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that naming this room does not load torch."""
    if name == "TrainProgress":
        from dlm_tui.training import progress

        return progress.TrainProgress
    if name in __all__:
        from dlm_tui.training import pipeline

        return getattr(pipeline, name)
    raise AttributeError(name)
