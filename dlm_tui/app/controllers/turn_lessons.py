"""A turn of the conversation teaches as an answer does: kept, mended, called better than another branch, labelled."""

from __future__ import annotations

from typing import Literal

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.conversing import Conversing
from dlm_tui.app.controllers.labelling import Labelling
from dlm_tui.app.controllers.teaching import How, Teaching
from dlm_tui.store import KeptAnswer


class TurnLessons:
    """What is written is the turn's own prompt and answer, whatever is typed meanwhile."""

    def __init__(self, context: Context, conversing: Conversing, teaching: Teaching, labelling: Labelling) -> None:
        self._context, self._conversing = context, conversing
        self._teaching, self._labelling = teaching, labelling

    def open(self, how: How | Literal["label"]) -> None:
        """Ask what to write of the marked turn."""
        turn = self._marked()
        if turn is None:
            return
        if how == "label":
            self._labelling.ask(turn.prompt, turn.text, turn.view, turn.weights)
            return
        others = self._conversing.asked_again(turn)
        if how == "better" and not others:
            fork = self._context.key("talk.fork")
            self._context.ui.say(
                f"There is only one answer in this place; {fork} and the same prompt, under another view or seed, give "
                "one to compare it with.",
                warning=True,
            )
            return
        self._teaching.ask(how, turn, others)

    def _marked(self) -> KeptAnswer | None:
        """The marked turn, if something was answered there; else it is said."""
        turn = self._conversing.marked
        if turn is None and self._conversing.running:
            self._context.ui.say("This turn is still being answered.", warning=True)
        elif turn is None or not turn.text.strip():
            self._context.ui.say("There is no answered turn to learn from yet.", warning=True)
        else:
            return turn
        return None
