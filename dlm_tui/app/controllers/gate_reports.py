"""Reports about the gate: how well it routes held-out prompts, and what freezing it for an export costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.jobs import JobRecord
from dlm_tui.document.probes import NOTHING_BETWEEN
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import (
    Drift,
    Drifted,
    Evaluate,
    Evaluated,
    EvaluateJob,
    EvaluationReport,
    Failed,
    Progress,
)

if TYPE_CHECKING:
    from dlm_tui.app.screens.report import ReportScreen


class GateReports:
    """Runs a report while its dialog is open; `open_line` takes a person to the section behind a figure."""

    def __init__(self, context: Context, open_line: Callable[[int], None]) -> None:
        self._context, self._open_line = context, open_line

    async def judge(self) -> None:
        """Judge the gate by folds; behind other jobs it waits in line."""
        context = self._context
        if self._has_nothing_to_route():
            return
        if any(record.number is not None and not record.over.is_set() for record in context.board.records):
            setup = context.setup
            request = EvaluateJob(document=str(setup.path), home=str(setup.home), base=setup.base)
            context.ui.say("Judging the gate waits in line; Enter on it in the jobs pane shows the report.")
            context.ui.run(partial(context.board.run, request, "evaluate", "judge the gate"), "job-evaluate", "judging")
        else:
            await self._open(Evaluate(), "judging the gate")

    def _has_nothing_to_route(self) -> bool:
        """Whether the document declares too few adapters for a gate, which is then said."""
        nothing = len(self._context.document.adapter_names) < 2
        if nothing:
            self._context.ui.say(NOTHING_BETWEEN, warning=True)
        return nothing

    def show(self, record: JobRecord) -> None:
        """The report of a judgement that stood in line."""
        context = self._context
        if record.evaluation is not None:
            context.ui.run_to_dialog(partial(self._show, record.evaluation), "report", "report", exclusive=True)

    async def _show(self, report: EvaluationReport) -> None:
        from dlm_tui.app.screens.report import ReportScreen

        dialog = ReportScreen("the judgement", self._context.names, self._context.marks)
        dialog.on_line = self._open_line
        await self._context.ui.open_dialog(dialog)
        dialog.show_evaluation(report)

    async def drift(self) -> None:
        """What freezing costs."""
        if self._has_nothing_to_route():
            return
        await self._open(Drift(prompts=self._saved_prompts()), "measuring what freezing costs")

    def _saved_prompts(self) -> list[str]:
        """The prompts of all sets beside the document, each once, in order."""
        try:
            return PromptSets(self._context.setup.path).prompts()
        except PromptSetsError as error:
            self._context.ui.say(f"The saved prompts are left out: {error}", warning=True)
            return []

    async def _open(self, request: Evaluate | Drift, title: str) -> None:
        context = self._context
        if not context.link.ready:
            context.ui.say("This needs the engine, which is not ready yet.", warning=True)
            return
        if len(context.trained_names) < 2:
            context.ui.say(f"This needs a trained gate: {context.key('train.all')} trains it.", warning=True)
            return
        from dlm_tui.app.screens.report import ReportScreen

        dialog = ReportScreen(title, context.names, context.marks)
        dialog.on_line = self._open_line
        await context.ui.open_dialog(dialog)
        task = context.ui.run(partial(self._run, dialog, request), "report", title, exclusive=True)
        dialog.on_closed = task.cancel

    async def _run(self, dialog: ReportScreen, request: Evaluate | Drift) -> None:
        finished = False
        try:
            async for event in self._context.link.stream(request):
                if isinstance(event, Progress):
                    dialog.show_progress(event)
                elif isinstance(event, Evaluated):
                    dialog.show_evaluation(event.report)
                elif isinstance(event, Drifted):
                    dialog.show_drift(event.report)
                elif isinstance(event, Failed):
                    dialog.show_problem(event.text)
            finished = True
        except EngineGone as error:
            dialog.show_problem(str(error))
            finished = True
        finally:
            if not finished:
                await self._context.link.cancel(request)
