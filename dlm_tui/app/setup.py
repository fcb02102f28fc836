"""Everything the workbench is given when it is opened: nothing is looked up behind its back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dlm_tui.app.config import Config
from dlm_tui.app.job_line import RunnerStarter
from dlm_tui.app.jobs import JobStarter
from dlm_tui.app.state import StateFile
from dlm_tui.document import Document
from dlm_tui.engine.client import Engine


@dataclass
class Setup:
    """The document, where it stands, and how engines and jobs are started."""

    document: Document
    path: Path
    home: Path
    base: str | None
    config: Config
    state_file: StateFile
    engine_factory: Callable[[], Engine]
    job_starter: JobStarter
    runner_starter: RunnerStarter | None = None
    """Works off the document's line of jobs in a process of its own; None: every job runs at once, as a child."""
    train_if_untrained: bool = False
    screenshot_folder: Path = field(default_factory=Path.cwd)
    server_words: tuple[str, ...] = ()
    """The command that serves the document; () for the usual one."""
    when_ready: Callable[[], None] = lambda: None
    """Called when the engine has opened the document for the first time."""
