"""Sample and pick: answers are drawn across views and seeds, shown blind in pairs, and the picks become preferences."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.drafts import bytes_to_change, sentence
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.controllers.set_running import SetRunning
from dlm_tui.app.controllers.surfaces import PromptSurface
from dlm_tui.app.controllers.teaching import Teaching
from dlm_tui.app.picks import Drawn, Picked, pairs_of
from dlm_tui.counting import counted
from dlm_tui.document.lesson import Lesson, better_answer
from dlm_tui.document.preferences import WANTED, preference_counts
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Progress, RunSet, SetAnswered
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.views import View

if TYPE_CHECKING:
    from dlm_tui.app.screens.draw import Draw
    from dlm_tui.app.screens.pick import PickScreen
    from dlm_tui.app.screens.review import Reviewed

_CURRENT = ""
_TEMPERATURE = 0.8
_SEEDS = 2**31


@dataclass(frozen=True)
class _Unwritten:
    """Picks that could not be written, and the seed that they were drawn with."""

    picked: Sequence[Picked]
    seed: int

    def without(self, written: Sequence[Lesson]) -> _Unwritten:
        """Those that are not among the written lessons."""
        there = {lesson.texts for lesson in written}
        return replace(self, picked=[item for item in self.picked if _texts(item) not in there])


def _texts(item: Picked) -> tuple[str, ...]:
    return item.chosen.prompt, item.chosen.text, item.rejected.text


class Picking:
    """Draws, shows and writes."""

    def __init__(
        self,
        context: Context,
        teaching: Teaching,
        set_running: SetRunning,
        sampling: AnswerSampling,
        prompt: PromptSurface,
    ) -> None:
        self._context, self._teaching, self._set_running, self._prompt = context, teaching, set_running, prompt
        self._sampling = sampling
        self._unwritten: _Unwritten | None = None

    def open(self) -> None:
        """Ask what to draw; picks that could not be written come first."""
        context = self._context
        if (kept := self._unwritten) is not None:
            self._unwritten = None
            self._picked(list(kept.picked), kept.seed)
            return
        if not context.link.ready:
            context.ui.say("Drawing answers needs the engine, which is not ready yet.", warning=True)
            return
        try:
            sets = PromptSets(context.setup.path).load()
        except PromptSetsError as error:
            context.ui.say(str(error), warning=True)
            sets = {}
        text = self._prompt.text.strip()
        sources = {_CURRENT: "the current prompt"} if text else {}
        counts = {name: counted(len(prompts), "prompt") for name, prompts in sets.items() if any(prompts)}
        sources |= {name: f"{name}, {count}" for name, count in counts.items()}
        if not sources:
            context.ui.say("There is no prompt to draw answers for, and no set of prompts.", warning=True)
            return
        prompts = {_CURRENT: [text], **{name: [prompt for prompt in sets[name] if prompt.strip()] for name in sets}}
        from dlm_tui.app.screens.draw import DrawScreen

        views = {view.name: view for view in self._set_running.views()}
        usual = [name for name in views if name == "gated" or name in context.trained_names] or list(views)
        note = f"Drawn at temperature {self._temperature:g}. The pairs do not say which answer is whose."
        dialog = DrawScreen(sources, list(views), usual, context.marks, self.counter(), note)

        def draw(chosen: Draw | None) -> None:
            if chosen is not None:
                wanted = [views[name] for name in chosen.views]
                context.ui.run(
                    partial(self._draw, prompts[chosen.source], wanted, chosen.count), "pick", "draw answers"
                )

        context.ui.open_dialog(dialog, draw)

    @property
    def _temperature(self) -> float:
        return self._sampling.settings.temperature or _TEMPERATURE

    def counter(self, more: Sequence[Lesson] = (), before: Mapping[str, int] | None = None) -> str:
        """How many preferences every adapter has, those of `more` added to `before` (None: to what the document has
        now), and what it needs."""
        counts = self._counts(more, before)
        told = [f"{name} {count}" + ("" if count >= WANTED else f" of {WANTED}") for name, count in counts.items()]
        return f"Preferences: {', '.join(told)}."

    def _counts(self, more: Sequence[Lesson], before: Mapping[str, int] | None) -> dict[str, int]:
        names = self._context.names
        counts = Counter(preference_counts(self._context.document) if before is None else before)
        counts.update(lesson.adapter or names[0] for lesson in more)
        return {name: counts[name] for name in names}

    def _next_step(self, counts: Mapping[str, int]) -> str:
        """Whom a training on preferences would train, or how many more it takes."""
        enough = [name for name, count in counts.items() if count >= WANTED]
        if enough:
            return f"{self._context.key('train.preferences')} trains {', '.join(enough)} on them."
        most = max(counts, key=lambda name: counts[name])
        return f"{most} needs {WANTED - counts[most]} more to be trained on them."

    async def _draw(self, prompts: Sequence[str], views: Sequence[View], count: int) -> None:
        from dlm_tui.app.screens.pick import PickScreen

        context, seed = self._context, secrets.randbelow(_SEEDS)
        dialog = PickScreen()
        dialog.on_closed = lambda: context.ui.cancel("pick-draw")
        await context.ui.open_dialog(dialog, lambda picked: self._picked(picked, seed))
        context.ui.run(partial(self._fill, dialog, prompts, views, count, seed), "pick-draw", "draw", exclusive=True)

    async def _fill(
        self, dialog: PickScreen, prompts: Sequence[str], views: Sequence[View], count: int, seed: int
    ) -> None:
        try:
            drawn = await self._drawn(dialog, prompts, views, count, seed)
        except (EngineGone, DlmTuiError) as error:
            dialog.show_problem(str(error))
            return
        dialog.show_pairs(pairs_of(drawn, seed))

    async def _drawn(
        self, dialog: PickScreen, prompts: Sequence[str], views: Sequence[View], count: int, seed: int
    ) -> list[Drawn]:
        """`count` answers per prompt, view after view and round again, each with a seed of its own."""
        context, options = self._context, self._sampling.settings
        request = RunSet(
            prompts=list(prompts),
            views=[views[turn % len(views)] for turn in range(count)],
            max_tokens=options.max_tokens,
            temperature=self._temperature,
            top_p=options.top_p,
            seed=seed,
            seeds=[(seed + turn) % _SEEDS for turn in range(count)],
        )
        found: list[Drawn] = []
        finished = False
        try:
            async for event in context.link.stream(request):
                if isinstance(event, Progress):
                    dialog.show_progress(event)
                elif isinstance(event, SetAnswered):
                    mix = event.mix or event.weights
                    found.append(Drawn(prompts[event.prompt], event.view, event.seed, event.text, mix))
                elif isinstance(event, Failed):
                    raise DlmTuiError(event.text)
            finished = True
        finally:
            if not finished:
                await context.link.cancel(request)
        return found

    def _picked(self, picked: list[Picked] | None, seed: int) -> None:
        if picked:
            self._context.ui.run_to_dialog(partial(self._review, picked, seed), "pick", "review preferences")

    async def _review(self, picked: Sequence[Picked], seed: int) -> None:
        from dlm_tui.app.screens.review import ReviewScreen

        context, data = self._context, bytes_to_change(self._context)
        if data is None:
            self._unwritten = _Unwritten(picked, seed)
            return
        run_id, at = await self._teaching.newest_run(), datetime.now(UTC)

        def lessons(adapter: str | None) -> list[Lesson]:
            return [_lesson(item, adapter or self._own(item), seed, at, run_id) for item in picked]

        dialog = ReviewScreen(lessons, context.document.adapter_names, context.marks, data, self.counter)

        def write(reviewed: Reviewed | None) -> None:
            if reviewed is not None:
                context.ui.run(partial(self._write, reviewed, _Unwritten(picked, seed)), "pick", "write preferences")

        context.ui.open_dialog(dialog, write)

    def _own(self, item: Picked) -> str | None:
        return self._teaching.adapter_of(item.chosen.view, item.chosen.mix)

    async def _write(self, reviewed: Reviewed, picks: _Unwritten) -> None:
        context, sha256, written = self._context, reviewed.expected_sha256, list[Lesson]()
        before = preference_counts(context.document)  # it is read again while they are written
        for lesson in reviewed.lessons:
            try:
                await self._teaching.append(lesson, sha256)
            except (DlmTuiError, OSError) as error:
                self._unwritten = picks.without(written)
                text = f"{sentence(error).rstrip('.')}. The picks are kept: {context.key('teach.pick')} has them."
                context.ui.say(text, error=True, title="Not all was written")
                break
            written.append(lesson)
        if written:
            told = f"{counted(len(written), 'preference')} written. {self.counter(written, before)}"
            context.ui.say(f"{told} {self._next_step(self._counts(written, before))}", title="Picked")


def _lesson(item: Picked, adapter: str | None, seed: int, at: datetime, run_id: int | None) -> Lesson:
    chosen, rejected = item.chosen, item.rejected
    who = f"blind seed {seed}: {chosen.view} {chosen.seed} over {rejected.view} {rejected.seed}"
    return better_answer(chosen.prompt, chosen.text, rejected.text, adapter, f"pick/{who}", at, run_id, note=who)
