"""How much of a conversation's past is read: as much as fits, never the system prompt less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dlm_tui.model.chat import ChatRenderer, chat_messages, newest_question
from dlm_tui.model.chat_history import fit_chat
from dlm_tui.model.views import BASE
from dlm_tui.serving import backend
from dlm_tui.store import Turn
from tests.tiny_models import TEMPLATE, tiny_tokenizer

TURNS = [Turn(prompt=f"question {n}", answer=f"answer {n} " * n) for n in range(1, 9)]


@dataclass
class Reader:
    """A base that counts one token for every word."""

    context_length: int
    renderer: ChatRenderer

    def encode_rendered(self, text: str) -> list[int]:
        return [hash(word) for word in text.split()]


def reader(context: int, template: str = TEMPLATE) -> Reader:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Reader(context, ChatRenderer(tokenizer, "test"))


def rendered(base: Reader, turns: Sequence[Turn]) -> list[int]:
    return base.encode_rendered(base.renderer.text(chat_messages(turns, "and now?", "Be brief."), generate=True))


@pytest.mark.parametrize("context", range(20, 160, 7))
def test_the_fewest_turns_are_left_out_from_the_front(context: int) -> None:
    base = reader(context)
    found = fit_chat(base, TURNS, "and now?", "Be brief.", 10)
    sizes = [len(rendered(base, TURNS[dropped:])) for dropped in range(len(TURNS) + 1)]
    fits = [dropped for dropped, size in enumerate(sizes) if size + min(10, context // 2) <= context]
    assert found.dropped == (fits[0] if fits else len(TURNS))
    assert found.ids == rendered(base, TURNS[found.dropped :])


def test_a_question_that_is_too_long_by_itself_stays_whole() -> None:
    base = reader(8)
    assert fit_chat(base, TURNS, "and now?", "Be brief.", 100).ids == rendered(base, [])
    assert fit_chat(base, [], "and now?", "Be brief.", 100).dropped == 0


def test_every_turn_stands_where_the_template_has_it() -> None:
    base = reader(10_000)
    text = base.renderer.text(chat_messages(TURNS[:2], "and now?", "Be brief."), generate=True)
    parts = ["Be brief.", "question 1", "answer 1", "question 2", "answer 2 answer 2", "and now?"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert fit_chat(base, TURNS[:2], "and now?", "Be brief.", 1).ids == base.encode_rendered(text)


def test_screen_and_server_ask_the_gate_about_the_newest_message_alone() -> None:
    messages = chat_messages(TURNS, "and now?", "Be brief.")
    assert newest_question(messages) == "and now?"
    turns = tuple(backend.Turn(message["role"], message["content"]) for message in messages)
    assert backend.Ask(client="c", view=BASE, messages=turns).question == "and now?"
    assert newest_question([{"role": "system", "content": "x"}]) == ""


def test_an_interrupted_render_is_not_answered_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlm_tui.model.chat import TemplateWorker

    worker = TemplateWorker()
    one, two = ("{{ 'one' }}", "{{ 'two' }}")
    assert worker.render(one, [], generate=False, variables={}) == "one"

    def interrupted(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.render(one, [], generate=False, variables={})
    assert worker.render(two, [], generate=False, variables={}) == "two"
    worker.close()
