"""Training on preferences: what the document lacks for it is offered, and the marked set shows before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.set_running import SetRunning, SetStopped
from dlm_tui.app.controllers.training import Training
from dlm_tui.document.change_log import DocumentChange
from dlm_tui.document.document import read_document_bytes
from dlm_tui.document.preferences import WANTED, lacking_settings, preference_counts
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.document.replacing import save_document
from dlm_tui.document.settings import with_settings
from dlm_tui.engine.client import EngineGone
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.views import GATED, View, solo
from dlm_tui.store import StoreError
from dlm_tui.store.set_runs import SetRun
from dlm_tui.system_errors import sentence_of

SETTINGS = "settings"


@dataclass(frozen=True)
class _Experiment:
    """A set to be run again behind a training; `before` is the run to compare with."""

    name: str
    cases: list[PromptCase]
    views: list[View]
    before: SetRun


class PreferenceTraining:
    """An experiment: the set, the training, and when that one is over, the set again."""

    def __init__(self, context: Context, changes: Changes, training: Training, set_running: SetRunning) -> None:
        self._context, self._changes = context, changes
        self._training, self._set_running = training, set_running

    def start(self) -> None:
        """Train the adapters that have enough preferences, each on its sections and then on its preferences."""
        context, document = self._context, self._context.document
        counts = preference_counts(document)
        adapters = [name for name, count in counts.items() if count >= WANTED]
        if not adapters:
            most = max(counts, key=lambda name: counts[name])
            pick = context.key("teach.pick")
            few = f"No adapter has {WANTED} preferences yet ({most} has {counts[most]})."
            context.ui.say(f"{few} {pick} draws answers to pick from.", warning=True)
            return
        lacking = lacking_settings(document)
        if lacking:
            from dlm_tui.app.screens.settings_offer import SettingsOffer

            dialog = SettingsOffer(lacking)
            work = partial(self._write, lacking, adapters)
            context.ui.open_dialog(dialog, lambda yes: self._run(work) if yes else None)
        else:
            self._run(partial(self._train, adapters))

    def _run(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._context.ui.run(work, "preferences", "train preferences")

    async def _write(self, settings: dict[str, str], adapters: Sequence[str]) -> None:
        context, path = self._context, self._context.setup.path
        try:
            change = await asyncio.to_thread(_write_settings, path, settings)
        except (DlmTuiError, OSError) as error:
            context.ui.say(sentence_of(error), error=True, title="Nothing was written")
            return
        await self._changes.note(change)
        await self._train(adapters)

    async def _train(self, adapters: Sequence[str]) -> None:
        """Run the marked set, unless its last run is of the adapters in force, then train."""
        context, marked = self._context, self._set_running.marked_set
        experiment = None
        if marked is not None and context.link.ready and context.opened is not None:
            name, cases = marked
            views = [*([GATED] if len(context.trained_names) > 1 else []), *(solo(item) for item in adapters)]
            views = [view for view in views if view.kind == "gated" or view.adapter in context.trained_names]
            try:
                before = await self._before(name, cases, views) if views else None
            except (EngineGone, StoreError, SetStopped) as error:
                context.ui.say(f"The set {name} is left out: {error}", warning=True)
                before = None
            if before is not None:
                experiment = _Experiment(name, cases, views, before)
        if experiment is None:
            self._training.start(list(adapters))
        else:
            self._training.start(list(adapters), then=partial(self._trained, experiment))

    async def _before(self, name: str, cases: list[PromptCase], views: list[View]) -> SetRun:
        context = self._context
        wanted = {(case.prompt, view.name) for case in cases for view in views}
        for run in await self._set_running.kept(name):
            known = {(answer.prompt, answer.view) for answer in run.answers}
            if context.opened is not None and run.versions == context.opened.versions and wanted <= known:
                return run
        context.ui.say(f"The set {name} is run before the training, to compare with.")
        return await self._set_running.run(name, cases, views, lambda event: None)

    def taken_back(self, change: DocumentChange) -> None:
        """A change is undone."""
        if change.kind == SETTINGS:
            self._context.ui.say("The settings are as they were before.")

    def _trained(self, experiment: _Experiment) -> None:
        """Its training is over: the set shows what moved."""
        self._context.ui.run(partial(self._compare, experiment), "set-run", "run the set again", exclusive=True)

    async def _compare(self, experiment: _Experiment) -> None:
        dialog = await self._set_running.show(experiment.name, experiment.cases)
        try:
            run = await self._set_running.run(experiment.name, experiment.cases, experiment.views, dialog.show_progress)
        except (EngineGone, StoreError, SetStopped) as error:
            dialog.show_note(str(error), problem=True)
            return
        dialog.show_run(run, experiment.before)


def _write_settings(path: Path, settings: Mapping[str, str]) -> DocumentChange:
    before = read_document_bytes(path)
    after = with_settings(before, settings, path)
    save_document(path, before, after)
    return DocumentChange.between(SETTINGS, before, after)
