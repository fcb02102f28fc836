"""A conversation as a tree of turns: whatever is asked otherwise in one place stays beside what was asked before.

A turn is a kept answer, which knows those that it follows. No torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TypedDict

import msgspec

from dlm_tui.store import KeptAnswer, KeptAnswers, Turn, answer_time


class Place(TypedDict):
    """Where in a conversation an answer stands: fields of `KeptAnswer`."""

    conversation: str
    turn: int
    turns: list[Turn]
    turn_ids: list[int]


class Conversation:
    """The turns that are known, by their ids, and the one after which the next question is asked."""

    def __init__(self, name: str, answers: Iterable[KeptAnswer] = ()) -> None:
        """`answers` in the order in which they were given; the last one is where the conversation stands."""
        self.name = name
        self.here: int | None = None
        self._turns: dict[int, KeptAnswer] = {}
        for answer in answers:
            self.add(answer)

    def __contains__(self, turn: int | None) -> bool:
        return turn in self._turns

    def __len__(self) -> int:
        return len(self._turns)

    def turn(self, number: int) -> KeptAnswer:
        """The turn with this id. Raises KeyError."""
        return self._turns[number]

    def add(self, answer: KeptAnswer) -> KeptAnswer:
        """Take in a turn and stand after it; one that was not kept is given a negative id of its own."""
        if answer.answer_id == 0:
            number = min((0, *self._turns)) - 1
            answer = msgspec.structs.replace(answer, answer_id=number)
        self._turns[answer.answer_id] = answer
        self.here = answer.answer_id
        return answer

    def kept(self, number: int, answer: KeptAnswer) -> None:
        """The turn `number` is kept now, and has the id that later turns will know it by."""
        del self._turns[number]
        self._turns[answer.answer_id] = answer
        self.here = answer.answer_id if self.here == number else self.here

    def path(self, turn: int | None) -> list[KeptAnswer]:
        """The turns from the first one to this one."""
        found: list[KeptAnswer] = []
        while turn is not None and turn in self._turns and len(found) <= len(self._turns):
            found.append(self._turns[turn])
            turn = found[-1].after
        return found[::-1]

    def spoken(self, turn: int | None) -> list[Turn]:
        """What a question after this turn is asked behind, oldest first."""
        return [Turn(prompt=answer.prompt, answer=answer.text) for answer in self.path(turn)]

    def asked_here(self) -> Place:
        """What a kept answer knows of its place when it is asked here."""
        path = self.path(self.here)
        return Place(
            conversation=self.name,
            turn=len(path),
            turns=self.spoken(self.here),
            turn_ids=[answer.answer_id for answer in path],
        )

    def branches(self, turn: int) -> list[int]:
        """The turns that follow the same turn as this one, itself among them, in the order in which they were asked."""
        after = self._parent(turn)
        return sorted((n for n in self._turns if self._parent(n) == after), key=_asked)

    def end(self, turn: int) -> int:
        """The last turn of the branch that was asked last below this one."""
        while following := [n for n in self._turns if self._parent(n) == turn]:
            turn = max(following, key=_asked)
        return turn

    def other_branch(self, turn: int, step: int) -> int | None:
        """The end of the branch so many beside the one of this turn; None where there is but one."""
        branches = self.branches(turn)
        if len(branches) < 2:
            return None
        return self.end(branches[(branches.index(turn) + step) % len(branches)])

    def stand(self, turn: int | None) -> None:
        """Ask the next question after this turn; None asks it in the place of the first one. Raises KeyError."""
        if turn is not None and turn not in self._turns:
            raise KeyError(turn)
        self.here = turn

    def fork(self, turn: int) -> KeptAnswer:
        """Ask the next question in the place of this turn, which stays; returns it. Raises KeyError."""
        asked = self._turns[turn]
        self.here = self._parent(turn)
        return asked

    @property
    def all_turns(self) -> list[KeptAnswer]:
        """Every turn of every branch, in the order in which they were asked."""
        return [self._turns[number] for number in sorted(self._turns, key=_asked)]

    def _parent(self, turn: int) -> int | None:
        after = self._turns[turn].after
        return after if after in self._turns else None


def new_conversation(opening: KeptAnswer | None = None) -> Conversation:
    """A conversation that begins with an answer that was given outside of any, or with nothing."""
    return Conversation(f"{answer_time()[:19]}-{secrets.token_hex(4)}", [opening] if opening else [])


def load_conversation(kept: KeptAnswers, name: str) -> Conversation:
    """The conversation as far as its answers are still kept. Raises AnswersError.

    What is kept no more is known by its words alone, as the answers behind it carry them.
    """
    answers = kept.of_conversation(name)[::-1]
    known = {answer.answer_id for answer in answers}
    conversation = Conversation(name)
    for answer in answers:
        for place, number in enumerate(answer.turn_ids[: len(answer.turns)]):
            if number not in known:
                conversation.add(_earlier(kept, answer, place))
                known.add(number)
        conversation.add(answer)
    return conversation


def _earlier(kept: KeptAnswers, answer: KeptAnswer, place: int) -> KeptAnswer:
    """A turn in front of an answer that is not kept with the conversation: its opening, or its words alone."""
    number, turn = answer.turn_ids[place], answer.turns[place]
    found = kept.get(number) if place == 0 else None
    if found is not None and (found.prompt, found.text) == (turn.prompt, turn.answer):
        return found
    return msgspec.structs.replace(
        answer, prompt=turn.prompt, text=turn.answer, view="", kind="", mix={}, weights={}, token_ids=[], pieces=[],
        turns=answer.turns[:place], turn_ids=answer.turn_ids[:place], turn=place, answer_id=number, reason="",
    )  # fmt: skip


def _asked(number: int) -> tuple[bool, int]:
    """Turns that were not kept come after those that were, in their order."""
    return (number < 0, abs(number))
