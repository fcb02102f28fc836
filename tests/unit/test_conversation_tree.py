"""A tree of turns: branches stay, are found again after a restart, and can be taken to other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.conversation import Conversation, load_conversation, messages_of, new_conversation, save_conversation
from dlm_tui.errors import UsageError
from dlm_tui.given_files import NameTaken
from dlm_tui.store import KeptAnswer, KeptAnswers, Turn


def answer(prompt: str, text: str, **more: Any) -> KeptAnswer:
    given: dict[str, Any] = {
        "view": "gated", "kind": "gated", "mix": {"knowledge": 0.75, "tone": 0.25}, "versions": {"knowledge": 1},
        "base": "corpus", "seed": 7, "temperature": 0.0, "top_p": 1.0, "max_tokens": 128, "reason": "stop",
        "at": "2026-03-04T05:06:07.890Z",
    }  # fmt: skip
    return KeptAnswer(prompt=prompt, text=text, **{**given, **more})


class Talk:
    """Asks in a conversation and keeps every turn, as screen and command line do."""

    def __init__(self, folder: Path) -> None:
        self.kept = KeptAnswers(folder / "answers.sqlite")
        self.conversation = new_conversation()

    def say(self, prompt: str, text: str, **more: Any) -> KeptAnswer:
        talk = self.conversation
        (kept,) = self.kept.keep([answer(prompt, text, **talk.asked_here(), **more)])
        return talk.add(kept)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


def words(path: list[KeptAnswer]) -> list[str]:
    return [turn.prompt for turn in path]


def forked(talk: Talk) -> tuple[KeptAnswer, KeptAnswer, KeptAnswer, KeptAnswer]:
    """one - two - three, and instead of two: other."""
    one, two, three = talk.say("one", "1"), talk.say("two", "2"), talk.say("three", "3")
    assert talk.conversation.fork(two.answer_id).prompt == "two"
    assert talk.conversation.here == one.answer_id
    return one, two, three, talk.say("other", "2'", view="tone")


def test_both_branches_of_a_fork_stay(talk: Talk) -> None:
    one, two, three, other = forked(talk)
    tree = talk.conversation
    assert words(tree.path(tree.here)) == ["one", "other"]
    assert words(tree.path(three.answer_id)) == ["one", "two", "three"]
    assert tree.branches(two.answer_id) == [two.answer_id, other.answer_id] == tree.branches(other.answer_id)
    assert tree.other_branch(other.answer_id, 1) == three.answer_id, "a branch is taken to its end"
    assert tree.other_branch(two.answer_id, -1) == other.answer_id
    assert tree.other_branch(one.answer_id, 1) is None
    assert other.turns == [Turn(prompt="one", answer="1")] and other.after == one.answer_id


def test_the_first_question_can_be_asked_otherwise(talk: Talk) -> None:
    one = talk.say("one", "1")
    talk.conversation.fork(one.answer_id)
    assert talk.conversation.here is None and talk.conversation.spoken(None) == []
    first = talk.say("first", "1")
    assert talk.conversation.branches(one.answer_id) == [one.answer_id, first.answer_id]


def test_a_restart_finds_the_tree_again(talk: Talk) -> None:
    *_, other = forked(talk)
    again = load_conversation(KeptAnswers(talk.kept.path), talk.conversation.name)
    assert again.all_turns == talk.conversation.all_turns
    assert again.here == other.answer_id
    (summary,) = talk.kept.conversations()
    assert (summary.name, summary.title, summary.answers) == (talk.conversation.name, "one", 4)


def test_the_newest_conversation_is_listed_first(talk: Talk) -> None:
    talk.say("a", "1")
    first, talk.conversation = talk.conversation, new_conversation()
    talk.say("b", "1")
    talk.say("c", "2")
    talk.kept.keep([answer("alone", "no conversation")])
    assert [(found.title, found.answers) for found in talk.kept.conversations()] == [("b", 2), ("a", 1)]
    talk.conversation = first
    talk.say("d", "2")
    assert [found.title for found in talk.kept.conversations()] == ["a", "b"]
    assert KeptAnswers(talk.kept.path.with_name("none")).conversations() == []


def test_a_conversation_begins_with_an_answer_given_before(talk: Talk) -> None:
    (opening,) = talk.kept.keep([answer("alone", "an answer", view="tone")])
    talk.conversation = new_conversation(opening)
    talk.say("and then?", "so")
    again = load_conversation(talk.kept, talk.conversation.name)
    assert [(turn.prompt, turn.view) for turn in again.path(again.here)] == [("alone", "tone"), ("and then?", "gated")]
    talk.say("and then?", "so")
    assert [found.answers for found in talk.kept.conversations()] == [3], "the first one, too"


def test_turns_that_are_kept_no_more_are_known_by_their_words(talk: Talk) -> None:
    one, two, three, other = forked(talk)
    talk.kept.forget([one.answer_id, two.answer_id])
    again = load_conversation(talk.kept, talk.conversation.name)
    assert words(again.path(three.answer_id)) == ["one", "two", "three"]
    assert words(again.path(other.answer_id)) == ["one", "other"]
    assert again.branches(two.answer_id) == [two.answer_id, other.answer_id]
    assert again.turn(one.answer_id).view == "" and again.turn(one.answer_id).mix == {}


def test_an_answer_that_could_not_be_kept_is_a_turn_all_the_same(talk: Talk) -> None:
    tree = talk.conversation
    tree.add(answer("one", "1"))
    tree.add(answer("two", "2", **tree.asked_here()))
    assert words(tree.path(tree.here)) == ["one", "two"]
    kept = talk.say("three", "3")
    assert words(load_conversation(talk.kept, tree.name).path(kept.answer_id)) == ["one", "two", "three"]


def test_a_loop_in_a_foreign_database_ends() -> None:
    tree = Conversation("x", [answer("a", "1", answer_id=1, turn_ids=[2]), answer("b", "2", answer_id=2, turn_ids=[1])])
    assert len(tree.path(2)) <= 3


def test_the_json_is_that_of_the_dlm_tool(talk: Talk, tmp_path: Path) -> None:
    talk.say("f\u00fcr?", "ja", reason="stopped")
    path = save_conversation(str(tmp_path / "new" / "talk.json"), talk.conversation.path(talk.conversation.here))
    assert path.read_text() == (
        '[\n  {\n    "role": "user",\n    "content": "f\\u00fcr?"\n  },\n'
        '  {\n    "role": "assistant",\n    "content": "ja [cancelled]"\n  }\n]\n'
    )
    assert json.loads(path.read_text()) == messages_of(talk.conversation.all_turns)


def test_other_forms_and_refusals(talk: Talk, tmp_path: Path) -> None:
    talk.say("one", "# not a heading\nline")
    turns = talk.conversation.all_turns
    text = save_conversation(str(tmp_path / "talk.md"), turns).read_text()
    assert "## 1\n\n> one\n\ngated (knowledge 0.75, tone 0.25):\n\n> # not a heading\n> line\n" in text
    line = json.loads(save_conversation(str(tmp_path / "talk.jsonl"), turns).read_text())
    assert line["mix"] == {"knowledge": 0.75, "tone": 0.25} and line["seed"] == 7
    document = tmp_path / "mine.dlm"
    document.write_text("precious")
    with pytest.raises(UsageError, match="not a saved conversation"):
        save_conversation(str(document), turns)
    assert document.read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save_conversation(str(tmp_path / "file" / "talk.json"), turns)
    with pytest.raises(UsageError, match="there is no user 'nobody-here'"):
        save_conversation("~nobody-here/talk.json", turns)


FORMS = (".json", ".jsonl", ".md")


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_that_went_on_takes_its_own_place(talk: Talk, tmp_path: Path, form: str) -> None:
    talk.say("one", "1")
    path = save_conversation(str(tmp_path / f"talk{form}"), talk.conversation.all_turns)
    talk.say("two", "2")
    longer = save_conversation(str(path), talk.conversation.all_turns).read_text()
    assert "one" in longer and "two" in longer


@pytest.mark.parametrize("form", FORMS)
def test_another_conversation_is_replaced_only_when_asked(talk: Talk, tmp_path: Path, form: str) -> None:
    _, _, three, other = forked(talk)
    tree = talk.conversation
    path = save_conversation(str(tmp_path / f"talk{form}"), tree.path(three.answer_id))
    before = path.read_bytes()
    for turns in (tree.path(other.answer_id), tree.path(three.answer_id)[:2], [answer("else", "?")]):
        with pytest.raises(NameTaken, match=f"such as talk-2{form}$"):
            save_conversation(str(path), turns)
        assert path.read_bytes() == before
    save_conversation(str(path), [answer("else", "?")], replace=True)
    assert b"three" not in path.read_bytes() and b"else" in path.read_bytes()


FOREIGN = (
    b'{"calm": "tone:1"}\n',
    b"[]\n",
    b'[{"role": "user", "content": "x", "name": "y"}]',
    b"# Readme\n",
    b"\xff\x00",
    b"{}\n",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_no_conversation_is_never_replaced(talk: Talk, tmp_path: Path, form: str, foreign: bytes) -> None:
    talk.say("one", "1")
    path = tmp_path / f"notes{form}"
    path.write_bytes(foreign)
    for replace in (False, True):
        with pytest.raises(UsageError, match=f"not a saved conversation; choose another name, such as notes-2{form}"):
            save_conversation(str(path), talk.conversation.all_turns, replace=replace)
    assert path.read_bytes() == foreign
