"""Adapters' versions: going back and forward, keeping and dropping, and earlier ones as faders and views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.jobs import JobRecord
from dlm_tui.document import read_document_bytes
from dlm_tui.document.declare import declare_adapter
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Compare, Compared, Failed, ImportJob, Progress
from dlm_tui.errors import DlmTuiError
from dlm_tui.progress_words import progress_words
from dlm_tui.store.adapter_history import (
    VersionFacts,
    before_last_training,
    drop_version,
    keep_version,
    use_versions,
    version_history,
)
from dlm_tui.store.former_gates import gate_history
from dlm_tui.system_errors import sentence_of

if TYPE_CHECKING:
    from dlm_tui.app.screens.adapters import AdaptersScreen
    from dlm_tui.app.screens.import_adapter import ImportOrder


class Adapters:
    """One change at a time, in a thread; the engine takes in what came into force."""

    def __init__(self, context: Context, mixing: Mixing, comparison: GateComparison) -> None:
        self._context, self._mixing, self._comparison = context, mixing, comparison

    def open(self) -> None:
        """Every version of every adapter."""
        self._context.ui.run_to_dialog(self._open, "adapters", "versions of the adapters", exclusive=True)

    async def _open(self) -> None:
        from dlm_tui.app.screens.adapters import AdaptersScreen

        context = self._context
        try:
            facts = await self._read()
            gates = await asyncio.to_thread(gate_history, context.store)
        except (DlmTuiError, OSError) as error:
            context.ui.say(sentence_of(error), error=True)
            return
        if not facts:
            context.ui.say(f"No adapter has a version yet. {context.key('train.all')} trains them.", warning=True)
            return
        dialog = AdaptersScreen(facts, context.marks, context.state.desk_versions, gates)
        dialog.on_use = lambda chosen: self._change(dialog, partial(self._use, chosen))
        dialog.on_back = lambda: self._change(dialog, self._back)
        dialog.on_keep = lambda chosen: self._change(dialog, partial(self._keep, chosen))
        dialog.on_drop = lambda chosen: self._change(dialog, partial(self._drop, chosen))
        dialog.on_mark = lambda chosen: self._mark(dialog, chosen)
        dialog.on_compare = lambda before, after: self._compare(dialog, before, after)
        context.ui.open_dialog(dialog)

    def _compare(self, dialog: AdaptersScreen, before: str, after: str) -> None:
        if not self._context.link.ready:
            dialog.say("This needs the engine, which is not ready yet.", error=True)
            return
        self._context.ui.run_to_dialog(
            partial(self._show_moved, before, after), "compare", "comparison", exclusive=True
        )

    async def _show_moved(self, before: str, after: str) -> None:
        """Ask the engine for what moved; closing the dialog stops it."""
        from dlm_tui.app.screens.comparison import ComparisonScreen

        context, request = self._context, Compare(before=before, after=after)
        shown, finished = ComparisonScreen(before, after, context.names, context.marks), False
        await context.ui.open_dialog(shown)
        shown.on_closed = lambda: context.ui.cancel("compare")
        try:
            async for event in context.link.stream(request):
                if isinstance(event, Progress):
                    shown.say(progress_words(event))
                elif isinstance(event, Compared):
                    shown.show(event.result)
                elif isinstance(event, Failed):
                    shown.say(event.text, error=True)
            finished = True
        except EngineGone as error:
            finished = True
            shown.say(str(error), error=True)
        finally:
            if not finished:
                await context.link.cancel(request)

    async def _read(self) -> list[VersionFacts]:
        found = await asyncio.to_thread(version_history, self._context.store, self._context.names)
        return [facts for versions in found.values() for facts in versions]

    # ---- one trained elsewhere ------------------------------------------------------------------------------------

    def ask_import(self) -> None:
        """Which adapter to take in, and under which name."""
        from dlm_tui.app.screens.import_adapter import ImportScreen

        context = self._context
        dialog = ImportScreen(context.setup.path.parent, context.key("train.adapters"), self._check_name)
        context.ui.open_dialog(dialog, self._import)

    def _check_name(self, name: str) -> None:
        """Raises what the job would say of a name that the document cannot declare, once it has begun."""
        declare_adapter(read_document_bytes(self._context.setup.path), name)

    def _import(self, order: ImportOrder | None) -> None:
        if order is None:
            return
        setup, title = self._context.setup, f"import {order.name}"
        request = ImportJob(
            document=str(setup.path), home=str(setup.home), base=setup.base, name=order.name, source=order.source
        )

        async def run() -> None:
            await self.follow_import(await self._context.board.run(request, "import", title))

        self._context.ui.run(run, "job-import", title)

    async def follow_import(self, record: JobRecord) -> None:
        """An import to its end, which is then said; the engine takes in what came into force."""
        await record.over.wait()
        say = self._context.ui.say
        if record.state == "failed":
            say(record.summary, error=True, title="Nothing was imported")
        elif (done := record.imported) is not None:
            self._comparison.remember_current()
            await self._comparison.use_new_gate()
            declared = " The document declares it now." if done.declared else ""
            notes = " ".join(done.notes)
            say(f"{done.name}@{done.version} is in force.{declared} {notes}".strip(), title="Imported")

    # ---- changes, each in a thread ---------------------------------------------------------------------------------

    def _change(self, dialog: AdaptersScreen, change: Callable[[], str]) -> None:
        self._context.ui.run(partial(self._run, dialog, change), "adapter-change", "change of versions")

    async def _run(self, dialog: AdaptersScreen, change: Callable[[], str]) -> None:
        before = {facts.name: facts.version for facts in await self._read() if facts.in_force}
        try:
            said = await asyncio.to_thread(change)
        except (DlmTuiError, OSError) as error:
            (dialog if dialog.is_open else self._context.ui).say(sentence_of(error), error=True)
            return
        facts = await self._read()
        if dialog.is_open:
            dialog.show(facts, self._context.state.desk_versions)
        (dialog if dialog.is_open else self._context.ui).say(said)
        if {one.name: one.version for one in facts if one.in_force} != before:
            self._comparison.remember_current()
            await self._comparison.use_new_gate()

    def _use(self, chosen: VersionFacts) -> str:
        wanted = {chosen.name: chosen.version}
        changed = use_versions(self._context.store, wanted, document=self._context.document)
        return f"{chosen.name}@{chosen.version} is in force{'' if changed else ' already'}."

    def _back(self) -> str:
        store, names = self._context.store, self._context.names
        wanted = before_last_training(store, names)
        if not wanted:
            return "There is no earlier version to go back to."
        changed = use_versions(store, wanted, "back")
        if not changed:
            return "What was in force before the last training is in force already."
        return f"Back to {', '.join(f'{name}@{after}' for name, (_, after) in changed.items())}."

    def _keep(self, chosen: VersionFacts) -> str:
        keep_version(self._context.store, chosen.name, chosen.version, not chosen.kept)
        return f"{chosen.name}@{chosen.version} is {'no longer kept' if chosen.kept else 'kept'}."

    def _drop(self, chosen: VersionFacts) -> str:
        freed = drop_version(self._context.store, chosen.name, chosen.version)
        self._take_off(f"{chosen.name}@{chosen.version}")
        return f"{chosen.name}@{chosen.version} is deleted, {freed / 1e6:.1f} MB."

    # ---- on the desk -----------------------------------------------------------------------------------------------

    def _mark(self, dialog: AdaptersScreen, chosen: VersionFacts) -> None:
        """Give an earlier version a fader and a place in Compare, or take both away."""
        name, state = f"{chosen.name}@{chosen.version}", self._context.state
        if chosen.in_force:
            dialog.say(f"{chosen.name} is on the desk already: this is the version in force.")
            return
        if name in state.desk_versions:
            self._take_off(name)
        else:
            state.desk_versions = [*state.desk_versions, name]
        dialog.show(None, state.desk_versions)
        self._mixing.redraw()
        self._context.saver.soon()

    def _take_off(self, name: str) -> None:
        state = self._context.state
        state.desk_versions = [other for other in state.desk_versions if other != name]
        state.mix.keep_only([*self._context.names, *state.desk_versions])
