"""What can go wrong while scoring."""

from __future__ import annotations

from dlm_tui.errors import DlmTuiError


class ScoringError(DlmTuiError):
    """A score that cannot be computed."""


class ViewActive(ScoringError, RuntimeError):
    """A view was opened while another is open, or used after its block."""


class EmptyText(ScoringError, ValueError):
    """A text or completion of zero tokens has no log-probability."""


class NullScaleError(ScoringError, ValueError):
    """A scale of a null adapter that is not a positive finite number."""


class NonFiniteScores(ScoringError):
    """Logits or log-probabilities that are NaN, or infinite where they must not be."""
