"""The train dialog: how each adapter was trained, what is chosen now, and the plan of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.training import Training
from dlm_tui.counting import counted
from dlm_tui.document import Document, sources
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import AdapterKind, training_records
from dlm_tui.system_errors import sentence_of
from dlm_tui.training.plan import AdapterPlan, TrainingPlan, plan_training
from dlm_widgets.bars import bar_text
from dlm_widgets.sanitize import assemble, fit, sanitize

if TYPE_CHECKING:
    from dlm_tui.app.screens.train import TrainOrder, TrainScreen

_BAR_CELLS = 8
_MOST_NOTES = 4


class TrainChoice:
    """Plans in a thread while the dialog is open, and hands the order on."""

    def __init__(self, context: Context, training: Training) -> None:
        self._context, self._training = context, training

    def open(self) -> None:
        """Choose what to train and how."""
        if not self._training.refuses():
            self._context.ui.run_to_dialog(self._open, "train-dialog", "train dialog", exclusive=True)

    async def _open(self) -> None:
        from dlm_tui.app.screens.train import TrainScreen

        context = self._context
        try:
            document, weights = await asyncio.to_thread(_with_sources, context.document)
        except (DlmTuiError, OSError) as error:
            context.ui.say(sentence_of(error), error=True)
            return
        records = await asyncio.to_thread(training_records, context.store, context.names)
        before = {name: record.kind for name, record in records.items()}
        saved = len(await asyncio.to_thread(self._sets.usable_prompts))
        plan = partial(_planned, document, weights, before, saved)
        dialog = TrainScreen({name: self._kind(name, before) for name in context.names}, context.marks, saved)
        dialog.on_changed = lambda order: context.ui.run(
            partial(self._plan, dialog, order, plan), "train-plan", "plan", exclusive=True
        )
        dialog.on_closed = lambda: context.ui.cancel("train-plan")
        context.ui.open_dialog(dialog, self._chosen)

    @property
    def _sets(self) -> PromptSets:
        return PromptSets(self._context.setup.path)

    def _kind(self, name: str, before: dict[str, AdapterKind]) -> AdapterKind:
        """How a plain training would train the adapter, with no question open."""
        kind = before.get(name, AdapterKind())
        pissa = kind.parameterization == "pissa"
        return AdapterKind(
            parameterization=kind.parameterization or "lora",
            selection=(kind.selection or "s_only") if pissa else None,
            rank=kind.rank or self._context.document.adapter_settings(name).lora_r,
            signed=bool(kind.signed),
            coefficient=kind.coefficient if kind.signed else None,
        )

    async def _plan(self, dialog: TrainScreen, order: TrainOrder, plan: Callable[[TrainOrder], TrainingPlan]) -> None:
        try:
            found = await asyncio.to_thread(plan, order)
        except (DlmTuiError, OSError) as error:
            dialog.show_problem(sentence_of(error))
            return
        dialog.show_plan(self._rows(found))

    def _rows(self, plan: TrainingPlan) -> list[Content]:
        """An adapter a line with its share of all steps, then the sum and what the plan notes."""
        total = max(1, plan.total_steps)
        width = max((len(adapter.name) for adapter in plan.adapters), default=0)
        rows = [self._row(plan, adapter, total, width) for adapter in plan.adapters]
        gate = ", then the gate" if self._context.document.gate_enabled else ""
        batch = plan.micro_batch * plan.grad_accum
        steps = f"{counted(plan.total_steps, 'step')} of {counted(batch, 'row')}"
        rows.append(assemble((f"{steps}{gate}; seed {plan.seed}", "bold")))
        return rows + [assemble((sanitize(note, one_line=True), "dim")) for note in plan.notes[:_MOST_NOTES]]

    def _row(self, plan: TrainingPlan, adapter: AdapterPlan, total: int, width: int) -> Content:
        mark = self._context.marks.get(adapter.name)
        color = mark.color if mark else ""
        steps = {phase.name: plan.steps(adapter.phase_rows(phase), phase) for phase in adapter.phases}
        phases = ", ".join(f"{name} {count}" for name, count in steps.items())
        unit = "step" if list(steps.values()) == [1] else "steps"
        return assemble(
            (f"{mark.glyph + ' ' if mark else ''}{fit(adapter.name, min(width, 24))} ", color),
            (bar_text(sum(steps.values()) / total, _BAR_CELLS), color),
            f" {adapter.words}: {phases} {unit}",
        )

    def _chosen(self, order: TrainOrder | None) -> None:
        if order is None:
            return
        everything = set(order.adapters) == set(self._context.names)
        self._training.start(
            None if everything else order.adapters, order.choices, self._sets.path if order.calibrate else None
        )


def _with_sources(document: Document) -> tuple[Document, sources.Weights | None]:
    """The document with the sections of its source folders; raises as reading them does."""
    if not document.training.sources:
        return document, None
    expanded, scan = sources.expand_sources(document)
    return expanded, scan.weights if scan is not None else None


def _planned(
    document: Document,
    weights: sources.Weights | None,
    before: Mapping[str, AdapterKind],
    saved: int,
    order: TrainOrder,
) -> TrainingPlan:
    return plan_training(
        document,
        adapters=order.adapters,
        choices=order.choices,
        before=before,
        prompts=saved if order.calibrate else None,
        weights=weights,
    )
