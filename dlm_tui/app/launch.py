"""From a path to a running workbench."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.app.app import Opening, WorkbenchApp
from dlm_tui.app.config import load_config

if TYPE_CHECKING:
    from dlm_tui.app.setup import Setup


def make_app(document: Path, home: Path, base: str | None, *, train_if_untrained: bool = False) -> WorkbenchApp:
    """The app, not yet running. Raises ConfigError for a wrong configuration file."""
    config = load_config()
    path = document.resolve()

    def read() -> Setup:
        from dlm_tui.app.job_line import start_runner_beside
        from dlm_tui.app.setup import Setup
        from dlm_tui.app.state import StateFile, note_recent
        from dlm_tui.document import load
        from dlm_tui.engine.client import EngineClient
        from dlm_tui.engine.job_client import start_job

        loaded = load(path)
        gc.freeze()  # the modules, so that the collection at the end of opening is short
        with contextlib.suppress(OSError):
            note_recent(path)
        return Setup(
            document=loaded,
            path=path,
            home=home,
            base=base,
            config=config,
            state_file=StateFile(path),
            engine_factory=EngineClient,
            job_starter=start_job,
            runner_starter=start_runner_beside,
            train_if_untrained=train_if_untrained,
            when_ready=freeze_startup_objects,
        )

    return WorkbenchApp(Opening(path.name, config, config.theme, read))


def freeze_startup_objects() -> None:
    """What is in memory now stays to the end: full collections, some 80 ms each with it, need not look at it again."""
    gc.collect()
    gc.freeze()


def run_workbench(document: Path, home: Path, base: str | None, *, train_if_untrained: bool = False) -> int:
    """Run until it is left, also on the documents that are begun or opened in it; the exit code.

    Raises DlmTuiError when the document or the configuration cannot be read.
    """
    while True:
        app = make_app(document, home, base, train_if_untrained=train_if_untrained)
        result = app.run()
        if app.problem is not None:
            raise app.problem
        if app.next_document is None:
            return (app.return_code or 0) if result is None else result
        document, train_if_untrained = app.next_document, app.next_is_new
        if not app.next_is_new:
            base = None  # was asked for another document; this one has its own
