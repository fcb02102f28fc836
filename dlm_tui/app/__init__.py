"""The screen. Importing it brings neither Textual nor torch in; opening the workbench brings Textual."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["ask_for_start", "recent_document", "run"]


def run(document: Path, home: Path, base: str | None, *, train_if_untrained: bool = False) -> int:
    """Open the workbench on a document and return its exit code when it is left.

    With `train_if_untrained` training starts at once when the document has no adapters yet. Raises DlmTuiError for an
    unreadable document or an invalid configuration file, before the screen is taken.
    """
    from dlm_tui.app.launch import run_workbench

    return run_workbench(document, home, base, train_if_untrained=train_if_untrained)


def recent_document() -> Path | None:
    """The document that was opened last and still exists, or None."""
    from dlm_tui.app.state import recent_documents

    return next(iter(recent_documents()), None)


def ask_for_start() -> Path | Literal["demo"] | int:
    """Ask a person without a document what to begin with: the path of the one that was written, "demo", or
    the exit status where it was left."""
    from dlm_tui.app.welcome import ask_for_start

    return ask_for_start()
