"""The workbench screen: composes the panes, starts the engine, the watch and the timers, and answers Esc and quit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.worker import Worker, WorkerState

from dlm_tui.app.base import Setup
from dlm_tui.app.editor import editor_command, run_editor
from dlm_tui.app.engine_link import EngineLink, LinkState
from dlm_tui.app.jobs import JobBoard
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.labelling import Labelling
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.insight import InsightPane
from dlm_tui.app.panes.jobs import JobsPane
from dlm_tui.app.panes.outline import OutlinePane
from dlm_tui.app.panes.prompt import PromptPane
from dlm_tui.app.panes.runs import RunsPane
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.document import Document
from dlm_tui.document.problems import body_problems
from dlm_tui.document.watch import Change, watch_document
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, GetStatus, Open, Status
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import Store
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.literal_static import ThrottledStatic
from dlm_widgets.page_tabs import PageTabs
from dlm_widgets.splitter import Splitter


class Workbench(Labelling):
    """The one main screen."""

    BINDINGS: ClassVar[list[BindingType]] = [b for b in bindings_for("app") if b.id != "app.palette"]

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._labels = []
        request = Open(
            document=str(setup.path), home=str(setup.home), base=setup.base, dtype=setup.config.generate.dtype
        )
        self.link = EngineLink(setup.engine_factory, request, self._engine_changed)
        self.board = JobBoard(setup.job_starter, self.job_changed)
        self._trained_once = False
        self.failures: list[str] = []

    def compose(self) -> ComposeResult:
        """Status, centre, side, outline, footer."""
        with Horizontal(id="top"):
            yield ThrottledStatic(self.status_words, id="status")
            yield KeyBar(id="leave")
        with Horizontal(id="work"):
            with Vertical(id="centre"):
                yield PromptPane(self.state.prompt)
                yield Splitter("height", "horizontal", id="split-height")
                yield DeskPane(self.fill_desk)
                yield PageTabs(id="tabs-top")
                yield AnswersPane(
                    columns=self.state.columns, heat=self.state.heat, card_width=self.config.look.answer_width
                )
            yield Splitter("width", "vertical", id="split-width")
            with Vertical(id="side"):
                yield PageTabs(id="tabs-side")
                yield InsightPane()
                yield PageTabs(id="tabs-lower")
                yield RunsPane()
                yield JobsPane(self.board.records)
            with Vertical(id="outline-column"):
                yield PageTabs(id="tabs-outline")
                yield OutlinePane()
        yield KeyBar(id="footer")

    def on_mount(self) -> None:
        """Arrange, then start everything that runs beside the screen."""
        self.rearrange()
        self.refresh_outline()
        self.refresh_desk()
        self.show_answers_hint()
        self.refresh_status()
        self.refresh_footer()
        self.focus_pane("prompt")
        self.background(self.link.run, "engine", "engine")
        self.background(self._watch, "watch", "watch")
        self.poll_metrics()
        self.set_interval(1.0, self.poll_metrics)

    # ---- engine ----------------------------------------------------------------------------------------------------

    def _engine_changed(self, state: LinkState) -> None:
        if not self.is_attached:
            return
        self.refresh_status()
        self.refresh_desk()
        if state.phase == "ready":
            self.show_answers_hint()
            self.refresh_outline()
            self.route()
            self.note_saved()
            self._train_if_asked()
            self.call_after_refresh(self._opened_once)
            if state.opened and state.opened.warning:
                self.say(state.opened.warning, warning=True, title="Opened, but not all is well")
        elif state.phase == "restarting":
            self.say(state.text, warning=True, title="The engine is gone; your prompt is kept")
        elif state.phase == "failed":
            self.show_answers_hint()
            self.say(state.text, error=True, title="The engine cannot work")

    def _opened_once(self) -> None:
        when_ready, self.setup.when_ready = self.setup.when_ready, lambda: None
        when_ready()

    def _train_if_asked(self) -> None:
        if self.setup.train_if_untrained and not self._trained_once and not self.trained_names:
            self._trained_once = True
            self.say(
                "Training starts now; watch it in the jobs pane. Esc twice stops it.",
                title="Nothing is trained yet",
            )
            self.start_training(None)
            self.show_page("jobs")

    def action_restart_engine(self) -> None:
        """Try again after a failure."""
        if self.link.state.phase == "failed":
            self.link.restart()
        else:
            self.say(f"The engine is {self.link.state.phase}.")

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Nothing fails in silence."""
        if event.state is WorkerState.ERROR:
            error = event.worker.error
            self.failures.append(f"{event.worker.description}: {type(error).__name__}: {error}")
            self.say(f"{event.worker.description}: {error}", error=True, title="Unexpected")

    # ---- document --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for change in watch_document(self.setup.path, self.document.sha256):
            await self._document_changed(change)

    async def _document_changed(self, change: Change) -> None:
        if change.document is None:
            self.document_error = str(change.error)
            self.outline.show_error(f"{change.error} The last good state is shown.")
            self.refresh_status()
            return
        self.document_error = None
        self.outline.show_error(None)
        self.use_document(change.document)
        if self.link.ready:
            try:
                await self.link.reload()
            except EngineGone:
                return
            self.refresh_outline()

    def use_document(self, document: Document) -> None:
        """Show another state of the document."""
        self.document = document
        self.state.mix.keep_only(self.names)
        if document.dlm_id != self.store.root.name:
            self.store = Store(self.setup.home, document.dlm_id)
        self.refresh_outline()
        self.refresh_desk()
        self.refresh_status()

    def refresh_outline(self) -> None:
        """Rows, counts, problems."""
        versions = self.opened.versions if self.opened else {}
        problems = body_problems(self.document)
        self.outline.show(self.document, problems, self.marks, versions, set(self.state.trained_sections))

    @on(OutlinePane.OpenLine)
    def _open_line(self, event: OutlinePane.OpenLine) -> None:
        self.open_line(event.line)

    def open_line(self, line: int) -> None:
        """Open the document in the editor; the screen comes back when it is closed."""
        self.edit_file(self.setup.path, line)

    def edit_file(self, path: Path, line: int = 1) -> None:
        """Run the editor on a file with the screen put aside."""
        command = editor_command(self.config.editor, path, line)
        try:
            with self.app.suspend():
                problem = run_editor(command)
        except SuspendNotSupported:
            self.say(f"No editor can be opened here; the place is {path.name}:{line}.", warning=True)
            return
        if problem:
            self.say(f"{shlex.join(command)}: {problem}", error=True, title="The editor did not work")

    # ---- esc, quit, help -------------------------------------------------------------------------------------------

    async def action_cancel(self) -> None:
        """Stop what is running and say so; else unzoom; else leave the prompt."""
        if await self.stop_answer():
            return
        if self.ask_cancel_job():
            return
        if self.zoom:
            self.action_zoom()
        elif self.pane_of(self.focused) == "prompt":
            self.focus_pane("desk")

    def action_quit(self) -> None:
        """Leave; with a job running ask once."""
        record = self.board.running()
        if record is None:
            self.leave()
            return
        question = f"{record.title} is running ({record.detail()}). Leaving stops it; what is in force stays."
        self.app.push_screen(ConfirmScreen(question, "Stop it and leave"), self._quit_answered)

    def _quit_answered(self, yes: bool | None) -> None:
        if yes:
            self.leave()

    def leave(self) -> None:
        """Write the state and go."""
        self.save_now()
        self.app.exit(0)

    def action_help(self) -> None:
        """All keys."""
        from dlm_tui.app.config import config_path

        self.app.push_screen(HelpScreen(self.config.keys, str(config_path())))

    def action_edit_config(self) -> None:
        """Open the configuration file in the editor and use what was saved."""
        from dlm_tui.app.config import ensure_config_file, load_config

        try:
            path = ensure_config_file()
            self.edit_file(path)
            config = load_config(path)
        except (DlmTuiError, OSError) as error:
            self.say(str(error), error=True, title="The configuration is not used")
            return
        self.config = self.setup.config = config
        self.app.set_keymap(config.keys)
        self.refresh_footer()
        self.refresh_desk()

    def action_engine_log(self) -> None:
        """The last lines the engine wrote."""
        from dlm_tui.app.screens.log import LogScreen

        engine = self.link.engine
        lines = list(engine.log) if engine is not None else []
        self.app.push_screen(LogScreen("Engine log", lines or list(self.link.state.log)))

    def action_engine_facts(self) -> None:
        """What runs the model."""
        self.background(self._show_engine_facts, "facts", "about the engine", exclusive=True)

    async def _show_engine_facts(self) -> None:
        from dlm_tui.app.engine_facts import engine_rows
        from dlm_tui.app.screens.engine import EngineScreen

        opened = self.opened
        try:
            async for event in self.link.stream(GetStatus()):
                if isinstance(event, Status) and opened is not None:
                    rows = engine_rows(opened, event, self.names)
                    self.app.push_screen(EngineScreen(rows))
                elif isinstance(event, Failed):
                    self.say(event.text, error=True)
        except EngineGone as error:
            self.say(f"There is nothing to tell: {error}.", warning=True)

    def on_unmount(self) -> None:
        """Nothing typed is lost, however the program ends."""
        self.save_now()

    def theme_changed(self) -> None:
        """Adapter colours follow the theme."""
        self.refresh_desk()
        self.refresh_outline()
        self._metrics_version = None
        self.poll_metrics()

    # ---- prompts ---------------------------------------------------------------------------------------------------

    def action_new_prompt(self) -> None:
        """Keep the prompt in the history and start a new one."""
        if self.prompt_pane.text.strip():
            self.state.remember(self.prompt_pane.text, dict(self.weights or {}), self.gate_run)
        self.prompt_pane.set_text("")
        self.go_to("prompt")

    def action_history(self) -> None:
        """Search the prompts asked before."""
        from dlm_tui.app.screens.history import HistoryScreen

        self.app.push_screen(HistoryScreen(self.state.history, self.names, self.marks), self._use_prompt)

    def action_prompt_sets(self) -> None:
        """Named sets of prompts."""
        from dlm_tui.app.screens.prompt_sets import PromptSetsScreen
        from dlm_tui.document.prompt_sets import PromptSets

        screen = PromptSetsScreen(PromptSets(self.setup.path), self.prompt_pane.text)
        screen.on_used = self.open_set
        self.app.push_screen(screen, self._use_prompt)

    def _use_prompt(self, text: str | None) -> None:
        self.save_soon()
        if text is not None:
            self.prompt_pane.set_text(text)
            self.go_to("prompt")
