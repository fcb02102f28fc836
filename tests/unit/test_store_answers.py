"""Kept answers: whole, found by text, adapter and date, bounded, and safe from kills, damage and each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dlm_tui.store import AnswersError, KeptAnswer, KeptAnswers, Piece, Turn, answer_time
from dlm_tui.store.sqlite import problems_of


def answer(prompt: str = "what is the tide", text: str = "high at six", **more: Any) -> KeptAnswer:
    given: dict[str, Any] = {
        "view": "gated", "kind": "gated", "mix": {"knowledge": 0.7, "tone": 0.3},
        "versions": {"knowledge": 2, "tone": 1},
        "base": "corpus", "seed": 7, "temperature": 0.8, "top_p": 0.9, "max_tokens": 128, "reason": "stop",
        "at": "2026-03-04T05:06:07.890Z",
    }  # fmt: skip
    return KeptAnswer(prompt=prompt, text=text, **{**given, **more})


@pytest.fixture
def kept(tmp_path: Path) -> KeptAnswers:
    return KeptAnswers(tmp_path / "state" / "harbour.answers.sqlite")


def texts(found: list[KeptAnswer]) -> list[str]:
    return [one.text for one in found]


def test_an_answer_comes_back_whole_from_another_reader(kept: KeptAnswers) -> None:
    given = answer(
        prompt="tide?\n\u00fcber \U0001f30a",
        system="be brief",
        turns=[Turn(prompt="hello", answer="hi")],
        conversation="c1",
        turn=1,
        weights={"knowledge": 0.7, "tone": 0.3},
        token_ids=[5, 9, 11],
        pieces=[Piece("high ", 0.25), Piece("at six", None)],
        mix={"knowledge": 0.1 + 0.2, "tone@3": -1.5},
        dtype="bfloat16",
        seconds=0.5,
    )
    (back,) = kept.keep([given])
    assert back == msgspec.structs.replace(given, answer_id=1)
    assert KeptAnswers(kept.path).get(1) == back
    assert back.adapters == ["knowledge", "tone"]
    assert [back.version_of(name) for name in ("knowledge", "tone@3", "style")] == [2, 3, None]
    assert kept.get(2) is None


def test_without_a_database_there_are_no_answers_and_none_is_made(kept: KeptAnswers) -> None:
    assert kept.search() == [] and kept.get(1) is None and kept.of_prompt("x") == []
    kept.forget([1])
    assert not kept.path.parent.exists()


def test_found_by_text_adapter_and_date(kept: KeptAnswers) -> None:
    kept.keep(
        [
            answer(text="High at SIX", at="2026-03-04T23:59:59.999Z"),
            answer(text="Stra\u00dfe und Hafen", mix={"style": 1.0, "tone": 0.0}, at="2026-03-05T00:00:00.000Z"),
            answer(prompt="where is the pilot", text="aboard", mix={"knowledge@3": 2.0}, at="2026-03-06T12:00:00.000Z"),
            answer(text="100% _sure_", mix={}, at="2026-03-07T12:00:00.000Z"),
        ]
    )
    assert texts(kept.search("six TIDE")) == ["High at SIX"]  # a word of the answer and one of the prompt
    assert texts(kept.search("STRASSE")) == ["Stra\u00dfe und Hafen"]
    assert texts(kept.search("% _")) == ["100% _sure_"]  # text, not a pattern
    assert texts(kept.search(adapter="knowledge")) == ["aboard", "High at SIX"]
    assert texts(kept.search(adapter="style")) == ["Stra\u00dfe und Hafen"]
    assert texts(kept.search(adapter="tone")) == ["High at SIX"]  # with 0 it took no part
    assert texts(kept.search(since="2026-03-05", until="2026-03-06")) == ["Stra\u00dfe und Hafen"]
    assert texts(kept.search("tide", adapter="knowledge", until="2026-03-05")) == ["High at SIX"]
    assert texts(kept.search(limit=2)) == ["100% _sure_", "aboard"]
    assert texts(kept.search(limit=2, before=3)) == ["Stra\u00dfe und Hafen", "High at SIX"]


def test_a_prompt_is_another_after_other_turns(kept: KeptAnswers) -> None:
    turns = [Turn(prompt="hello", answer="hi")]
    kept.keep([answer(text="alone"), answer(text="later", turns=turns, conversation="c1", turn=1), answer("other")])
    kept.keep([answer(text="again")])
    assert texts(kept.of_prompt("what is the tide")) == ["again", "alone"]
    assert texts(kept.of_prompt("what is the tide", turns)) == ["later"]
    assert texts(kept.of_conversation("c1")) == ["later"]
    assert kept.of_prompt("what is the tide ") == []


def test_the_oldest_go_when_there_is_no_room_but_never_the_new_ones(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "answers.sqlite", limit=20_000)
    for number in range(60):
        kept.keep([answer(text=f"{number} " + "x" * 400)])
    found = kept.search(limit=1000)
    assert 10 < len(found) < 25
    assert [int(one.text.split()[0]) for one in found] == list(range(59, 59 - len(found), -1))
    kept.keep([answer(text="y" * 30_000)])
    assert texts(kept.search()) == ["y" * 30_000]
    kept.keep([answer(text="small")])
    assert texts(kept.search()) == ["small"]
    assert kept.path.stat().st_size < 200_000


def test_forgotten_text_is_not_left_in_the_file(kept: KeptAnswers) -> None:
    one, two = kept.keep([answer(text="a secret of the harbour"), answer(text="stays")])
    assert b"secret of the harbour" in kept.path.read_bytes()
    kept.forget([one.answer_id])
    assert kept.search() == [two]
    assert b"secret of the harbour" not in kept.path.read_bytes()
    assert kept.search(adapter="knowledge") == [two]


def test_a_long_conversation_is_forgotten_to_the_last_answer(kept: KeptAnswers) -> None:
    long = [answer(text=f"secret {number}", conversation="long") for number in range(1005)]
    other = [answer(text="of another", conversation="other"), answer(text="of none")]
    kept.keep([*long, *other])
    kept.forget_conversation("long")
    assert texts(kept.search(limit=2000)) == ["of none", "of another"]
    assert b"secret" not in kept.path.read_bytes()


@pytest.mark.parametrize("spoilt", [b"SQLite format 3\0" + b"\xff" * 5000, b"no database at all" * 100])
def test_a_damaged_database_is_set_aside_by_the_next_answer(
    kept: KeptAnswers, spoilt: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(spoilt)
    assert kept.search() == [] and "is damaged" in caplog.text
    assert kept.path.read_bytes() == spoilt  # a reader moves nothing
    kept.keep([answer()])
    assert len(kept.search()) == 1
    (aside,) = kept.path.parent.glob("harbour.answers.damaged-*.sqlite")
    assert aside.read_bytes() == spoilt


def test_a_row_that_cannot_be_read_hides_no_other(kept: KeptAnswers) -> None:
    import sqlite3

    kept.keep([answer(text="one"), answer(text="two")])
    with sqlite3.connect(kept.path) as connection:
        connection.execute("UPDATE answers SET record = '{\"prompt\": 3}' WHERE answer_id = 1")
    connection.close()
    assert texts(kept.search()) == ["two"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(kept: KeptAnswers) -> None:
    kept.path.parent.mkdir(parents=True)
    kept.path.parent.chmod(0o500)
    try:
        with pytest.raises(AnswersError, match=r"answers\.sqlite cannot be written"):
            kept.keep([answer()])
    finally:
        kept.path.parent.chmod(0o700)


def test_something_in_the_way_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(AnswersError, match=r"answers\.sqlite cannot be written"):
        KeptAnswers(tmp_path / "state" / "harbour.answers.sqlite").keep([answer()])


def test_threads_share_it(kept: KeptAnswers) -> None:
    def work(name: str) -> None:
        for number in range(10):
            kept.keep([answer(text=f"{name}{number}")])
            assert kept.search(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept.search(limit=100)) == 30


KEEPER = """
import sys
from pathlib import Path
import msgspec
from dlm_tui.store import KeptAnswer, KeptAnswers
kept = KeptAnswers(Path(sys.argv[1]))
template = msgspec.json.decode(sys.argv[2], type=KeptAnswer)
for number in range(int(sys.argv[4])):
    done = kept.keep([msgspec.structs.replace(template, text=f"{sys.argv[3]} {number}")])
    print(done[0].answer_id, flush=True)
