"""Sections become rows, rows become adapters, adapters and gate become a committed state of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm_tui.lazy import load as load_name

if TYPE_CHECKING:
    from dlm_tui.training.pipeline import TrainOutcome, TrainRequest, train_document
    from dlm_tui.training.progress import TrainProgress

_HOMES = {
    "TrainOutcome": "pipeline",
    "TrainProgress": "progress",
    "TrainRequest": "pipeline",
    "train_document": "pipeline",
}

__all__ = ["TrainOutcome", "TrainProgress", "TrainRequest", "train_document"]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _HOMES, name)
