"""What the parts of the workbench share: the document, the desk's state, the engine and a few helpers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker

from dlm_tui.app.config import Config
from dlm_tui.app.engine_link import EngineLink
from dlm_tui.app.jobs import JobBoard, JobStarter
from dlm_tui.app.keys import BY_ID, display, keys_of
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.insight import InsightPane
from dlm_tui.app.panes.jobs import JobsPane
from dlm_tui.app.panes.outline import OutlinePane
from dlm_tui.app.panes.prompt import PromptPane
from dlm_tui.app.panes.runs import RunsPane
from dlm_tui.app.state import State, StateFile
from dlm_tui.app.themes import adapter_palette
from dlm_tui.document import Document
from dlm_tui.engine.client import Engine
from dlm_tui.engine.protocol import Opened, Routed
from dlm_tui.store import Store
from dlm_widgets.adapter_palette import Mark, marks_for
from dlm_widgets.sanitize import sanitize

NO_GATE = {"none", "foreign"}
"""Modes in which no gate answers: its weights would only be a fallback."""


@dataclass
class Setup:
    """Everything the workbench is given: nothing is looked up behind its back."""

    document: Document
    path: Path
    home: Path
    base: str | None
    config: Config
    state_file: StateFile
    engine_factory: Callable[[], Engine]
    job_starter: JobStarter
    train_if_untrained: bool = False
    screenshot_folder: Path = field(default_factory=Path.cwd)
    when_ready: Callable[[], None] = lambda: None  # called when the engine has opened the document for the first time


class WorkbenchBase(Screen[None]):
    """State and helpers; the parts that do things build on it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(id="workbench")
        self.setup = setup
        self.config = setup.config
        self.document = setup.document
        self.document_error: str | None = None
        self.state: State = setup.state_file.load()
        self.state.document = str(setup.path)
        self.state.mix.keep_only(self.names)
        self.store = Store(setup.home, setup.document.dlm_id)
        self.routed: Routed | None = None
        self.ghost: Mapping[str, float] | None = None
        self.gate_run: int | None = None
        self._save_lock = asyncio.Lock()
        self.link: EngineLink
        self.board: JobBoard

    # ---- facts -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters in declared order, or the one flat adapter."""
        return self.document.routing_names

    @property
    def opened(self) -> Opened | None:
        """What the engine last opened."""
        return self.link.state.opened

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Adapters that have weights, in declared order."""
        opened = self.opened
        return tuple(name for name in self.names if opened and name in opened.adapters)

    @property
    def weights(self) -> Mapping[str, float] | None:
        """The gate's last weights, None before any."""
        return self.routed.weights if self.routed and self.routed.weights and self.routed.mode not in NO_GATE else None

    @property
    def marks(self) -> dict[str, Mark]:
        """The adapters' colours and glyphs under the current theme."""
        return marks_for(self.names, adapter_palette(self.app.current_theme, self.config.look.palette))

    @property
    def ground(self) -> str:
        """The background that tints are blended with."""
        return self.app.current_theme.background or "#14171c"

    # ---- panes -----------------------------------------------------------------------------------------------------

    @property
    def prompt_pane(self) -> PromptPane:
        """The prompt."""
        return self.query_one(PromptPane)

    @property
    def desk(self) -> DeskPane:
        """The mixing desk."""
        return self.query_one(DeskPane)

    @property
    def answers(self) -> AnswersPane:
        """The answers."""
        return self.query_one(AnswersPane)

    @property
    def insight(self) -> InsightPane:
        """The insight."""
        return self.query_one(InsightPane)

    @property
    def runs(self) -> RunsPane:
        """The runs."""
        return self.query_one(RunsPane)

    @property
    def jobs_pane(self) -> JobsPane:
        """The jobs."""
        return self.query_one(JobsPane)

    @property
    def outline(self) -> OutlinePane:
        """The outline."""
        return self.query_one(OutlinePane)

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def key(self, key_id: str) -> str:
        """The key in force for a binding, as it is shown."""
        return display(keys_of(BY_ID[key_id], self.config.keys)[0])

    def say(self, text: str, *, error: bool = False, warning: bool = False, title: str = "") -> None:
        """A toast; foreign text in it is shown literally."""
        severity = "error" if error else "warning" if warning else "information"
        self.notify(sanitize(text), title=sanitize(title), severity=severity, markup=False)  # type: ignore[arg-type]

    def background(
        self, work: Callable[[], Coroutine[Any, Any, Any]], group: str, description: str, *, exclusive: bool = False
    ) -> Worker[Any]:
        """Run work beside the screen; `exclusive` ends what runs in the group. Failures are shown by the workbench."""
        return self.run_worker(
            cast("Any", work), group=group, description=description, exclusive=exclusive, exit_on_error=False
        )

    def save_soon(self) -> None:
        """Write the state in a moment; many calls make one write."""
        if self._save_timer is None:
            self._save_timer = self.set_timer(0.25, self._save)

    _save_timer: Timer | None = None

    async def _save(self) -> None:
        self._save_timer = None
        async with self._save_lock:
            data = self.setup.state_file.encode(self.state)
            try:
                await asyncio.to_thread(self.setup.state_file.write, data)
            except OSError as error:
                self.say(f"What you type cannot be saved: {error}", error=True)

    def save_now(self) -> None:
        """Write the state before leaving; a full disk must not keep anybody from leaving."""
        with contextlib.suppress(OSError):
            self.setup.state_file.write(self.setup.state_file.encode(self.state))