"""


def keeper(kept: KeptAnswers, name: str, count: int) -> subprocess.Popen[str]:
    template = msgspec.json.encode(answer()).decode()
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(kept.path), template, name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_lose_nothing(kept: KeptAnswers) -> None:
    children = [keeper(kept, name, 25) for name in ("left", "right")]
    ids = [int(line) for child in children for line in child.communicate(timeout=240)[0].split()]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(ids) == list(range(1, 51))
    assert sorted(texts(kept.search(limit=100))) == sorted(
        f"{name} {n}" for name in ("left", "right") for n in range(25)
    )


def test_a_killed_writer_loses_nothing_that_it_kept(kept: KeptAnswers) -> None:
    for name in ("first", "second", "third"):
        child = keeper(kept, name, 10_000)
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(5)]
        child.send_signal(signal.SIGKILL)
        seen += child.stdout.readlines()
        child.wait()
        found = kept.search(name, limit=10_000)
        complete = [line for line in seen if line.endswith("\n")]
        assert len(found) in (len(complete), len(complete) + 1)  # the last may be kept and not said
        assert [one.text for one in reversed(found)] == [f"{name} {n}" for n in range(len(found))]
    assert problems_of(kept.path) == []
    kept.keep([answer(text="after all that")])
    assert texts(kept.search(limit=1)) == ["after all that"]


def test_the_time_of_an_answer_sorts_as_text() -> None:
    assert len(answer_time()) == len("2026-03-04T05:06:07.890Z") and answer_time() > "2026"
