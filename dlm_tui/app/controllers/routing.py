"""Routing: the gate's weights at every key, attributions and effect sizes after a pause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import InsightSurface, PromptSurface
from dlm_tui.app.progress import progress_words
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Progress, Route, Routed, Score, Scored
from dlm_tui.model.views import GATED, solo

_EXPLAIN_AFTER = 0.12  # seconds; attributions cost a backward pass through the small network only
_NO_GATE = {"none", "foreign"}  # modes in which no gate answers: its weights would only be a fallback
_TRIES = 20


class Routing:
    """Knows the gate's answer to what is typed. A newer question drops the one before it."""

    def __init__(self, context: Context, prompt: PromptSurface, insight: InsightSurface) -> None:
        self._context, self._prompt, self._insight = context, prompt, insight
        self.routed: Routed | None = None
        self.ghost: Mapping[str, float] | None = None
        """The weights of what is typed before the last training, until something else is typed."""
        self.changed: Signal[[]] = Signal()
        """There are new weights."""
        self.failed: Signal[[str]] = Signal()
        """The gate could not be asked, and why."""
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def weights(self) -> Mapping[str, float] | None:
        """The gate's last weights, None before any and while there is no gate."""
        routed = self.routed
        return routed.weights if routed and routed.weights and routed.mode not in _NO_GATE else None

    def typed(self, text: str) -> None:
        """The prompt changed."""
        self._context.state.prompt = text
        self.ghost = None
        self._context.saver.soon()
        self.route()

    def route(self) -> None:
        """Ask for the weights of what is typed now; an older question is dropped."""
        if not self._context.link.ready:
            return
        self._context.ui.run(partial(self.ask, self._prompt.text), "route", "route", exclusive=True)
        self.explain_soon()

    async def ask(self, text: str) -> None:
        """Ask for the weights of a text and take them if it is still what is typed."""
        try:
            with self._in_flight():
                async for event in self._context.link.stream(Route(prompt=text)):
                    if isinstance(event, Failed):
                        self.failed.emit(event.text)
                    elif isinstance(event, Routed):
                        self._take(event)
        except EngineGone:
            return

    def _take(self, routed: Routed) -> bool:
        """Use an answer, if it belongs to what is typed."""
        if routed.prompt != self._prompt.text:
            return False
        self.routed = routed
        self.changed.emit()
        return True

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[None]:
        self._pending += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()

    async def until_answered(self) -> None:
        """Until what is typed is routed and explained: another route would overtake that."""
        await self._idle.wait()

    async def weights_of(self, text: str) -> Mapping[str, float] | None:
        """The gate's weights of another prompt, None when it cannot be asked.

        Waits while typing is being answered, and asks again when typing overtook it: typing comes first.
        """
        for _ in range(_TRIES):
            await self.until_answered()
            try:
                async for event in self._context.link.stream(Route(prompt=text)):
                    if isinstance(event, Routed):
                        return event.weights
                    if isinstance(event, Failed):
                        return None
            except EngineGone:
                return None
        return None

    # ---- explaining ------------------------------------------------------------------------------------------------

    def explain_soon(self) -> None:
        """After a pause, settle the mark of unlike prompts; work out attributions and effect sizes if these show."""
        self._context.ui.cancel("explain")
        text = self._prompt.text
        if self._context.opened is not None and not self._context.trained_names:
            key = self._context.key("train.all")
            self._insight.clear(f"Train first ({key}): then this shows which words move the gate.")
        elif not text.strip():
            self._insight.clear("Type a prompt to see which words move the gate.")
        elif self._context.link.ready:
            self._context.ui.run(partial(self._explain, text), "explain", "explain")

    async def _explain(self, text: str) -> None:
        live, is_seen = self._context.config.live, self._insight.display
        try:
            await asyncio.sleep(_EXPLAIN_AFTER)
            await self.until_answered()
            if live.explain and is_seen:
                await self._explain_route(text)
            elif self.routed is not None and not self.routed.settled:
                await self._settle(text)
            if live.score and is_seen and self._context.trained_names:
                await asyncio.sleep(max(0.0, live.pause - _EXPLAIN_AFTER))
                await self._score(text)
        except EngineGone:
            return

    async def _settle(self, text: str) -> None:
        with self._in_flight():
            async for event in self._context.link.stream(Route(prompt=text, settled=True)):
                if isinstance(event, Routed):
                    self._take(event)

    async def _explain_route(self, text: str) -> None:
        context = self._context
        with self._in_flight():
            async for event in context.link.stream(Route(prompt=text, explain=True)):
                if isinstance(event, Routed) and self._take(event):
                    self._insight.show_route(event, context.names, context.marks, context.background)

    async def _score(self, text: str) -> None:
        context = self._context
        views = [GATED, *(solo(name) for name in context.trained_names)]
        request = Score(prompt=text, views=views, nulls=context.config.live.nulls)
        self._insight.effect_pending("measuring against random adapters\u2026")
        done = False
        try:
            async for event in context.link.stream(request):
                if isinstance(event, Scored) and event.prompt == self._prompt.text:
                    self._insight.show_scores(event, context.marks)
                elif isinstance(event, Progress):
                    self._insight.effect_pending(progress_words(event))
                elif isinstance(event, Failed):
                    self._insight.effect_pending(event.text)
            done = True
        finally:
            if not done:
                await context.link.cancel(request)
