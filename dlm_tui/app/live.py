"""The live gate: a route at every key, pulls and effect sizes after a pause, and the desk that shows it all."""

from __future__ import annotations

import asyncio
from functools import partial

from textual import on
from textual.content import Content

from dlm_tui.app.base import WorkbenchBase
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.insight import ood_text
from dlm_tui.app.panes.prompt import PromptPane
from dlm_tui.app.progress import progress_line, progress_words
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Progress, Route, Routed, Score, Scored
from dlm_tui.model.views import GATED, solo
from dlm_widgets.mixing_desk import Channel, MixingDesk
from dlm_widgets.sanitize import assemble, literal

_EXPLAIN_AFTER = 0.12  # seconds; pulls cost a backward pass through the small network only


class LiveGate(WorkbenchBase):
    """Routing, explaining and the mixing desk."""

    _explaining = False

    # ---- routing ---------------------------------------------------------------------------------------------------

    @on(PromptPane.Typed)
    def _typed(self, event: PromptPane.Typed) -> None:
        self.state.prompt = event.text
        self.ghost = None
        self.save_soon()
        self.route()

    def route(self) -> None:
        """Ask for the gate's weights of what is typed now; an older question is dropped."""
        if not self.link.ready:
            return
        self.background(partial(self._route, self.prompt_pane.text), "route", "route", exclusive=True)
        self.explain_soon()

    async def _route(self, text: str) -> None:
        try:
            async for event in self.link.stream(Route(prompt=text)):
                if isinstance(event, Routed) and event.prompt == self.prompt_pane.text:
                    self.routed = event
                    self.refresh_desk()
                elif isinstance(event, Failed):
                    self.desk.note(assemble(("\u2717 ", "bold $error"), event.text))
        except EngineGone:
            return

    def explain_soon(self) -> None:
        """After a pause, work out pulls and effect sizes, if anybody can see them."""
        self.workers.cancel_group(self, "explain")
        if not self.link.ready or not self.insight.display or not self.prompt_pane.text.strip():
            if not self.prompt_pane.text.strip():
                self.insight.clear("Type a prompt to see which words move the gate.")
            return
        self.background(partial(self._explain, self.prompt_pane.text), "explain", "explain")

    async def _explain(self, text: str) -> None:
        live = self.config.live
        try:
            if live.explain:
                await asyncio.sleep(_EXPLAIN_AFTER)
                await self.route_answered()
                await self._explain_route(text)
            if live.score and self.trained_names:
                await asyncio.sleep(max(0.0, live.pause - _EXPLAIN_AFTER))
                await self._score(text)
        except EngineGone:
            return

    async def route_answered(self) -> None:
        """Until what is typed is routed and explained: a newer request would overtake that."""
        while self._explaining or any(w.group == "route" and not w.is_finished for w in self.workers):
            await asyncio.sleep(0.02)

    async def _explain_route(self, text: str) -> None:
        self._explaining = True
        try:
            async for event in self.link.stream(Route(prompt=text, explain=True)):
                if isinstance(event, Routed) and event.prompt == self.prompt_pane.text:
                    self.routed = event
                    self.refresh_desk()
                    self.insight.show_route(event, self.names, self.marks, self.ground)
        finally:
            self._explaining = False

    async def _score(self, text: str) -> None:
        views = [GATED, *(solo(name) for name in self.trained_names)]
        request = Score(prompt=text, views=views, nulls=self.config.live.nulls)
        self.insight.effect_pending("measuring against random adapters\u2026")
        done = False
        try:
            async for event in self.link.stream(request):
                if isinstance(event, Scored) and event.prompt == self.prompt_pane.text:
                    self.insight.show_scores(event, self.marks)
                elif isinstance(event, Progress):
                    self.insight.effect_pending(progress_words(event))
                elif isinstance(event, Failed):
                    self.insight.effect_pending(event.text)
            done = True
        finally:
            if not done:
                await self.link.cancel(request)

    # ---- the desk --------------------------------------------------------------------------------------------------

    def coefficients(self) -> dict[str, float]:
        """The mix an answer would use now."""
        return self.state.mix.coefficients(self.names, self.weights)

    def refresh_desk(self) -> None:
        """Draw the desk, in a moment."""
        self.desk.ask()

    def fill_desk(self) -> None:
        """Put the strips and what the gate says on the desk."""
        desk = self.desk
        routed, opened, mix = self.routed, self.opened, self.state.mix
        marks, coefficients = self.marks, self.coefficients()
        trained = self.trained_names
        channels = [
            Channel(
                name,
                marks[name].glyph,
                marks[name].color,
                weight=self.weights.get(name) if self.weights and name in trained else None,
                ghost=self._ghost_of(name),
                coefficient=coefficients.get(name, 0.0) if name in trained else 0.0,
                solo=name in mix.solos,
                mute=name in mix.mutes,
                pin=name in mix.pins,
                trained=name in trained,
                note=self._channel_note(name),
            )
            for name in self.names
        ]
        desk.strips.stale = not self.link.ready
        desk.strips.set_channels(channels)
        desk.retitle(mix.title(), *self._gate_words(routed))
        desk.note(self._desk_note(opened.gate if opened else "none", opened.gate_reason if opened else ""))

    def _ghost_of(self, name: str) -> float | None:
        """The weight before the last training, where it differs visibly."""
        if self.ghost is None or self.weights is None or name not in self.ghost:
            return None
        before = self.ghost[name]
        return before if abs(before - self.weights.get(name, 0.0)) >= 0.02 else None

    def _channel_note(self, name: str) -> str:
        if self.opened is None:
            return "no engine" if self.link.state.phase == "failed" else "loading"
        return "no gate" if name in self.trained_names else "not trained"

    def _gate_words(self, routed: Routed | None) -> list[str | Content]:
        if self.opened is None or not self.trained_names:
            return []
        words: list[str | Content] = [f"{'' if self.state.mix.title() == 'gate' else 'gate '}{self.opened.gate}"]
        if routed is None or self.weights is None:
            return words
        entropy = f"entropy {routed.entropy:.2f} nats ({routed.normalised_entropy:.0%})"
        words.append(Content.styled(entropy, "dim") if not self.link.ready else entropy)
        if routed.is_ood:
            words.append(ood_text(routed))
        words.append(Content.styled(f"{routed.tokens} tokens{', cut' if routed.truncated else ''}", "dim"))
        return words

    def _desk_note(self, gate: str, reason: str) -> Content:
        state = self.link.state
        if state.phase == "failed":
            return assemble(
                ("\u2717 ", "bold $error"),
                state.text,
                (f"  {self.key('engine.restart')} starts the engine again", "dim"),
            )
        if state.phase == "restarting":
            return assemble(("\u21bb ", "bold $warning"), state.text)
        if state.phase in {"starting", "loading"}:
            if state.progress:
                return progress_line(state.progress)
            return literal(f"opening: {state.text}\u2026" if state.text else "starting the engine\u2026", "dim")
        if not self.trained_names:
            return self._untrained_note()
        if not self.prompt_pane.text.strip():
            return Content.styled("No prompt yet: every adapter counts the same.", "dim")
        if gate != "trained" and reason:
            return assemble((f"gate {gate}: ", "bold $warning"), reason)
        return Content("")

    def _untrained_note(self) -> Content:
        record = self.board.running("train")
        if record:
            return progress_line(record.progress) if record.progress else Content("the training is starting\u2026")
        count = len(self.names)
        what = f"{count} adapters and the gate" if count > 1 else "the adapter"
        return assemble(
            ("Nothing is trained yet. ", "bold"), f"{self.key('train.all')} trains {what} in the background."
        )

    @on(MixingDesk.FaderMoved)
    def _fader_moved(self, event: MixingDesk.FaderMoved) -> None:
        self.state.mix.move_fader(event.name, event.value, self.names, self.weights)
        self._mix_changed()

    @on(MixingDesk.Switched)
    def _switched(self, event: MixingDesk.Switched) -> None:
        self.state.mix.toggle(event.name, event.part, self.coefficients().get(event.name, 0.0))
        self._mix_changed()

    @on(DeskPane.ResetPressed)
    def _mix_reset(self) -> None:
        self.state.mix.reset()
        self._mix_changed()

    def action_mix_mode(self) -> None:
        """Gate, uniform, custom."""
        self.set_mix_mode(self.state.mix.next_mode())

    def set_mix_mode(self, mode: str) -> None:
        """Choose gate, uniform or custom."""
        if mode in {"gate", "uniform", "custom"}:
            self.state.mix.set_mode(mode, self.names, self.weights)  # type: ignore[arg-type]
            self._mix_changed()

    def _mix_changed(self) -> None:
        self.desk.draw()  # at once: the next key moves the fader from where it is now
        self.save_soon()
