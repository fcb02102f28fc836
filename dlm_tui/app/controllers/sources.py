"""The folders of `training.sources`: looked through, watched, and what a training would take in is said."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.documents import Documents
from dlm_tui.counting import counted
from dlm_tui.document.sources import FileMemory, Survey, watch_sources
from dlm_tui.engine.client import EngineGone
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import read_manifest

_GROUP = "sources"


class Sources:
    """Keeps `context.survey` true while files change. A document without sources has none."""

    def __init__(self, context: Context, documents: Documents) -> None:
        self._context, self._documents = context, documents
        self._watched: object = None
        self._looking = False

    def start(self) -> None:
        """Watch the sources that the document names now; nothing is done twice for the same ones."""
        context = self._context
        training = context.document.training
        # The file beside the document is watched with the folders; only the document's own words are compared here.
        wanted = (training.sources, training.sources_policy, context.names, context.store.root)
        if wanted == self._watched:
            return
        self._watched = wanted
        context.ui.cancel(_GROUP)
        context.survey = None
        if training.sources:
            context.ui.run(self._watch, _GROUP, _GROUP, exclusive=True)

    def stop(self) -> bool:
        """Stop a pass that is under way; whether there was one."""
        if not self._looking:
            return False
        self._looking = False
        self._context.ui.cancel(_GROUP)
        self._context.ui.say("The source folders were not looked through to the end; the next save begins again.")
        self._watched = None
        self._documents.show_reading(None)
        return True

    async def retrained(self) -> None:
        """What is new is counted against what was trained just now."""
        if (survey := self._context.survey) is not None:
            await self._show(survey)

    async def _watch(self) -> None:
        context, loop = self._context, asyncio.get_running_loop()
        memory = FileMemory(context.store.cache_dir / "tui_sources.sqlite" if context.store.exists() else None)

        def told(files: int, size: int) -> None:
            loop.call_soon_threadsafe(self._reading, files, size)

        self._looking, first = True, True
        async with aclosing(watch_sources(context.document, memory, told)) as surveys:
            async for survey in surveys:
                self._looking = False
                self._documents.show_reading(None)
                await self._show(survey)
                if not first:
                    await self._changed(survey)
                first = False

    def _reading(self, files: int, size: int) -> None:
        if self._looking:
            self._documents.show_reading(f"Looking through the source folders: {files:,} files, {size / 1e6:.0f} MB")

    async def _show(self, survey: Survey) -> None:
        context = self._context
        trained = await asyncio.to_thread(_trained, context)
        context.survey, context.new_files = (
            survey,
            frozenset(file.section_id for file in survey.files if file.section_id not in trained),
        )
        self._documents.show()

    async def _changed(self, survey: Survey) -> None:
        """Files changed while the program ran: say what that means, and let the gate's state follow."""
        context = self._context
        if survey.error:
            context.ui.say(survey.error, warning=True, title="The source folders cannot be read")
            return
        new = sum(file.section_id in context.new_files for file in survey.files)
        files = f"{counted(new, 'new or changed file')} of {len(survey.files)}"
        context.ui.say(f"A training ({context.key('train.all')}) would take in {files}.", title="Source files changed")
        if context.link.ready:
            try:
                await context.link.reload()
            except EngineGone:
                return


def _trained(context: Context) -> frozenset[str]:
    """Ids of the sections that the adapters in force were trained on."""
    try:
        manifest = read_manifest(context.store)
    except DlmTuiError:
        return frozenset()
    return frozenset(manifest.content_hashes) if manifest is not None else frozenset()
