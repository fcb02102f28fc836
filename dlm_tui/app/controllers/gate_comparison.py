"""What a training of the gate moved: the open set's and the recent prompts, routed before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.surfaces import PromptSurface
from dlm_tui.app.state import Remembered
from dlm_tui.document.comparison import Moved
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone

_RECENT = 24


class GateComparison:
    """Keeps the weights with which prompts were last seen, and compares them when the gate is another."""

    def __init__(self, context: Context, routing: Routing, prompt: PromptSurface) -> None:
        self._context, self._routing, self._prompt = context, routing, prompt
        self.moved: tuple[Moved, ...] = ()
        self._comparing = False

    def open_set(self, name: str) -> None:
        """Take a named set of prompts as the open one."""
        self._context.state.open_set = name
        self._context.saver.soon()
        self.note_saved()

    def note_saved(self) -> None:
        """Route the open set's prompts in the background, to have something to compare with after a training."""
        context = self._context
        if context.link.ready and context.trained_names and not self._comparing:
            context.ui.run(self._note_saved, "recheck", "route saved prompts", exclusive=True)

    async def _note_saved(self) -> None:
        """Route the open set's prompts that the gate in force has not been asked about."""
        context = self._context
        for entry in self._open_prompts():
            if set(entry.weights) != set(context.names) or entry.gate_run != context.gate_run:
                after = await self._routing.weights_of(entry.text)
                if after is not None:
                    entry.weights, entry.gate_run = dict(after), context.gate_run
        context.saver.soon()

    def _open_prompts(self) -> list[Remembered]:
        """The open set's prompts as they were last seen; without one the first set beside the document."""
        state = self._context.state
        try:
            sets = PromptSets(self._context.setup.path).load()
        except PromptSetsError:
            sets = {}  # the dialog of the sets says what is wrong with the file
        name = state.open_set if state.open_set in sets else next(iter(sets), None)
        known = {entry.text: entry for entry in state.saved}
        texts = dict.fromkeys(text.strip() for text in sets.get(name, []) if text.strip()) if name else {}
        state.saved = [known.get(text) or Remembered(text=text) for text in texts]
        return state.saved

    def remember_current(self) -> None:
        """Keep the weights of what is typed, so that a training shows what moved."""
        routing, text = self._routing, self._prompt.text
        if routing.weights and routing.routed and routing.routed.prompt == text:
            routing.ghost = dict(routing.weights)
            self._context.state.remember(text, dict(routing.weights), self._context.gate_run)
            self._context.saver.soon()

    async def use_new_gate(self) -> None:
        """New weights are on disk: the engine takes them in, then the remembered prompts are looked at again."""
        before = self._seen()
        self._comparing = True
        try:
            await self._context.link.reload()
            await self._compare(before)
        except EngineGone:
            return
        finally:
            self._comparing = False

    def _seen(self) -> dict[str, dict[str, float]]:
        """Saved and recent prompts with the weights they were last seen with, none for those never routed."""
        recent = [entry for entry in self._context.state.history[:_RECENT] if entry.weights]
        return {entry.text: dict(entry.weights) for entry in [*recent, *self._open_prompts()]}

    async def _compare(self, before: Mapping[str, dict[str, float]]) -> None:
        """Route these prompts again; keep their new weights and note what moved, the saved ones first."""
        context, moved = self._context, list[Moved]()
        saved = {entry.text for entry in context.state.saved}
        for text in sorted(before, key=lambda text: text not in saved):
            after = await self._routing.weights_of(text)
            if after is None:
                continue
            for entry in [*context.state.saved, *context.state.history[:_RECENT]]:
                if entry.text == text:
                    entry.weights, entry.gate_run = dict(after), context.gate_run
            if set(before[text]) == set(context.names):
                moved.append(Moved(text, before[text], dict(after), text in saved))
        self.moved = tuple(moved)
        context.saver.soon()

    def show(self) -> None:
        """Before and after of the remembered prompts."""
        from dlm_tui.app.screens.moved import MovedScreen

        self._context.ui.open_dialog(MovedScreen(self.moved, self._context.names, self._context.marks))


def moves_text(moved: Sequence[Moved], text: str, names: Sequence[str]) -> str:
    """What moved for one prompt: `tone 0.12 \u2192 0.80, style 0.60 \u2192 0.08`; empty when it was not compared."""
    change = next((change for change in moved if change.text == text.strip()), None)
    if change is None:
        return ""
    moves = [
        f"{name} {change.before[name]:.2f} \u2192 {change.after[name]:.2f}"
        for name in names
        if name in change.before and abs(change.after.get(name, 0.0) - change.before[name]) >= 0.005
    ]
    return f"{', '.join(moves)}." if moves else "No weight of this prompt moved."


def changed_text(moved: Sequence[Moved]) -> str:
    """How many prompts have another strongest adapter, as a sentence; empty when none has."""
    changed = sum(change.top_changed for change in moved)
    have = "has" if changed == 1 else "have"
    return f"{changed} of {len(moved)} remembered prompts {have} another top adapter now." if changed else ""
