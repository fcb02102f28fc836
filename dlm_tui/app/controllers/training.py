"""Training: all adapters in a job, the gate alone in the engine, and what is said afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.gate_comparison import GateComparison, changed_text, moves_text
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import Pages, PromptSurface, RunsSurface
from dlm_tui.app.jobs import JobRecord
from dlm_tui.document import Document
from dlm_tui.document.probes import NO_GATE
from dlm_tui.document.side_file import side_file_path
from dlm_tui.engine.protocol import Event, Progress, TrainGate, TrainJob
from dlm_tui.errors import full_stop
from dlm_tui.store import KindChoices, Store, StoreError, adapter_versions, alarm_text
from dlm_tui.store.adapter_kind import collapsed_selection, tail_words


class Training:
    """One training at a time."""

    def __init__(
        self, context: Context, comparison: GateComparison, prompt: PromptSurface, runs: RunsSurface, pages: Pages
    ) -> None:
        self._context, self._comparison = context, comparison
        self._prompt, self._runs, self._pages = prompt, runs, pages
        self._started_once = False
        self._waiting: tuple[Store, Callable[[], None]] | None = None  # what to train with the next good save
        self.finished: Signal[[]] = Signal()
        """A training of the adapters is over, however it ended."""

    def start(
        self,
        adapters: Sequence[str] | None = None,
        choices: KindChoices | None = None,
        calibration: Path | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Train these adapters, or all, each in its kind, then the gate; `then` once what this training made is in
        force."""
        context = self._context
        if self._is_placed(adapters, choices or KindChoices()) or self.refuses():
            return
        if context.document_error:
            self._waiting = context.store, partial(self.start, adapters, choices, calibration, then)
            context.ui.say(
                "The document cannot be read right now; training starts with the next good save.", warning=True
            )
            return
        self._waiting = None
        title = "train " + (", ".join(adapters) if adapters else context.document.training_words)
        request = TrainJob(
            document=str(context.setup.path),
            home=str(context.setup.home),
            base=context.setup.base,
            adapters=list(adapters) if adapters is not None else None,
            choices=choices or KindChoices(),
            calibration=str(calibration) if calibration is not None else None,
        )
        self.train(request, title, then)

    def train(self, request: TrainJob, title: str, then: Callable[[], None] = lambda: None) -> None:
        """Run a training, or let it wait in line; `then` once what it made is in force."""
        if ahead := len([one for one in self._context.board.listed() if one.number and not one.over.is_set()]):
            self._context.ui.say(f"{title} waits in line, {ahead} before it.")
        self._context.ui.run(partial(self._train, request, title, then), "job-train", "training")

    def _is_placed(self, adapters: Sequence[str] | None, choices: KindChoices) -> bool:
        """Whether the same training waits in line already, or runs on the document as it is, which is then said."""
        wanted = (list(adapters) if adapters is not None else None, choices, False)
        plain = wanted == (None, KindChoices(), False)  # one with a choice of its own may be wanted for more than that
        running = self._context.board.running("train")
        is_read = plain and running is not None and _reads(running, self._context.document)
        for record in [*([running] if running is not None and is_read else []), *self._context.board.waiting()]:
            request = record.request
            if isinstance(request, TrainJob) and (request.adapters, request.choices, request.gate_only) == wanted:
                how = "is running" if record.state == "running" else "waits in line"
                self._context.ui.say(f"{record.title} {how} already; it is in the jobs pane.", warning=True)
                self._pages.show_page("jobs")
                return True
        return False

    def start_waiting(self) -> None:
        """The document changed: a training that was asked for while it could not be read starts.

        With another dlm_id it is another document, of which nobody asked for that.
        """
        context = self._context
        if self._waiting is None or context.document_error:
            return
        (store, start), self._waiting = self._waiting, None
        if store.root == context.store.root:
            start()
        else:
            trains = f"{context.key('train.all')} trains the document that is there now"
            context.ui.say(f"The document has another dlm_id; {trains}.", warning=True, title="Training does not start")

    def start_if_asked(self) -> None:
        """Train a document without adapters at once, if the program was started so."""
        context = self._context
        if context.setup.train_if_untrained and not self._started_once and not context.trained_names:
            self._started_once = True
            context.ui.say(
                "Training starts now; watch it in the jobs pane. Outside the prompt Esc, pressed twice, stops it.",
                title="Nothing is trained yet",
            )
            self.start()
            self._pages.show_page("jobs")

    def refuses(self) -> bool:
        """Whether a training runs already, or the store is gone, which is then said."""
        if self._context.store_is_gone:
            gone = f"{self._context.store.root} is gone: bring it back, or open the document anew to begin without it."
            self._context.ui.say(gone, error=True, title="Nothing was trained")
            return True
        board = self._context.board
        if not board.running("gate" if board.line is not None else "train", "gate"):
            return False
        self._context.ui.say("A training is already running; it is in the jobs pane.", warning=True)
        self._pages.show_page("jobs")
        return True

    async def _train(self, request: TrainJob, title: str, then: Callable[[], None]) -> None:
        self._comparison.remember_current()
        placed = await self._context.board.place(request, "train", title)
        if placed is not None:
            await self.follow(placed, then)
            return
        self._runs.begin_losses()
        before = await self._versions()
        await self._ended(await self._context.board.run_here(request, "train", title), before, then)

    async def follow(self, record: JobRecord, then: Callable[[], None] = lambda: None) -> None:
        """A training that stands in line, to its end; `then` once what it made is in force."""
        await record.begun.wait()
        if record.left:
            return
        self._runs.begin_losses()
        before = await self._versions()
        await record.over.wait()
        await self._ended(record, before, then)

    async def _ended(self, record: JobRecord, before: Mapping[str, int], then: Callable[[], None]) -> None:
        context = self._context
        # The store says what is in force, whatever the job said last, and even if it said nothing any more.
        after = await self._versions()
        if record.left:
            return
        committed = {name: version for name, version in after.items() if before.get(name) != version}
        in_force = bool(committed) or record.state == "done"
        if in_force:
            context.state.trained_sections = [section.section_id for section in context.document.sections]
            await self._comparison.use_new_gate()
        self._say_end(record, committed)
        self.finished.emit()
        if in_force:
            then()

    async def _versions(self) -> dict[str, int]:
        """The version in force of every adapter, by the store; {} while that cannot be read."""
        context = self._context
        try:
            found = await asyncio.to_thread(adapter_versions, context.store, context.names)
        except (StoreError, OSError):
            return {}
        return {name: item.version for name, item in found.items()}

    def _say_end(self, record: JobRecord, committed: Mapping[str, int]) -> None:
        """How a training ended and what is in force since."""
        say = self._context.ui.say
        now = "In force now: " + ", ".join(f"{name} version {version}" for name, version in committed.items()) + "."
        if record.state == "done":
            for text in _alarms(record):
                say(text, warning=True, title="The gate", lasting=True)
            for text in _learned_nothing(record):
                say(text, warning=True, title="Next to nothing was learned", lasting=True)
            for text in _selections(record, collapsed=True):
                say(text, warning=True, title="The selection", lasting=True)
            told = " ".join(_selections(record, collapsed=False))
            say(f"Trained: {record.summary}. {told} {changed_text(self._comparison.moved)}".strip())
            if self._context.state.page == "jobs" and self._pages.focused_pane != "jobs":
                self._pages.show_page("answers")
        elif record.state == "failed" and committed:
            title = "Training broke off after the new adapters were in force"
            say(f"{full_stop(record.summary)} {now}", error=True, title=title, lasting=True)
        elif record.state == "failed":
            say(record.summary, error=True, title="Training failed; the adapters before it stay in force")
        elif committed:
            say(now, warning=True, title="Stopped after the new adapters were in force", lasting=True)

    # ---- the gate alone --------------------------------------------------------------------------------------------

    def start_gate(self) -> None:
        """Train only the gate, in the resident engine."""
        if not self._context.document.gate_enabled:
            self._context.ui.say(NO_GATE, warning=True)
            return
        if self.refuses():
            return
        setup = self._context.setup
        if any(record.number is not None and not record.over.is_set() for record in self._context.board.records):
            request = TrainJob(document=str(setup.path), home=str(setup.home), base=setup.base, gate_only=True)
            self.train(request, "train the gate")
        elif not self._context.link.ready:
            self._context.ui.say("The gate trains in the engine, which is not ready yet.", warning=True)
        else:
            self._context.ui.run(self._train_gate, "job-train", "gate training")

    async def _train_gate(self) -> None:
        text = self._prompt.text.strip()
        record = await self.retrain_gate()
        self.say_gate(record, text, title="Gate trained" if record.state == "done" else "")

    async def retrain_gate(self) -> JobRecord:
        """Train the gate on the document as it is now and use it at once."""
        context = self._context
        self._comparison.remember_current()
        self._runs.begin_losses("gate")
        record = await context.board.follow(context.link.stream(TrainGate()), "gate", "train the gate")
        if record.trained is not None and record.state == "done":
            context.gate_run = record.trained.run_id
            await self._comparison.use_new_gate()
        return record

    def say_gate(self, record: JobRecord, text: str, *, lead: str = "", trail: str = "", title: str = "") -> None:
        """One toast about a retrained gate: `lead`, what happened to the weights of the prompt `text`, `trail`."""
        say, moved = self._context.ui.say, self._comparison.moved
        if record.state == "cancelled":
            say(f"{lead} The gate was not retrained. {trail}".strip(), warning=True, title=title)
        elif record.state != "done" or record.trained is None:
            told = f"{lead} The gate was not changed: {record.summary} {trail}".strip()
            say(told, error=True, title=title, lasting=True)
        else:
            gate = record.trained
            alarm = alarm_text(gate.mode, gate.reason, gate.warning)
            words = [lead, moves_text(moved, text, self._context.names), changed_text(moved), alarm, trail]
            say(" ".join(word for word in words if word), warning=bool(alarm), title=title, lasting=bool(alarm))

    # ---- losses ----------------------------------------------------------------------------------------------------

    def job_changed(self, record: JobRecord, event: Event | None) -> None:
        """Keep the losses of a training, for the chart."""
        if isinstance(event, Progress) and event.loss is not None and record.kind in {"train", "gate"}:
            self._runs.add_loss(event.scope or "gate", event.loss_kind, event.done, event.loss)


