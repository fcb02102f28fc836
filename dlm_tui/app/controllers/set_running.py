"""Sets of prompts, run as a whole through the engine; the runs stay, and are compared."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.state import now
from dlm_tui.document.expectations import broken
from dlm_tui.document.prompt_sets import PromptCase, PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, FormerAnswer, Progress, RunSet, SetAnswered, SetDone
from dlm_tui.model.views import BASE, GATED, STATIC, UNIFORM, View, named_view
from dlm_tui.store import StoreError
from dlm_tui.store.set_runs import SetAnswer, SetRun, run_before, run_to_score

if TYPE_CHECKING:
    from dlm_tui.app.screens.set_run import SetRunScreen

Told = Callable[[Progress], object]


class SetRunning:
    """One set at a time."""

    def __init__(self, context: Context, mixing: Mixing, sampling: AnswerSampling) -> None:
        self._context, self._mixing, self._sampling = context, mixing, sampling

    @property
    def marked_set(self) -> tuple[str, list[PromptCase]] | None:
        """The open set with its prompts, else the first beside the document; None where there is none to run."""
        try:
            sets = PromptSets(self._context.setup.path).cases()
        except PromptSetsError:
            return None
        name = self._context.state.open_set
        name = name if name in sets else next(iter(sets), None)
        cases = [case for case in sets[name] if case.prompt.strip()] if name is not None else []
        return (name, cases) if name is not None and cases else None

    def open(self, name: str) -> None:
        """Choose views and run a set."""
        self._context.ui.run_to_dialog(partial(self._open, name), "set-open", "open a set")

    async def _open(self, name: str) -> None:
        context = self._context
        try:
            cases = (await asyncio.to_thread(PromptSets(context.setup.path).cases)).get(name, [])
        except PromptSetsError as error:
            context.ui.say(str(error), error=True)
            return
        dialog = await self.show(name, [case for case in cases if case.prompt.strip()])
        runs = await self.kept(name)
        if runs and dialog.is_open:
            dialog.show_run(runs[0], run_before(runs[1:], runs[0]))

    async def show(self, name: str, cases: Sequence[PromptCase]) -> SetRunScreen:
        """The dialog of a set."""
        from dlm_tui.app.screens.set_run import SetRunScreen

        context = self._context
        trained = context.trained_names
        with contextlib.suppress(StoreError, OSError):  # a store that cannot be read is said where it is needed
            trained = await context.names_in_force()
        views = [view.name for view in self._views_of(trained)]
        marked = [name for name in context.state.set_views if name in views] or views[:1]
        dialog = SetRunScreen(name, cases, views, marked, context.marks, context.setup.path.parent)
        dialog.on_run = lambda chosen: self._start(dialog, name, cases, chosen)
        dialog.on_closed = lambda: context.ui.cancel("set-run")
        await context.ui.open_dialog(dialog)
        return dialog

    def views(self) -> list[View]:
        """The views that a set can be run under: of the base, the gate, every trained adapter, and the desk."""
        return self._views_of(self._context.trained_names)

    def _views_of(self, trained: Sequence[str]) -> list[View]:
        if not trained:
            return [BASE]
        named = [GATED, BASE, UNIFORM, STATIC] if len(trained) > 1 else [BASE]
        mine = self._mixing.view()
        views = [*named, *(named_view(name) for name in trained), *([mine] if mine.kind == "custom" else [])]
        return list({view.name: view for view in views}.values())

    def _start(self, dialog: SetRunScreen, name: str, cases: Sequence[PromptCase], chosen: list[str]) -> None:
        context = self._context
        if not context.link.ready:
            dialog.show_note("This needs the engine, which is not ready yet.", problem=True)
            return
        context.state.set_views = chosen
        context.saver.soon()
        views = [view for view in self.views() if view.name in chosen]
        context.ui.run(partial(self._run, dialog, name, cases, views), "set-run", "run a set", exclusive=True)

    async def _run(self, dialog: SetRunScreen, name: str, cases: Sequence[PromptCase], views: Sequence[View]) -> None:
        try:
            run = await self.run(name, cases, views, dialog.show_progress)
        except (EngineGone, StoreError, SetStopped) as error:
            dialog.show_note(str(error), problem=True)
            return
        runs = await self.kept(name)
        dialog.show_run(run, run_before(runs, run))

    async def run(self, name: str, cases: Sequence[PromptCase], views: Sequence[View], told: Told) -> SetRun:
        """Run a set and keep the run. Raises EngineGone, SetStopped, StoreError."""
        context, options = self._context, self._sampling.settings
        earlier = await self.kept(name)
        planned = SetRun(
            set_name=name,
            at="",
            base=context.opened.base if context.opened else "",
            versions=context.opened.versions if context.opened else {},
            seed=options.seed,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            answers=[],
        )
        former = run_to_score(earlier, planned, [view.name for view in views])
        places = {case.prompt: index for index, case in enumerate(cases)}
        request = RunSet(
            prompts=[case.prompt for case in cases],
            views=list(views),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            former=[
                FormerAnswer(prompt=places[answer.prompt], view=answer.view, token_ids=answer.token_ids)
                for answer in (former.answers if former else [])
                if answer.prompt in places
            ],
        )
        answers: list[SetAnswer] = []
        done: SetDone | None = None
        finished = False
        try:
            async for event in context.link.stream(request):
                if isinstance(event, Progress):
                    told(event)
                elif isinstance(event, SetAnswered):
                    answers.append(await asyncio.to_thread(_answer, event, cases[event.prompt]))
                elif isinstance(event, SetDone):
                    done = event
                elif isinstance(event, Failed):
                    raise SetStopped(event.text)
            finished = True
        finally:
            if not finished:
                await context.link.cancel(request)
        if done is None:
            raise SetStopped("the set was stopped")
        run = msgspec.structs.replace(
            planned,
            at=now(),
            base=done.base,
            versions=done.versions,
            answers=answers,
            former=former.run_id if former else None,
        )
        return await asyncio.to_thread(context.setup.state_file.set_runs.keep, run)

    async def kept(self, name: str) -> list[SetRun]:
        """The kept runs of a set, newest first; none, which is said, where they cannot be read."""
        try:
            return await asyncio.to_thread(self._context.setup.state_file.set_runs.newest, name)
        except StoreError as error:
            self._context.ui.say(str(error), warning=True)
            return []


class SetStopped(Exception):
    """A run that did not come to its end; the sentence says why."""


def _answer(event: SetAnswered, case: PromptCase) -> SetAnswer:
    return SetAnswer(
        prompt=case.prompt,
        view=event.view,
        text=event.text,
        token_ids=event.token_ids,
        reason=event.reason,
        weights=event.weights,
        mix=event.mix,
        logprob=event.logprob,
        former_logprob=event.former_logprob,
        expected=len(case.expect),
        broken=broken(case.expect, event.text, event.weights),
    )
