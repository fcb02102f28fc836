"""Asking the model: one answer, all views side by side, a sweep of one adapter."""

from __future__ import annotations

from functools import partial

from textual import on
from textual.content import Content

from dlm_tui.app.live import LiveGate
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.progress import progress_words
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Generate, Generated, Progress, Score, Scored, Stopped, Token, ViewDone
from dlm_tui.model.views import BASE, GATED, View, custom, solo

SWEEP_STEPS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


class Answering(LiveGate):
    """Generation. One request at a time; a new one stops the old one."""

    _generating: Generate | None = None

    @property
    def generating(self) -> bool:
        """Whether an answer is being written."""
        return self._generating is not None

    def action_answer(self) -> None:
        """Answer with the mix on the desk."""
        views = [self.state.mix.view(self.trained_names, self.weights)] if self.trained_names else [BASE]
        self._ask(views)

    def action_compare(self) -> None:
        """Base, gated, each adapter alone, and the custom mix if there is one."""
        views: list[View] = [BASE]
        if self.trained_names:
            views += [GATED, *(solo(name) for name in self.trained_names)]
            mine = self.state.mix.view(self.trained_names, self.weights)
            if mine.kind == "custom":
                views.append(mine)
        self._ask(views)

    def _ask(self, views: list[View]) -> None:
        text = self.prompt_pane.text
        if not text.strip():
            self.say("There is no prompt to answer yet.", warning=True)
            return
        if not self.link.ready:
            self.say(f"The engine is not ready: {self.link.state.text or self.link.state.phase}.", warning=True)
            return
        self.state.remember(text, dict(self.weights or {}), self.gate_run)
        self.save_soon()
        self.show_page("answers")
        self.background(partial(self._generate, text, views), "generate", "answer", exclusive=True)

    async def _generate(self, text: str, views: list[View]) -> None:
        options = self.config.generate
        request = Generate(
            prompt=text,
            views=views,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            heat=self.state.heat,
        )
        await self.answers.begin([view.name for view in views], self.marks)
        self._generating = request
        finished = False
        try:
            async for event in self.link.stream(request):
                finished = self._take_answer(event)
        except EngineGone as error:
            self.answers.stop(str(error))
            finished = True
        finally:
            if self._generating is request:
                self._generating = None
            if not finished:
                await self.link.cancel(request)

    def _take_answer(self, event: object) -> bool:
        match event:
            case Progress():
                self.answers.reading(progress_words(event))
            case Token(view=view, text=text, heat=heat):
                self.answers.add(view, text, heat)
            case ViewDone(view=view, text=text, tokens=tokens, reason=reason):
                why = "" if reason == "stop" else ", cut at the limit"
                self.answers.finish(view, text, f"{tokens} tokens{why}")
            case Generated(seconds=seconds, seed=seed):
                self.answers.retitle(f"{seconds:.1f} s", f"seed {seed}" if self.config.generate.temperature else "")
                return True
            case Failed(text=text):
                self.answers.stop("failed")
                self.say(text, error=True, title="No answer")
                return True
            case Stopped():
                self.answers.stop("stopped")
                return True
        return False

    async def stop_answer(self) -> bool:
        """Stop the running answer; whether there was one."""
        request = self._generating
        if request is None:
            return False
        await self.link.cancel(request)
        self.say("Stopped the answer; what was written stays.")
        return True

    def show_page(self, page: str) -> None:
        """Bring a page to the front; the arrangement knows how."""
        raise AssertionError(page)

    @on(AnswersPane.SettingsChanged)
    def _answers_settings(self, event: AnswersPane.SettingsChanged) -> None:
        self.state.columns, self.state.heat = event.columns, event.heat
        self.save_soon()

    def show_answers_hint(self) -> None:
        """What the empty answers pane says."""
        one, all_views = self.key("prompt.answer"), self.key("prompt.compare")
        if self.opened is None and self.link.state.phase == "failed":
            hint = "Answers need the engine; why it cannot work is said above."
        elif self.opened is None:
            hint = "The engine is opening the document; you can type already."
        elif not self.trained_names:
            hint = f"After training, {one} answers and {all_views} compares base, gate and adapters."
        else:
            hint = f"{one} answers with the mix above. {all_views} compares base, gate and every adapter."
        self.answers.hint(Content.styled(hint, "dim"))

    # ---- sweep -----------------------------------------------------------------------------------------------------

    @on(DeskPane.SweepPressed)
    async def _sweep_pressed(self) -> None:
        name = self.desk.strips.selected
        text = self.prompt_pane.text
        if name is None or name not in self.trained_names or not self.link.ready:
            self.say("A sweep needs a trained adapter and a running engine.", warning=True)
            return
        if not text.strip():
            self.say("A sweep needs a prompt.", warning=True)
            return
        from dlm_tui.app.screens.sweep import SweepScreen

        screen = SweepScreen(name, self.marks[name], SWEEP_STEPS)
        await self.app.push_screen(screen)
        self.background(partial(self._sweep, screen, name, text), "sweep", "sweep", exclusive=True)
        screen.on_closed = lambda: self.workers.cancel_group(self, "sweep")

    async def _sweep(self, screen: object, name: str, text: str) -> None:
        from dlm_tui.app.screens.sweep import SweepScreen

        assert isinstance(screen, SweepScreen)
        others = {other: value for other, value in self.coefficients().items() if other in self.trained_names}
        views = [custom({**others, name: step}, name=f"{step:+.1f}") for step in SWEEP_STEPS]
        generate = Generate(prompt=text, views=views, max_tokens=min(48, self.config.generate.max_tokens))
        score = Score(prompt=text, views=views, nulls=0)
        finished = False
        try:
            async for event in self.link.stream(score):
                if isinstance(event, Scored):
                    screen.set_scores({view.view: view.kl for view in event.views})
                elif isinstance(event, Progress):
                    screen.show_progress(event)
                elif isinstance(event, Failed):
                    screen.set_problem(event.text)
            async for event in self.link.stream(generate):
                if isinstance(event, Token):
                    screen.add_text(event.view, event.text)
                elif isinstance(event, Progress):
                    screen.show_progress(event)
                elif isinstance(event, Failed):
                    screen.set_problem(event.text)
            finished = True
            screen.set_done()
        except EngineGone as error:
            screen.set_problem(str(error))
            finished = True
        finally:
            if not finished:
                await self.link.cancel(score)
                await self.link.cancel(generate)
