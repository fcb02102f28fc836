"""All controllers of one workbench, and who listens to whom. Read this first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dlm_tui.app.controllers.adapters import Adapters
from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.conversations import Conversations
from dlm_tui.app.controllers.conversing import Conversing
from dlm_tui.app.controllers.copying import Copying
from dlm_tui.app.controllers.documents import Documents
from dlm_tui.app.controllers.elsewhere import Elsewhere
from dlm_tui.app.controllers.engine import EngineLife
from dlm_tui.app.controllers.export import Export
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.gate_history import GateHistory
from dlm_tui.app.controllers.gate_reports import GateReports
from dlm_tui.app.controllers.generation import Generation
from dlm_tui.app.controllers.interrupts import Interrupts
from dlm_tui.app.controllers.jobs import Jobs
from dlm_tui.app.controllers.keeping import Keeping
from dlm_tui.app.controllers.labelling import Labelling
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.named_mixes import SavedMixes
from dlm_tui.app.controllers.picking import Picking
from dlm_tui.app.controllers.preference_training import PreferenceTraining
from dlm_tui.app.controllers.prompts import Prompts
from dlm_tui.app.controllers.queue import Queue
from dlm_tui.app.controllers.recall import Recall
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.run_details import RunDetails
from dlm_tui.app.controllers.run_overlay import RunOverlay
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.controllers.sections import Sections
from dlm_tui.app.controllers.serving import Serving
from dlm_tui.app.controllers.set_running import SetRunning
from dlm_tui.app.controllers.settings import Settings
from dlm_tui.app.controllers.shown_answers import ShownAnswers
from dlm_tui.app.controllers.sources import Sources
from dlm_tui.app.controllers.status import StatusLines
from dlm_tui.app.controllers.surfaces import (
    AnswersSurface,
    DeskSurface,
    InsightSurface,
    KeysSurface,
    OutlineSurface,
    Pages,
    PromptSurface,
    Redrawn,
    RunsSurface,
    TalkSurface,
)
from dlm_tui.app.controllers.sweep import Sweep
from dlm_tui.app.controllers.teaching import Teaching
from dlm_tui.app.controllers.train_choice import TrainChoice
from dlm_tui.app.controllers.training import Training
from dlm_tui.app.controllers.trials import Trials
from dlm_tui.app.controllers.turn_lessons import TurnLessons
from dlm_tui.app.jobs import JobRecord
from dlm_tui.export.report import sentences


@dataclass(frozen=True)
class Surfaces:
    """The panes and lines that controllers draw on."""

    prompt: PromptSurface
    desk: DeskSurface
    answers: AnswersSurface
    talk: TalkSurface
    insight: InsightSurface
    runs: RunsSurface
    jobs: Redrawn
    outline: OutlineSurface
    status: Redrawn
    footer: KeysSurface
    leave: KeysSurface
    pages: Pages


class Controllers:
    """Built from the bottom up: each is given those below it, and tells those above through its signals."""

    def __init__(self, context: Context, surfaces: Surfaces) -> None:
        pages, prompt = surfaces.pages, surfaces.prompt
        self.context, self.surfaces = context, surfaces
        self.engine = EngineLife(context)
        self.documents = Documents(context, surfaces.outline)
        self.changes = Changes(context)
        self.sources = Sources(context, self.documents)
        self.copying = Copying(context, surfaces.answers, pages)
        self.sections = Sections(context, self.changes, self.copying)
        self.settings = Settings(context, self.documents)
        self.history = GateHistory(context, surfaces.runs)
        self.run_overlay = RunOverlay(context)
        self.trials = Trials(context)
        self.jobs = Jobs(context, surfaces.jobs, pages)
        self.queue = Queue(context, surfaces.jobs, pages)
        self.status = StatusLines(context, pages, surfaces.status, surfaces.footer, surfaces.leave)
        self.routing = Routing(context, prompt, surfaces.insight)
        self.mixing = Mixing(context, self.routing, prompt, surfaces.desk)
        self.sampling = AnswerSampling(context, prompt)
        self.keeping = Keeping(context)
        self.shown = ShownAnswers(context, prompt, surfaces.answers)
        self.generation = Generation(
            context, self.routing, self.mixing, self.sampling, self.keeping, self.shown, prompt, surfaces.answers, pages
        )
        self.recall = Recall(context, self.mixing, self.sampling, self.shown, self.generation, prompt, pages)
        self.conversing = Conversing(
            context, self.routing, self.mixing, self.sampling, self.keeping, self.generation, self.shown,
            prompt, surfaces.talk, pages,
        )  # fmt: skip
        self.conversations = Conversations(context, self.conversing)
        self.sweep = Sweep(context, self.mixing, prompt, surfaces.desk)
        self.comparison = GateComparison(context, self.routing, prompt)
        self.elsewhere = Elsewhere(context, self.comparison)
        self.training = Training(context, self.comparison, prompt, surfaces.runs, pages)
        self.train_choice = TrainChoice(context, self.training)
        self.run_details = RunDetails(context)
        self.adapters = Adapters(context, self.mixing, self.comparison)
        self.reports = GateReports(context, self.documents.open_line)
        self.labelling = Labelling(
            context, self.changes, self.routing, self.comparison, self.training, prompt, surfaces.answers, pages
        )
        self.teaching = Teaching(context, self.changes, self.shown, surfaces.answers)
        self.turn_lessons = TurnLessons(context, self.conversing, self.teaching, self.labelling)
        self.serving = Serving(context, self.copying, self.labelling, prompt, pages)
        self.export = Export(context, self.mixing, self.copying)
        self.saved_mixes = SavedMixes(context, self.mixing, self.generation, self.export)
        self.set_running = SetRunning(context, self.mixing, self.sampling)
        self.picking = Picking(context, self.teaching, self.set_running, self.sampling, prompt)
        self.preference_training = PreferenceTraining(context, self.changes, self.training, self.set_running)
        self.prompts = Prompts(context, self.routing, self.comparison, self.set_running, prompt, pages)
        self.interrupts = Interrupts(
            context, self.generation, self.conversing, self.jobs, self.sources, self.queue, pages
        )
        self._connect()

    def _connect(self) -> None:
        """Who listens to whom; where the order matters, listeners are called from left to right."""
        status, mixing = self.status, self.mixing
        self.engine.changed.connect(status.redraw, mixing.redraw, self.shown.mark)
        self.engine.ready.connect(
            self.elsewhere.engine_ready,
            self.generation.show_hint,
            self.documents.show,
            self.routing.route,
            self.comparison.note_saved,
            self.training.start_if_asked,
        )
        self.engine.failed.connect(self.generation.show_hint)
        self.context.job_changed.connect(
            self.training.job_changed, self.jobs.job_changed, status.redraw, mixing.job_changed
        )
        self.documents.changed.connect(status.redraw, mixing.redraw, self.sources.start, self.training.start_waiting)
        self.changes.taken_back.connect(
            self.labelling.taken_back,
            self.sections.taken_back,
            self.teaching.taken_back,
            self.preference_training.taken_back,
        )
        self.settings.changed.connect(status.show_keys, self.theme_changed, self.sampling.show)
        self.sampling.accepted.connect(self.generation.again)
        self.keeping.kept.connect(self.shown.ended)
        self.elsewhere.changed.connect(status.redraw, mixing.redraw, self.documents.show, self.generation.show_hint)
        self.routing.changed.connect(mixing.redraw)
        mixing.changed.connect(self.conversing.show_next)
        self.routing.failed.connect(mixing.show_problem)
        self.training.finished.connect(self.documents.show, self._sources_retrained)
        self.export.finished.connect(status.redraw, self.jobs.redraw)
        self.surfaces.pages.rearranged.connect(self.routing.explain_soon, self.jobs.mark_seen, status.redraw)

        self.documents.changed.connect(self.queue.document_changed, self.conversing.redraw)
        self.queue.found.connect(self._follow_found)
        self.queue.changed.connect(status.redraw)
        self.queue.resumed.connect(self.training.train)

    def _follow_found(self, record: JobRecord) -> None:
        """A job that this screen did not ask for ends as one that it did."""
        if record.kind == "train":
            self.context.ui.run(partial(self.training.follow, record), "job-train", "training")
        elif record.kind == "export":
            self.context.ui.run(partial(self.export.follow, record), "job-export", "export")
        elif record.kind == "import":
            self.context.ui.run(partial(self.adapters.follow_import, record), "job-import", "import")

    def show_result(self, record: JobRecord | None) -> None:
        """What came of a job: a report, a folder, what is in force; of one that is not over, how far it is."""
        if record is None:
            self.context.ui.say("No job is marked.")
        elif record.evaluation is not None:
            self.reports.show(record)
        else:
            report = record.export
            costs = [*report.notes, *sentences(report)] if report is not None else []
            text = "\n".join([record.summary or record.detail(), *costs])
            self.context.ui.say(text, title=record.title, error=record.state == "failed")

    def show_all(self) -> None:
        """Draw everything once, when the screen is up."""
        self.documents.show()
        self.mixing.redraw()
        self.generation.show_hint()
        self.sampling.show()
        self.status.redraw()
        self.status.show_keys()

    def start(self) -> None:
        """Start what runs beside the screen for as long as it is there."""
        self.context.ui.run(self.context.link.run, "engine", "engine")
        self.context.ui.run(self.documents.watch, "watch", "watch")
        self.sources.start()
        self.recall.start()
        self.conversing.start()
        self.history.poll()
        self.queue.start()

    def _sources_retrained(self) -> None:
        self.context.ui.run(self.sources.retrained, "retrained", "sources")

    def theme_changed(self) -> None:
        """Adapter colours follow the theme, whoever shows them."""
        context = self.context
        self.surfaces.answers.recolour(context.marks, context.config.look.answer_width)
        self.surfaces.insight.recolour(context.marks, context.background)
        self.mixing.redraw()
        self.conversing.redraw()
        self.documents.show()
        self.history.show_again()
