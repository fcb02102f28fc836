"""Conversations without a screen: where a follow-up belongs, and what is kept of it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec

from dlm_tui.conversation import load_conversation
from dlm_tui.engine.protocol import Generate
from dlm_tui.store import Turn
from tests.unit.app_controllers import Bench, running


async def follow(bench: Bench, text: str) -> None:
    await bench.type(text)
    bench.controllers.conversing.follow_up()
    await bench.ui.settled()


def asked(bench: Bench) -> list[Generate]:
    return bench.requests(Generate)


async def being_answered(bench: Bench, text: str) -> None:
    """Ask this, and wait until a good deal of an answer without end is written."""
    bench.world.words = 1_000_000
    await bench.type(text)
    bench.talk.calls["add"] = []
    bench.controllers.conversing.follow_up()
    while len(bench.talk.calls["add"]) < 12:
        await asyncio.sleep(0)
    bench.world.words = 6


async def test_turns_are_kept_with_their_place(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        for text in ("one", "two", "three"):
            await follow(bench, text)
        kept = bench.context.archive.of_conversation(bench.context.state.talk.name or "")[::-1]
        assert [(turn.prompt, turn.turn, len(turn.turns)) for turn in kept] == [
            ("one", 0, 0), ("two", 1, 1), ("three", 2, 2),
        ]  # fmt: skip
        assert kept[2].turn_ids == [kept[0].answer_id, kept[1].answer_id]
        assert [turn.turn for turn in bench.talk.turns] == [turn.answer_id for turn in kept]
        assert bench.prompt.text == ""


async def test_what_is_in_front_is_followed(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("alone")
        bench.controllers.generation.answer()
        await bench.ui.settled()
        await follow(bench, "behind it")
        assert asked(bench)[-1].before[0].prompt == "alone"
        first = bench.context.state.talk.name
        await bench.type("another")
        bench.controllers.generation.answer()
        await bench.ui.settled()
        assert bench.pages.page == "answers"
        await follow(bench, "behind that")
        assert [turn.prompt for turn in asked(bench)[-1].before] == ["another"]
        assert bench.context.state.talk.name != first
        await follow(bench, "and on")
        assert [turn.prompt for turn in asked(bench)[-1].before] == ["another", "behind that"]


async def test_an_answer_of_a_conversation_goes_on_there(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await follow(bench, "one")
        await follow(bench, "two")
        one, two = bench.controllers.conversing.turns
        bench.controllers.conversing.at_turn("new", two.answer_id)
        await bench.ui.settled()
        assert bench.controllers.conversing.turns == []
        await bench.controllers.shown.show([one])
        bench.pages.page = "answers"
        await follow(bench, "otherwise")
        talk = bench.controllers.conversing.conversation
        assert talk is not None and talk.name == two.conversation
        assert talk.branches(two.answer_id) == [two.answer_id, talk.here]
        assert asked(bench)[-1].before == [Turn(prompt="one", answer=one.text)]


async def test_a_document_that_was_closed_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await follow(bench, "one")
        await follow(bench, "two")
        bench.controllers.conversing.at_turn("fork", bench.talk.marked)
        await bench.ui.settled()
        bench.context.saver.now()
    async with running(tmp_path) as bench:
        await bench.ui.settled()
        assert [turn.prompt for turn in bench.controllers.conversing.turns] == ["one"], "where it stood"
        assert len(bench.controllers.conversing.conversation or ()) == 2


async def test_a_conversation_that_cannot_be_kept_goes_on_in_memory(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        folder = bench.context.archive.path.parent
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text("a file, where the folder of the answers was")
        await follow(bench, "one")
        await follow(bench, "two")
        assert [turn.prompt for turn in bench.controllers.conversing.turns] == ["one", "two"]
        said = [text for text in bench.ui.said if "cannot be written" in text]
        assert len(said) == 1


async def test_leaving_keeps_what_was_written_of_a_turn(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await follow(bench, "one")
        await being_answered(bench, "two")
        bench.controllers.conversing.keep_now()
        kept = bench.context.archive.of_conversation(bench.context.state.talk.name or "")
        assert kept[0].prompt == "two" and kept[0].text.startswith("gated word0 gated word1")
        assert (kept[0].reason, kept[0].turn_ids) == ("stopped", [kept[1].answer_id])
        bench.ui.cancel("generate")
        await bench.ui.settled()
        assert len(bench.context.archive.of_conversation(kept[0].conversation or "")) == 2, "once"


async def test_a_question_during_an_answer_follows_what_was_written_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await follow(bench, "one")
        await being_answered(bench, "two")
        bench.prompt.text = "three"
        bench.controllers.conversing.follow_up()
        await bench.ui.settled()
        archive, name = bench.context.archive, bench.context.state.talk.name or ""
        kept = archive.of_conversation(name)[::-1]
        assert [(turn.prompt, turn.turn) for turn in kept] == [("one", 0), ("two", 1), ("three", 2)]
        assert kept[2].turn_ids == [kept[0].answer_id, kept[1].answer_id]
        assert asked(bench)[-1].before == kept[2].turns
        assert load_conversation(archive, name).path(kept[2].answer_id) == kept
        assert [(turn.turn, turn.head.branches) for turn in bench.talk.turns] == [(one.answer_id, 1) for one in kept]


async def test_what_is_typed_behind_a_question_is_another_one(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("one")
        bench.controllers.conversing.follow_up()
        assert bench.prompt.text == ""
        bench.prompt.text = "typed ahead"
        await bench.ui.settled()
        assert [request.prompt for request in asked(bench)] == ["one"] and bench.prompt.text == "typed ahead"


async def test_a_question_is_asked_as_desk_and_sampling_were_when_it_was_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        conversing, mixing, sampling = (
            getattr(bench.controllers, name) for name in ("conversing", "mixing", "sampling")
        )
        await being_answered(bench, "one")
        mixing.move_fader("knowledge", 1.0)
        bench.prompt.text = "two"
        conversing.follow_up()
        mixing.reset()
        sampling.next_temperature()
        await bench.ui.settled()
        (view,) = asked(bench)[-1].views
        assert (asked(bench)[-1].prompt, view.mix["knowledge"], asked(bench)[-1].temperature) == ("two", 1.0, 0.0)


async def test_a_question_that_gave_way_does_not_come_back_into_the_prompt(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("one")
        bench.world.hold.clear()
        bench.controllers.conversing.follow_up()
        while not asked(bench):
            await asyncio.sleep(0)
        bench.prompt.text = "two"
        bench.controllers.conversing.follow_up()
        bench.world.hold.set()
        await bench.ui.settled()
        assert bench.prompt.text == "" and [turn.prompt for turn in bench.talk.turns] == ["two"]


async def test_a_follow_up_of_an_answer_that_is_not_kept_yet_begins_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("alone")
        bench.controllers.generation.answer()
        while (ended := bench.controllers.shown.current) is None:
            await asyncio.sleep(0)
        assert ended.answer_id == 0
        bench.prompt.text = "behind it"
        bench.controllers.conversing.follow_up()
        await bench.ui.settled()
        archive, name = bench.context.archive, bench.context.state.talk.name or ""
        (alone,), (behind,) = archive.of_prompt("alone"), archive.of_conversation(name)
        assert behind.turn_ids == [alone.answer_id]
        assert load_conversation(archive, name).path(behind.answer_id) == [alone, behind]


async def test_a_long_conversation_is_forgotten_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await follow(bench, "one")
        archive = bench.context.archive
        (first,) = archive.search()
        archive.keep([msgspec.structs.replace(first, prompt=f"another {number}") for number in range(1004)])
        bench.controllers.conversations.open()
        await bench.ui.settled()
        (summary,) = archive.conversations()
        bench.ui.dialogs[-1].on_forgotten(summary)
        await bench.ui.settled()
        assert archive.search() == [] and bench.talk.turns == []
