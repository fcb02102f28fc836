"""What a conversation looks like: its turns with their headings, and what is said about the one that is asked next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.shown_answers import end_words
from dlm_tui.app.controllers.surfaces import TalkSurface
from dlm_tui.app.controllers.transcript import Asking
from dlm_tui.conversation import Conversation
from dlm_tui.counting import counted
from dlm_tui.document.names import split_version
from dlm_tui.store import KeptAnswer
from dlm_widgets.sanitize import literal, sanitize
from dlm_widgets.turn_card import ShownTurn, TurnHead, weight_strip

_ASKED = 0
"""The id of the turn that is being answered."""


class TalkDrawing:
    """Draws what it is given; what the conversation is stands in `conversing`."""

    def __init__(self, context: Context, mixing: Mixing, talk: TalkSurface) -> None:
        self._context, self._mixing, self._talk = context, mixing, talk

    async def show(self, talk: Conversation | None, asking: Asking | None) -> None:
        """The turns up to where the conversation stands, and the one that is being answered."""
        turns: list[ShownTurn] = []
        if talk is not None:
            turns += [self._turn(talk, turn, number) for number, turn in enumerate(talk.path(talk.here), start=1)]
        count, known = len(turns), len(talk or ())
        if asking is not None:
            turns.append(_pending(asking))
        await self._talk.show(turns, self._context.marks)
        key = self._context.key("talk.follow")
        hint = f"{key} asks the prompt behind the answer that is shown, and what is said stays here."
        self._talk.hint(Content.styled(hint, "dim"))
        self._talk.retitle(f"{count} of {known} turns" if known > count else counted(count, "turn"))
        self._mixing.show_turns([turn.head.weights for turn in turns])

    def head_last(self, asking: Asking) -> None:
        """How far the turn is that is being answered."""
        self._talk.head_last(_pending(asking))

    def finish(self, talk: Conversation, told: KeptAnswer) -> None:
        """The turn that was being answered is a turn of the conversation."""
        self._talk.finish(self._turn(talk, told, len(told.turns) + 1))

    def show_next(
        self, turns: Sequence[KeptAnswer], held: Mapping[str, float] | None, instead: KeptAnswer | None
    ) -> None:
        """What is said about the turn behind these, which is asked `instead` of another, under a mix that is `held`."""
        self._talk.next_words(self._next_words(turns, held, instead))

    def _turn(self, talk: Conversation, turn: KeptAnswer, number: int) -> ShownTurn:
        branches = talk.branches(turn.answer_id)
        head = TurnHead(
            number=number,
            view=turn.view or "unknown",
            weights=turn.mix if turn.view else {},
            branch=branches.index(turn.answer_id) + 1,
            branches=len(branches),
            note=turn_words(turn, self._gone(turn.mix)),
        )
        return ShownTurn(turn.answer_id, turn.prompt, turn.text, head)

    def _gone(self, mix: Mapping[str, float]) -> str:
        """Which adapters of a mix the document has no more, in words."""
        asked = dict.fromkeys(split_version(name)[0] for name, value in mix.items() if value)
        gone = [name for name in asked if name not in self._context.names]
        return f"gone: {', '.join(gone)}" if gone else ""

    def _view_words(self) -> Content:
        """Under what the next turn is answered, where the desk asks for something else than the gate."""
        view = self._mixing.view()
        if view.kind in ("gated", "base"):
            return Content("")
        weights = self._mixing.coefficients()
        return literal("Next under ", "dim") + literal(f"{view.name} ") + weight_strip(weights, self._context.marks)

    def _next_words(
        self, turns: Sequence[KeptAnswer], held: Mapping[str, float] | None, instead: KeptAnswer | None
    ) -> Content:
        context, words = self._context, Content("")
        if instead is not None:
            asked = sanitize(instead.prompt, one_line=True)
            asked = asked if len(asked) <= 40 else f"{asked[:39]}\u2026"
            place = f"{context.key('talk.follow')} asks in the place of turn {len(turns) + 1}"
            words += literal(f"{place} ({asked}), which stays. ", "dim")
        if held is not None:
            gone = f"{gone}; " if (gone := self._gone(held)) else ""
            lets_go = literal(f"  {gone}{context.key('talk.hold')} lets the mix go.", "dim")
            words += literal("Held: ", "dim") + weight_strip(held, context.marks) + lets_go
        elif turns:
            words += self._view_words()
        return words


def _pending(asking: Asking) -> ShownTurn:
    request = asking.transcript.request
    head = TurnHead(len(asking.place["turns"]) + 1, request.views[0].name, dict(asking.mix), note=asking.note)
    return ShownTurn(_ASKED, request.prompt, "", head)


def turn_words(turn: KeptAnswer, gone: str = "") -> str:
    """What stands beside a turn: its tokens, what of the history was run for it, what no longer fitted, what is
    `gone` of its mix."""
    if not turn.view:
        return "its words alone are kept"
    words = [end_words(len(turn.token_ids), turn.reason, turn.seed if turn.temperature else None)]
    if turn.turns and turn.prefill_seconds is not None:
        words.append(f"{turn.run_tokens} of {turn.prompt_tokens} tokens run, {turn.prefill_seconds:.1f} s")
    if turn.dropped:
        words.append(f"oldest {turn.dropped} left out" if turn.dropped > 1 else "oldest turn left out")
    return " \u00b7 ".join([*words, gone] if gone else words)
