"""What of a conversation's past a base still reads: the newest turns that fit its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlm_tui.model.chat import ChatRenderer, chat_messages
from dlm_tui.store import Turn


class ChatBase(Protocol):
    """What is needed of a base."""

    context_length: int
    renderer: ChatRenderer

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of exactly this text."""


@dataclass(frozen=True)
class FittedChat:
    """Token ids of a conversation up to where the answer begins, and how many of the oldest turns are left out."""

    ids: list[int]
    dropped: int


def fit_chat(
    base: ChatBase, turns: Sequence[Turn], question: str, system: str | None, answer_tokens: int
) -> FittedChat:
    """The conversation as the base's chat template has it, without the oldest turns that leave too little room.

    The system prompt and the question always stay. Room is kept for an answer of `answer_tokens`, at most for half of
    the context. Raises ChatTemplateError.
    """
    most = base.context_length - min(answer_tokens, base.context_length // 2)

    def ids_without(dropped: int) -> list[int]:
        return base.encode_rendered(base.renderer.text(chat_messages(turns[dropped:], question, system), generate=True))

    ids = ids_without(0)
    fewest, enough = 0, len(turns)
    if len(ids) <= most or not turns:
        return FittedChat(ids, 0)
    # fewer turns make a shorter text: the least number to leave out is found by halving
    ids = ids_without(enough)
    while enough - fewest > 1:
        middle = (fewest + enough) // 2
        found = ids_without(middle)
        if len(found) <= most:
            enough, ids = middle, found
        else:
            fewest = middle
    return FittedChat(ids, enough)
