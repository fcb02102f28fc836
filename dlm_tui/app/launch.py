"""From a path to a running workbench."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dlm_tui.app.app import WorkbenchApp
from dlm_tui.app.base import Setup
from dlm_tui.app.config import load_config
from dlm_tui.app.state import StateFile, note_recent
from dlm_tui.document import load
from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.jobs import start_job


def run_workbench(document: Path, home: Path, base: str | None, *, train_if_untrained: bool = False) -> int:
    """Check everything that can be wrong before the screen is taken, then run. Raises DlmTuiError."""
    config = load_config()
    path = document.resolve()
    loaded = load(path)
    with contextlib.suppress(OSError):
        note_recent(path)
    setup = Setup(
        document=loaded,
        path=path,
        home=home,
        base=base,
        config=config,
        state_file=StateFile(path),
        engine_factory=EngineClient,
        job_starter=start_job,
        train_if_untrained=train_if_untrained,
    )
    app = WorkbenchApp(setup)
    result = app.run()
    return (app.return_code or 0) if result is None else result
