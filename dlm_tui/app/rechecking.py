"""What a training of the gate moved: remembered prompts are routed before and after it, and typing comes first."""

from __future__ import annotations

from collections.abc import Mapping

from dlm_tui.app.answering import Answering
from dlm_tui.app.state import Remembered
from dlm_tui.document.comparison import Moved
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Route, Routed

_RECENT = 24
_TRIES = 20


class Rechecking(Answering):
    """The prompts of the open set and the recent ones, with their weights under the gate of now and the one before."""

    moved: tuple[Moved, ...] = ()
    _rechecking = False

    def open_set(self, name: str) -> None:
        """Take a named set of prompts as the open one."""
        self.state.open_set = name
        self.save_soon()
        self.note_saved()

    def note_saved(self) -> None:
        """Route the open set's prompts in the background, to have something to compare with after a training."""
        if self.link.ready and self.trained_names and not self._rechecking:
            self.background(self._note_saved, "recheck", "route saved prompts", exclusive=True)

    async def _note_saved(self) -> None:
        """Route the open set's prompts that no gate of now has been asked about."""
        for entry in self._open_prompts():
            if set(entry.weights) != set(self.names) or entry.gate_run != self.gate_run:
                after = await self.weights_of(entry.text)
                if after is not None:
                    entry.weights, entry.gate_run = dict(after), self.gate_run
        self.save_soon()

    def _open_prompts(self) -> list[Remembered]:
        """The open set's prompts as they were last seen; without one the first set beside the document."""
        try:
            sets = PromptSets(self.setup.path).load()
        except PromptSetsError:
            sets = {}  # the dialog of the sets says what is wrong with the file
        name = self.state.open_set if self.state.open_set in sets else next(iter(sets), None)
        known = {entry.text: entry for entry in self.state.saved}
        texts = dict.fromkeys(text.strip() for text in sets.get(name, []) if text.strip()) if name else {}
        self.state.saved = [known.get(text) or Remembered(text=text) for text in texts]
        return self.state.saved

    def remember_current(self) -> None:
        """Keep the weights of what is typed, so that a training shows what moved."""
        if self.weights and self.routed and self.routed.prompt == self.prompt_pane.text:
            self.ghost = dict(self.weights)
            self.state.remember(self.prompt_pane.text, dict(self.weights), self.gate_run)
            self.save_soon()

    async def gate_changed(self) -> None:
        """New weights are on disk: swap them in, route again, look which remembered prompts moved."""
        ghost, before = self.ghost, self._seen()
        self._rechecking = True
        try:
            await self.link.reload()
            self.show_answers_hint()
            self.route()
            self.ghost = ghost
            self.refresh_outline()
            self.refresh_desk()
            await self._recheck(before)
        except EngineGone:
            return
        finally:
            self._rechecking = False

    def _seen(self) -> dict[str, dict[str, float]]:
        """Saved and recent prompts with the weights they were last seen with, none for those never routed."""
        recent = [entry for entry in self.state.history[:_RECENT] if entry.weights]
        return {entry.text: dict(entry.weights) for entry in [*recent, *self._open_prompts()]}

    async def _recheck(self, before: Mapping[str, dict[str, float]]) -> None:
        """Route these prompts again; keep their new weights and note what moved, the saved ones first."""
        moved: list[Moved] = []
        saved = {entry.text for entry in self.state.saved}
        for text in sorted(before, key=lambda text: text not in saved):
            after = await self.weights_of(text)
            if after is None:
                continue
            for entry in [*self.state.saved, *self.state.history[:_RECENT]]:
                if entry.text == text:
                    entry.weights, entry.gate_run = dict(after), self.gate_run
            if set(before[text]) == set(self.names):
                moved.append(Moved(text, before[text], dict(after), text in saved))
        self.moved = tuple(moved)
        self.save_soon()

    def action_moved(self) -> None:
        """Before and after of the remembered prompts."""
        from dlm_tui.app.screens.moved import MovedScreen

        self.app.push_screen(MovedScreen(self.moved, self.names, self.marks))

    async def weights_of(self, text: str) -> Mapping[str, float] | None:
        """The gate's weights of another prompt; waits while typing is being answered, so that typing comes first."""
        for _ in range(_TRIES):
            await self.route_answered()
            try:
                async for event in self.link.stream(Route(prompt=text)):
                    if isinstance(event, Routed):
                        return event.weights
                    if isinstance(event, Failed):
                        return None
            except EngineGone:
                return None
        return None

    def refresh_outline(self) -> None:
        """The outline."""
        raise AssertionError
