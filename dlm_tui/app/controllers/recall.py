"""Answers that were given before: those of the current prompt on the pane, all others in the history."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import groupby

from dlm_tui.app.config import SamplingSettings
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.generation import Generation
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.controllers.shown_answers import ShownAnswers
from dlm_tui.app.controllers.surfaces import Pages, PromptSurface
from dlm_tui.store import AnswersError, KeptAnswer

_PAUSE = 0.25  # seconds without typing after which the prompt is looked up
_ASKINGS = 100  # answers of one prompt that can be stepped through


class Recall:
    """Looks answers up, and brings them back: on the pane, or whole, with prompt, mix and sampling."""

    def __init__(
        self,
        context: Context,
        mixing: Mixing,
        sampling: AnswerSampling,
        shown: ShownAnswers,
        generation: Generation,
        prompt: PromptSurface,
        pages: Pages,
    ) -> None:
        self._context, self._mixing, self._sampling, self._shown = context, mixing, sampling, shown
        self._generation, self._prompt, self._pages = generation, prompt, pages
        self._failing = False

    def typed(self) -> None:
        """Another prompt: what is on the pane may be of another one, and there may be answers to this one."""
        self._shown.mark()
        self._context.ui.run(self._look_up, "recall", "looking for answers", exclusive=True)

    def start(self) -> None:
        """The answers to the prompt that was left last time."""
        self._context.ui.run(partial(self._show_latest), "recall", "looking for answers", exclusive=True)

    async def _look_up(self) -> None:
        await asyncio.sleep(_PAUSE)
        await self._show_latest()

    async def _show_latest(self) -> None:
        """Show the newest answers to the prompt, if there are any and nothing of it is on the pane."""
        if self._generation.busy or self._shown.views_of_now():
            return
        askings = await self._askings()
        if askings and askings[0][0].prompt == self._prompt.text:
            self._show(askings[0])

    def _show(self, answers: list[KeptAnswer]) -> None:
        """Put answers on the pane: to the end, whatever is typed meanwhile."""
        self._context.ui.run(partial(self._show_unless_busy, answers), "recalled", "showing kept answers")

    async def _show_unless_busy(self, answers: list[KeptAnswer]) -> None:
        if not self._generation.busy:
            await self._shown.show(answers)

    async def _askings(self) -> list[list[KeptAnswer]]:
        """The answers to the current prompt as they were asked for together, the newest asking first."""
        text = self._prompt.text
        if not text.strip():
            return []
        try:
            found = await asyncio.to_thread(self._context.archive.of_prompt, text, limit=_ASKINGS)
        except AnswersError as error:
            if not self._failing:  # said once, not with every pause
                self._context.ui.say(str(error), error=True, title="Kept answers cannot be read")
            self._failing = True
            return []
        self._failing = False
        return [list(group)[::-1] for _, group in groupby(found, key=lambda answer: answer.at)]

    def step(self, way: int) -> None:
        """Go to what was asked with the current prompt before (1) or after (-1) what is shown."""
        self._context.ui.run(partial(self._step, way), "recall", "looking for answers", exclusive=True)

    async def _step(self, way: int) -> None:
        askings = await self._askings()
        if self._generation.busy or not askings:
            self._say_end(way, askings)
            return
        times = [asking[0].at for asking in askings]
        at = self._shown.asked_at
        place = times.index(at) + way if at in times and self._shown.views_of_now() else 0
        if 0 <= place < len(askings):
            self._show(askings[place])
            self._pages.show_page("answers")
        else:
            self._say_end(way, askings)

    def _say_end(self, way: int, askings: list[list[KeptAnswer]]) -> None:
        if self._generation.busy:
            text = "An answer is being written; its predecessors can be seen when it has ended."
        elif not askings:
            text = "This prompt was not answered before."
        else:
            text = f"There are no {'earlier' if way > 0 else 'later'} answers to this prompt."
        self._context.ui.say(text, warning=True)

    # ---- the history -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find an answer by text, adapter or date."""
        from dlm_tui.app.screens.answers import AnswersScreen

        context = self._context
        dialog = AnswersScreen(context.archive, context.names, context.marks)
        dialog.on_beside = self._beside
        context.ui.open_dialog(dialog, self._chosen)

    def compare(self) -> None:
        """Compare the answer that is looked at with another one, word by word."""
        first = self._shown.current
        if first is None:
            self._context.ui.say("There is no finished answer to compare yet.", warning=True)
            return
        self._context.ui.run_to_dialog(
            partial(self._compare, first), "recall", "answers to compare with", exclusive=True
        )

    async def _compare(self, first: KeptAnswer) -> None:
        """The others on the pane come first, then those to the same prompt, then all others."""
        from dlm_tui.app.screens.answer_diff import AnswerDiffScreen

        archive = self._context.archive
        try:
            same = await asyncio.to_thread(archive.of_prompt, first.prompt, first.turns, limit=_ASKINGS)
            newest = await asyncio.to_thread(archive.search, limit=_ASKINGS)
        except AnswersError as error:
            self._context.ui.say(str(error), error=True)
            return
        found = [*self._shown.finished, *same, *newest]
        others = {(one.at, one.view, one.sample): one for one in found}
        others.pop((first.at, first.view, first.sample), None)
        if not others:
            self._context.ui.say("There is no other answer to compare this one with yet.", warning=True)
            return
        self._context.ui.open_dialog(AnswerDiffScreen(first, list(others.values())))

    def _beside(self, answer: KeptAnswer) -> None:
        self._context.ui.run(partial(self._lay_beside, answer), "recalled", "an answer beside")

    async def _lay_beside(self, answer: KeptAnswer) -> None:
        await self._shown.lay_beside(answer)
        self._pages.show_page("answers")

    def _chosen(self, answer: KeptAnswer | None) -> None:
        if answer is not None:
            self.bring_back(answer)

    def bring_back(self, answer: KeptAnswer) -> None:
        """Prompt, mix and sampling as they were when it was asked, and the answer itself on the pane."""
        problems = self._mixing.bring_back(answer.mix, answer.versions, answer.kind)
        if answer.turns:
            turns = "one turn" if len(answer.turns) == 1 else f"{len(answer.turns)} turns"
            problems.append(f"It was asked after {turns} of a conversation, which a prompt alone does not have.")
        now = self._sampling.settings
        self._sampling.use(
            SamplingSettings(
                max_tokens=answer.max_tokens,
                temperature=answer.temperature,
                top_p=answer.top_p,
                seed=answer.seed % 2**31,
                samples=1,
            )
        )
        same = now == self._sampling.settings
        self._prompt.set_text(answer.prompt)
        self._show([answer])
        self._pages.show_page("answers")
        undo = self._context.key("mix.undo")
        words = [f"Prompt, mix{'' if same else ' and sampling'} are those of that answer; {undo} on the mix goes back."]
        self._context.ui.say(" ".join([*words, *problems]), warning=bool(problems))
