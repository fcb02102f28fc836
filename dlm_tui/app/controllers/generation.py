"""Generation: one answer with the mix on the desk, or all views side by side."""

from __future__ import annotations

from functools import partial

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.views import AnswersView, Pages, PromptView
from dlm_tui.app.progress import progress_words
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Event, Failed, Generate, Generated, Progress, Stopped, Token, ViewDone
from dlm_tui.model.views import BASE, GATED, View, solo


class Generation:
    """One request at a time; a new one stops the old one."""

    def __init__(
        self,
        context: Context,
        routing: Routing,
        mixing: Mixing,
        prompt: PromptView,
        answers: AnswersView,
        pages: Pages,
    ) -> None:
        self._context, self._routing, self._mixing = context, routing, mixing
        self._prompt, self._answers, self._pages = prompt, answers, pages
        self._request: Generate | None = None
        self.answered: str | None = None
        """The prompt of the answers that are shown."""
        self.mixes: dict[str, dict[str, float]] = {}
        """The mixes of those that are complete."""

    @property
    def running(self) -> bool:
        """Whether an answer is being written."""
        return self._request is not None

    def answer(self) -> None:
        """Answer with the mix on the desk."""
        self._ask([self._mixing.view()])

    def compare(self) -> None:
        """Base, gated, each adapter alone, and the custom mix if there is one."""
        views: list[View] = [BASE]
        if self._context.trained_names:
            views += [GATED, *(solo(name) for name in self._context.trained_names)]
            views += [solo(name) for name in self._mixing.versions]
            mine = self._mixing.view()
            if mine.kind == "custom":
                views.append(mine)
        self._ask(views)

    def _ask(self, views: list[View]) -> None:
        context, text = self._context, self._prompt.text
        if not text.strip():
            context.ui.say("There is no prompt to answer yet.", warning=True)
            return
        if not context.link.ready:
            state = context.link.state
            context.ui.say(f"The engine is not ready: {state.text or state.phase}.", warning=True)
            return
        context.state.remember(text, dict(self._routing.weights or {}), context.gate_run)
        context.saver.soon()
        self._pages.show_page("answers")
        context.ui.run(partial(self._generate, text, views), "generate", "answer", exclusive=True)

    async def _generate(self, text: str, views: list[View]) -> None:
        context, options = self._context, self._context.config.generate
        request = Generate(
            prompt=text,
            views=views,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            heat=context.state.heat,
        )
        await self._answers.begin([view.name for view in views], context.marks)
        self._request, self.answered, self.mixes = request, text, {}
        finished = False
        try:
            async for event in context.link.stream(request):
                finished = self.take(event)
        except EngineGone as error:
            self._answers.stop(str(error))
            finished = True
        finally:
            if self._request is request:
                self._request = None
            if not finished:
                await context.link.cancel(request)

    def take(self, event: Event) -> bool:
        """Show an event of the running request; whether it was the last."""
        match event:
            case Progress():
                self._answers.reading(progress_words(event))
            case Token(view=view, text=text, heat=heat):
                self._answers.add(view, text, heat)
            case ViewDone(view=view, text=text, tokens=tokens, reason=reason, mix=mix):
                self.mixes[view] = mix
                why = "" if reason == "stop" else ", cut at the limit"
                self._answers.finish(view, text, f"{tokens} tokens{why}")
            case Generated(seconds=seconds, seed=seed):
                sampled = self._context.config.generate.temperature
                self._answers.retitle(f"{seconds:.1f} s", f"seed {seed}" if sampled else "")
                return True
            case Failed(text=text):
                self._answers.stop("failed")
                self._context.ui.say(text, error=True, title="No answer")
                return True
            case Stopped():
                self._answers.stop("stopped")
                return True
        return False

    async def stop(self) -> bool:
        """Stop the running answer; whether there was one."""
        request = self._request
        if request is None:
            return False
        await self._context.link.cancel(request)
        self._context.ui.say("Stopped the answer; what was written stays.")
        return True

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
        elif not context.trained_names:
            hint = f"After training, {one} answers and {all_views} compares base, gate and adapters."
        else:
            hint = f"{one} answers with the mix above. {all_views} compares base, gate and every adapter."
        self._answers.hint(Content.styled(hint, "dim"))