def _reads(record: JobRecord, document: Document) -> bool:
    """Whether a running job surely reads the document as it is now: what else it takes in is not looked at.

    The time of a file's last change of any kind counts, as that of its content can be set back.
    """
    if record.since is None or document.path is None or document.training.sources:
        return False
    try:
        found = [path.stat() for path in (document.path, side_file_path(document.path)) if path.exists()]
    except OSError:
        return False
    return all(max(info.st_mtime, info.st_ctime) < record.since for info in found)


def _learned_nothing(record: JobRecord) -> list[str]:
    """The adapters of a finished training that learned next to nothing, and what to do about it."""
    return [item.warning for item in record.training.adapters.values() if item.warning] if record.training else []


def _alarms(record: JobRecord) -> list[str]:
    """What a finished training has to tell against the gate."""
    report = record.training
    if report is None:
        return record.warnings
    gate = report.gate
    alarm = alarm_text(gate.mode, gate.reason, gate.warning) if gate is not None else ""
    return [text for text in (report.gate_error, alarm) if text]


def _selections(record: JobRecord, *, collapsed: bool) -> list[str]:
    """What the tail depths of a finished training's selections say, of those that collapsed or of the others."""
    trained = record.training.adapters if record.training is not None else {}
    return [
        f"{name}: {tail_words(one.selection, one.tail_depth)}."
        for name, one in trained.items()
        if one.tail_depth and collapsed_selection(one.selection, one.tail_depth) == collapsed
    ]
