"""Generation: one answer with the mix on the desk, or all views side by side; again with other sampling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from textual.content import Content

from dlm_tui.app.cards import CardKey
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.keeping import Keeping
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.controllers.shown_answers import ShownAnswers, end_words
from dlm_tui.app.controllers.surfaces import AnswersSurface, Pages, PromptSurface
from dlm_tui.app.controllers.transcript import Transcript
from dlm_tui.app.progress import progress_words
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Event, Failed, Generate, Generated, Progress, Stopped, Token, ViewDone
from dlm_tui.model.views import BASE, GATED, View, solo
from dlm_tui.store import answer_time


class Generation:
    """One request at a time; a new one stops the old one."""

    def __init__(
        self,
        context: Context,
        routing: Routing,
        mixing: Mixing,
        sampling: AnswerSampling,
        keeping: Keeping,
        shown: ShownAnswers,
        prompt: PromptSurface,
        answers: AnswersSurface,
        pages: Pages,
    ) -> None:
        self._context, self._routing, self._mixing = context, routing, mixing
        self._sampling, self._keeping, self._shown = sampling, keeping, shown
        self._prompt, self._answers, self._pages = prompt, answers, pages
        self._transcript: Transcript | None = None
        self._beginning = 0

    @property
    def running(self) -> bool:
        """Whether an answer is being written."""
        return self._transcript is not None

    @property
    def busy(self) -> bool:
        """Whether the pane belongs to an answer that is being written, or is about to be."""
        return self.running or self._beginning > 0

    def answer(self) -> None:
        """Answer with the mix on the desk."""
        self.ask([self._mixing.view()])

    def compare(self) -> None:
        """Base, gated, each adapter alone, and the custom mix if there is one."""
        views: list[View] = [BASE]
        if self._context.trained_names:
            views += [GATED, *(solo(name) for name in self._context.trained_names)]
            views += [solo(name) for name in self._mixing.versions]
            mine = self._mixing.view()
            if mine.kind == "custom":
                views.append(mine)
        self.ask(views)

    def reroll(self) -> None:
        """Ask again what was asked, with seeds that were not asked with."""
        if self.may_ask():
            self._sampling.next_seed()
            self.again()

    def other_temperature(self) -> None:
        """Ask again what was asked, at the next temperature."""
        if self.may_ask():
            self._sampling.next_temperature()
            self.again()

    def again(self) -> None:
        """Ask what the answers on the pane were asked under, if they are of the current prompt; else the desk's mix."""
        self.ask(self._shown.views_of_now() or [self._mixing.view()])

    def ask(self, views: Sequence[View]) -> None:
        """Answer the prompt under these views, as many samples of each as are chosen."""
        if not self.may_ask():
            return
        context, text = self._context, self._prompt.text
        context.state.remember(text, dict(self._routing.weights or {}), context.gate_run)
        context.saver.soon()
        self._pages.show_page("answers")
        context.ui.run(partial(self._generate, text, list(views)), "generate", "answer", exclusive=True)

    def may_ask(self) -> bool:
        """Whether there is a prompt and an engine to answer it; if not, that is said."""
        context = self._context
        if not self._prompt.text.strip():
            context.ui.say("There is no prompt to answer yet.", warning=True)
            return False
        if not context.link.ready:
            state = context.link.state
            context.ui.say(f"The engine is not ready: {state.text or state.phase}.", warning=True)
            return False
        return True

    async def _generate(self, text: str, views: list[View]) -> None:
        context, settings, at = self._context, self._sampling.settings, answer_time()
        request = Generate(
            prompt=text,
            views=views,
            samples=settings.samples,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            heat=context.state.heat,
        )
        self._beginning += 1
        try:
            await self._shown.begin(text, at, views, settings.samples)
        finally:
            self._beginning -= 1
        transcript = self._transcript = Transcript(request, at, context)
        finished = False
        try:
            async for event in context.link.stream(request):
                transcript.take(event)
                finished = self.take(event)
        except EngineGone as error:
            self._answers.stop(str(error))
            finished = True
        finally:
            if self._transcript is transcript:
                self._transcript = None
                if not finished and not self._beginning:  # it gave way to a follow-up: the cards are still its own
                    self._answers.stop("stopped")
            self._keep(transcript)
            if not finished:
                await context.link.cancel(request)

    def _keep(self, transcript: Transcript) -> None:
        answers = transcript.answers()
        self._shown.ended(answers)
        self._keeping.keep(answers)

    def take(self, event: Event) -> bool:
        """Show an event of the running request; whether it was the last."""
        match event:
            case Progress():
                self._answers.reading(progress_words(event))
            case Token(view=view, text=text, heat=heat, sample=sample):
                self._answers.add(CardKey(view, sample), text, heat)
            case ViewDone(view=view, text=text, tokens=tokens, reason=reason, sample=sample, seed=seed):
                sampled = bool(self._sampling.settings.temperature)
                note = end_words(tokens, reason, seed if sampled else None)
                self._answers.finish(CardKey(view, sample), text, note)
            case Generated(seconds=seconds):
                self._answers.took(f"{seconds:.1f} s")
                return True
            case Failed(text=text):
                self._answers.stop(f"failed: {text}")
                self._context.ui.say(text, error=True, title="No answer")
                return True
            case Stopped():
                self._answers.stop("stopped")
                return True
        return False

    async def stop(self) -> bool:
        """Stop the running answer; whether there was one."""
        transcript = self._transcript
        if transcript is None:
            return False
        await self._context.link.cancel(transcript.request)
        self._context.ui.say("Stopped the answer; what was written stays.")
        return True

    def keep_now(self) -> None:
        """Keep what was written so far and is not kept yet, before leaving."""
        transcript, self._transcript = self._transcript, None
        if transcript is not None:
            self._keeping.keep(transcript.answers())
        self._keeping.now()

    def keep_settings(self, columns: bool, heat: bool) -> None:
        """Remember how answers are shown."""
        self._context.state.columns, self._context.state.heat = columns, heat
        self._context.saver.soon()

    def show_hint(self) -> None:
        """What the empty answers pane says."""
        context = self._context
        one, all_views = context.key("prompt.answer"), context.key("prompt.compare")
        if context.opened is None and context.link.state.phase == "failed":
            hint = "Answers need the engine; why it cannot work is said above."
        elif context.opened is None:
            hint = "The engine is opening the document; you can type already."
        elif not context.trained_names and context.on_disk:
            hint = f"With them, {one} answers and {all_views} compares base, gate and adapters."
        elif not context.trained_names:
            hint = f"After training, {one} answers and {all_views} compares base, gate and adapters."
        else:
            hint = f"{one} answers with the mix above. {all_views} compares base, gate and every adapter."
        self._answers.hint(Content.styled(hint, "dim"))
