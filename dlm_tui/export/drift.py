"""What freezing the gate costs, as figures for the manifest."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from dlm_tui.export.requests import ExportProgress, Session


def measure_drift(
    session: Session, mix: Mapping[str, float] | None
) -> Generator[ExportProgress, None, dict[str, Any] | None]:
    """The drift report of `mix` (None: the static mean); None when no trained gate is in force to compare with."""
    yield ExportProgress("drift")
    return None
