"""The workbench screen: composes the panes, passes keys and messages on to the controllers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from dlm_tui.app.commands import Command
from dlm_tui.app.controllers.context import open_context
from dlm_tui.app.controllers.layout import Layout
from dlm_tui.app.controllers.palette import palette_commands
from dlm_tui.app.controllers.wiring import Controllers, Surfaces
from dlm_tui.app.keys import Key, bindings_for
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.insight import InsightPane
from dlm_tui.app.panes.jobs import JobsPane
from dlm_tui.app.panes.outline import OutlinePane
from dlm_tui.app.panes.prompt import PromptPane
from dlm_tui.app.panes.runs import RunsPane
from dlm_tui.app.panes.talk import TalkPane
from dlm_tui.app.screen_ui import ScreenUi
from dlm_tui.app.setup import Setup
from dlm_tui.app.terminal import HANG_UP
from dlm_widgets.border_button import BorderButtonPressed
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.literal_static import ThrottledStatic
from dlm_widgets.mixing_desk import MixingDesk
from dlm_widgets.page_tabs import PageTabs
from dlm_widgets.splitter import Splitter

_POLL_SECONDS = 1.0


class Workbench(Screen[None]):
    """The one main screen. What it does stands in `controllers`."""

    BINDINGS: ClassVar[list[BindingType]] = [b for b in bindings_for("app") if b.id != "app.palette"]

    def __init__(self, setup: Setup) -> None:
        super().__init__(id="workbench")
        self.ui = ScreenUi(self)
        self.context = context = open_context(setup, self.ui)
        self.panes = Layout(context, self)
        state = context.state
        self.prompt_pane = PromptPane(state.prompt)
        self.desk = DeskPane(lambda: self.controllers.mixing.fill())
        self.answers = AnswersPane(columns=state.columns, heat=state.heat, card_width=context.config.look.answer_width)
        self.talk = TalkPane()
        self.insight = InsightPane()
        self.runs = RunsPane()
        self.jobs_pane = JobsPane(context.board.listed, lambda: self.controllers.queue.words(), lambda: context.labels)
        self.outline = OutlinePane()
        self.status_line = ThrottledStatic(
            lambda: self.controllers.status.words(self.status_line.size.width), id="status"
        )
        self.footer, self.leave_key = KeyBar(id="footer"), KeyBar(id="leave")
        self.controllers = Controllers(
            context,
            Surfaces(
                prompt=self.prompt_pane,
                desk=self.desk,
                answers=self.answers,
                talk=self.talk,
                insight=self.insight,
                runs=self.runs,
                jobs=self.jobs_pane,
                outline=self.outline,
                status=self.status_line,
                footer=self.footer,
                leave=self.leave_key,
                pages=self.panes,
            ),
        )
        self.failures: list[str] = []

    def compose(self) -> ComposeResult:
        """Status, centre, side, outline, footer."""
        with Horizontal(id="top"):
            yield self.status_line
            yield self.leave_key
        with Horizontal(id="work"):
            with Vertical(id="centre"):
                yield self.prompt_pane
                yield Splitter("height", "horizontal", id="split-height")
                yield self.desk
                yield PageTabs(id="tabs-top")
                yield self.answers
                yield self.talk
            yield Splitter("width", "vertical", id="split-width")
            with Vertical(id="side"):
                yield PageTabs(id="tabs-side")
                yield self.insight
                yield PageTabs(id="tabs-lower")
                yield self.runs
                yield self.jobs_pane
            with Vertical(id="outline-column"):
                yield PageTabs(id="tabs-outline")
                yield self.outline
        yield self.footer

    # ---- events ----------------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Arrange and draw, then start everything that runs beside the screen."""
        self.panes.rearrange()
        self.controllers.show_all()
        self.panes.focus_pane("prompt")
        self.controllers.start()
        self.set_interval(_POLL_SECONDS, self.controllers.history.poll)
        self.set_interval(_POLL_SECONDS, self.controllers.settings.poll)
        self.set_interval(_POLL_SECONDS, self.controllers.engine.poll)
        self.set_interval(_POLL_SECONDS, self.controllers.elsewhere.poll)

    def on_unmount(self) -> None:
        """Nothing typed is lost, however the program ends."""
        self.context.saver.now()
        self.controllers.generation.keep_now()
        self.controllers.conversing.keep_now()
        if self.app.return_code == HANG_UP:
            self.controllers.queue.go_on_alone()

    def on_resize(self, event: events.Resize) -> None:
        """Another size, another arrangement."""
        self.call_later(self.panes.rearrange)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Another pane, other keys."""
        self.controllers.status.show_keys()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Nothing fails in silence."""
        if event.state is WorkerState.ERROR:
            error = event.worker.error
            self.failures.append(f"{event.worker.description}: {type(error).__name__}: {error}")
            self.ui.say(f"{event.worker.description}: {error}", error=True, title="Unexpected")

    async def on_key_bar_pressed(self, event: KeyBar.Pressed) -> None:
        """A click on a footer key runs its action where the focus is."""
        event.stop()
        await self.run_in(self.panes.focused_pane, event.action)

    @on(BorderButtonPressed)
    async def _border_button_pressed(self, event: BorderButtonPressed) -> None:
        """A click on a word of an edge goes to that pane and does there what the key does."""
        event.stop()
        place = self.panes.front(event.place)
        self.panes.focus_pane(place)
        await self.run_in(place, event.action)

    async def run_key(self, key: Key) -> None:
        """Do what a binding does; the pane it belongs to is shown first."""
        if key.where != "app":
            self.panes.go_to(key.where)
        await self.run_in(key.where if key.where != "app" else None, key.action)

    async def run_in(self, pane_id: str | None, action: str) -> None:
        """Run an action of the key table where it belongs: in the pane, on the screen or in the program."""
        name = action.partition("(")[0]
        pane = self.query_one(f"#{pane_id}") if pane_id else self
        here = next((node for node in (pane, self) if hasattr(node, f"action_{name}")), self.app)
        await self.app.run_action(action, default_namespace=here)

    def commands(self) -> Iterator[Command]:
        """What the palette offers."""
        return palette_commands(self.controllers, self.run_key)

    @on(PromptPane.Typed)
    def _typed(self, event: PromptPane.Typed) -> None:
        self.controllers.routing.typed(event.text)
        self.controllers.recall.typed()

    @on(MixingDesk.FaderMoved)
    def _fader_moved(self, event: MixingDesk.FaderMoved) -> None:
        self.controllers.mixing.move_fader(event.name, event.value, drags=event.drags)

    @on(MixingDesk.Switched)
    def _switched(self, event: MixingDesk.Switched) -> None:
        self.controllers.mixing.switch(event.name, event.part)

    @on(DeskPane.ResetPressed)
    def _reset_pressed(self) -> None:
        self.controllers.mixing.reset()

    @on(DeskPane.SweepPressed)
    async def _sweep_pressed(self) -> None:
        await self.controllers.sweep.open()

    @on(AnswersPane.SettingsChanged)
    def _answers_settings(self, event: AnswersPane.SettingsChanged) -> None:
        self.controllers.generation.keep_settings(event.columns, event.heat)

    @on(AnswersPane.LabelPressed)
    def _label_pressed(self, event: AnswersPane.LabelPressed) -> None:
        self.controllers.labelling.open(event.text)

    @on(AnswersPane.TeachPressed)
    def _teach_pressed(self, event: AnswersPane.TeachPressed) -> None:
        self.controllers.teaching.open(event.how)

    @on(TalkPane.TurnPressed)
    def _turn_pressed(self, event: TalkPane.TurnPressed) -> None:
        self.controllers.conversing.at_turn(event.what, event.turn)

    @on(TalkPane.TeachPressed)
    def _turn_teaches(self, event: TalkPane.TeachPressed) -> None:
        self.controllers.turn_lessons.open(event.how)

    @on(JobsPane.CancelPressed)
    def _cancel_pressed(self, event: JobsPane.CancelPressed) -> None:
        self.controllers.jobs.cancel_running(event.record)

    @on(JobsPane.PausePressed)
    def _pause_pressed(self) -> None:
        self.controllers.queue.toggle_pause()

    @on(JobsPane.MovePressed)
    def _move_pressed(self, event: JobsPane.MovePressed) -> None:
        self.controllers.queue.move(event.record, event.by)

    @on(JobsPane.ResultPressed)
    def _result_pressed(self, event: JobsPane.ResultPressed) -> None:
        self.controllers.show_result(event.record)

    @on(RunsPane.DetailsPressed)
    def _run_details(self) -> None:
        self.controllers.run_details.open()

    @on(RunsPane.OverlayPressed)
    def _overlay_pressed(self) -> None:
        self.controllers.run_overlay.open()

    @on(OutlinePane.OpenLine)
    def _open_line(self, event: OutlinePane.OpenLine) -> None:
        self.controllers.documents.open_line(event.line)

    @on(OutlinePane.OpenFile)
    def _open_file(self, event: OutlinePane.OpenFile) -> None:
        self.controllers.documents.open_file(event.path)

    @on(OutlinePane.ChangeSection)
    def _change_section(self, event: OutlinePane.ChangeSection) -> None:
        self.controllers.sections.change(event.what, event.section, event.adapter)

    @on(PageTabs.Chosen)
    def _tab_chosen(self, event: PageTabs.Chosen) -> None:
        self.panes.go_to(event.page)

    @on(Splitter.Dragged)
    def _dragged(self, event: Splitter.Dragged) -> None:
        self.panes.resize(event.name, event.delta)

    # ---- actions of the key table ----------------------------------------------------------------------------------

    def action_answer(self) -> None:
        """Answer with the mix on the desk."""
        self.controllers.generation.answer()

    def action_compare(self) -> None:
        """Base, gated, each adapter alone, and the custom mix if there is one."""
        self.controllers.generation.compare()

    def action_reroll(self) -> None:
        """Ask again with a new seed."""
        self.controllers.generation.reroll()

    def action_other_temperature(self) -> None:
        """Ask again at the next temperature."""
        self.controllers.generation.other_temperature()

    def action_sampling(self) -> None:
        """How the next answers are sampled."""
        self.controllers.sampling.open()

    def action_answers(self) -> None:
        """Find an answer that was given before."""
        self.controllers.recall.open()

    def action_compare_words(self) -> None:
        """Compare an answer with another one, word by word."""
        self.controllers.recall.compare()

    def action_older_answers(self, way: int) -> None:
        """Older or newer answers to the prompt."""
        self.controllers.recall.step(way)

    def action_follow_up(self) -> None:
        """Ask behind what is in front."""
        self.controllers.conversing.follow_up()

    def action_talk(self) -> None:
        """The conversation, or the answers again."""
        self.controllers.conversing.show_or_hide()

    def action_conversations(self) -> None:
        """Those of earlier."""
        self.controllers.conversations.open()

    def action_label(self) -> None:
        """Say which adapter the prompt belongs to."""
        self.controllers.labelling.open()

    def action_undo_label(self) -> None:
        """Take the last change of the document back."""
        self.controllers.changes.undo()

    def action_new_prompt(self) -> None:
        """Keep the prompt in the history and start a new one."""
        self.controllers.prompts.new()

    def action_history(self) -> None:
        """Search the prompts asked before."""
        self.controllers.prompts.open_history()

    def action_prompt_sets(self) -> None:
        """Named sets of prompts."""
        self.controllers.prompts.open_sets()

    def action_pick(self) -> None:
        """Draw answers and pick the better ones."""
        self.controllers.picking.open()

    def action_train_preferences(self) -> None:
        """Train the adapters that have enough preferences."""
        self.controllers.preference_training.start()

    def action_focus_prompt(self) -> None:
        """Go to the prompt."""
        self.panes.go_to("prompt")

    def action_mix_mode(self) -> None:
        """Gate, uniform, custom."""
        self.controllers.mixing.next_mode()

    def action_named_mixes(self) -> None:
        """Mixes with names."""
        self.controllers.saved_mixes.open()

    def action_mix_undo(self) -> None:
        """Take the last change of the desk back."""
        self.controllers.mixing.undo()

    def action_train(self) -> None:
        """Train every adapter, then the gate."""
        self.controllers.training.start()

    def action_train_dialog(self) -> None:
        """Choose what to train and how."""
        self.controllers.train_choice.open()

    def action_train_gate(self) -> None:
        """Train only the gate."""
        self.controllers.training.start_gate()

    async def action_evaluate(self) -> None:
        """Judge the gate by folds."""
        await self.controllers.reports.judge()

    def action_try_settings(self) -> None:
        """Settings on held-out sections."""
        self.controllers.trials.open()

    def action_adapters(self) -> None:
        """Versions of the adapters."""
        self.controllers.adapters.open()

    async def action_drift(self) -> None:
        """What freezing costs."""
        await self.controllers.reports.drift()

    def action_export(self) -> None:
        """Export with the last used settings, at once."""
        self.controllers.export.start()

    def action_export_dialog(self) -> None:
        """Choose what to export and where."""
        self.controllers.export.open()

    def action_serve(self) -> None:
        """Start the server, or stop it."""
        self.controllers.serving.toggle()

    def action_traffic(self) -> None:
        """The last served requests."""
        self.controllers.serving.open()

    def action_copy(self) -> None:
        """The current answer; without one, the last export's command."""
        self.controllers.copying.copy_current()

    def action_save_screenshot(self) -> None:
        """The screen as SVG."""
        self.controllers.copying.save_screenshot()

    def action_jump(self) -> None:
        """A letter on every pane."""
        self.panes.jump()

    def action_page(self, step: int) -> None:
        """Next or previous page."""
        self.panes.turn_page(step)

    def action_zoom(self) -> None:
        """The focused pane alone, or everything again."""
        self.panes.toggle_zoom()

    def action_resize(self, what: str, step: int) -> None:
        """Move a border."""
        self.panes.resize(what, step)

    def action_reset_layout(self) -> None:
        """The usual sizes."""
        self.panes.reset()

    def action_take_in(self) -> None:
        """Use what was trained elsewhere."""
        self.controllers.elsewhere.take_in()

    def action_restart_engine(self) -> None:
        """Try again after a failure."""
        self.controllers.engine.restart()

    async def action_cancel(self) -> None:
        """Stop the answer; else leave the prompt; else stop a job, when pressed twice; else unzoom."""
        await self.controllers.interrupts.escape()

    def action_quit(self) -> None:
        """Leave; with a job running ask once."""
        self.controllers.interrupts.quit()

    def action_help(self) -> None:
        """All keys, those of the focused pane first."""
        self.controllers.settings.show_keys(self.panes.focused_pane)
