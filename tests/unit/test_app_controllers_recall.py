"""Answers that stay, without a screen: kept, asked again, found after a restart, brought back, told apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dlm_tui.app.config import SamplingSettings
from dlm_tui.engine.protocol import Generate
from tests.adapter_versions import finished_training
from tests.tui.recorded import World
from tests.unit.app_controllers import Bench, running


async def answered(bench: Bench, prompt: str = "what is") -> None:
    await bench.type(prompt)
    bench.controllers.generation.answer()
    await bench.ui.settled()


async def looked_up(bench: Bench, prompt: str) -> None:
    await bench.type(prompt)
    bench.controllers.recall.typed()
    await bench.ui.settled()


async def test_every_answer_is_kept_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.controllers.sampling.use(SamplingSettings(temperature=0.7, top_p=0.9, max_tokens=64, seed=5, samples=3))
        bench.context.state.heat = True
        await answered(bench)
        kept = bench.context.archive.search()[::-1]
        assert [one.text for one in kept] == ["".join(f"gated {s} word{n} " for n in range(6)) for s in (5, 6, 7)]
        assert [(one.seed, one.sample) for one in kept] == [(5, 0), (6, 1), (7, 2)]
        one = kept[0]
        weights = bench.engines[0].weights("what is")
        assert (one.prompt, one.view, one.kind, one.reason, one.base) == ("what is", "gated", "gated", "stop", "pocket")
        assert one.mix == weights == one.weights and one.versions == dict.fromkeys(weights, 1)
        assert (one.temperature, one.top_p, one.max_tokens) == (0.7, 0.9, 64)
        assert one.token_ids == list(range(6)) and [piece.heat for piece in one.pieces] == [
            pytest.approx(0.8 * n) for n in range(6)
        ]
        assert list(bench.answers.cards) == ["gated", "gated #2", "gated #3"]
        (request,) = bench.requests(Generate)
        assert (request.samples, request.seed) == (3, 5)


async def test_a_stopped_answer_is_kept_with_its_mix_and_as_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.world.hold.clear()
        bench.controllers.generation.answer()
        while not bench.requests(Generate):
            await asyncio.sleep(0)
        bench.world.hold.set()
        while not bench.answers.cards or "word1" not in bench.answers.cards["gated"].text:
            await asyncio.sleep(0)
        await bench.controllers.generation.stop()
        await bench.ui.settled()
        (one,) = bench.context.archive.search()
        assert one.reason == "stopped" and one.text == bench.answers.cards["gated"].text
        assert one.mix == bench.engines[0].weights("what is")


async def test_leaving_in_the_middle_keeps_what_was_written(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.world.words = 10_000
        bench.controllers.generation.answer()
        while not bench.answers.cards or "word1" not in bench.answers.cards["gated"].text:
            await asyncio.sleep(0)
        bench.controllers.generation.keep_now()
        (one,) = bench.context.archive.search()
        assert one.reason == "stopped" and one.text.startswith("gated word0 ")


async def test_a_prompt_finds_its_answers_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await answered(bench, "what is")
        await answered(bench, "please")
        bench.controllers.generation.compare()
        await bench.ui.settled()
        bench.context.saver.now()
    async with running(tmp_path) as bench:
        await bench.ui.settled()
        assert list(bench.answers.cards) == ["base", "gated", "knowledge", "tone", "style"]
        assert bench.answers.cards["tone"].text == "".join(f"tone word{n} " for n in range(6))
        assert not bench.requests(Generate) and not any(card.past for card in bench.answers.cards.values())
        bench.controllers.recall.step(1)
        await bench.ui.settled()
        assert list(bench.answers.cards) == ["gated"]
        bench.controllers.recall.step(1)
        await bench.ui.settled()
        assert bench.ui.said[-1] == "warning: There are no earlier answers to this prompt."
        bench.controllers.recall.step(-1)
        await bench.ui.settled()
        assert len(bench.answers.cards) == 5
        await looked_up(bench, "what i")
        assert [card.past for card in bench.answers.cards.values()] == ["another prompt"] * 5
        await looked_up(bench, "what is")
        assert list(bench.answers.cards) == ["gated"] and bench.answers.cards["gated"].past == ""


async def test_answers_of_earlier_adapters_say_so(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.controllers.generation.compare()
        await bench.ui.settled()
        link = bench.context.link
        assert link.state.opened is not None
        link.state.opened.versions["tone"] = 2
        bench.controllers.shown.mark()
        past = {name: card.past for name, card in bench.answers.cards.items()}
        late = "earlier adapters"
        assert past == {"base": "", "gated": late, "knowledge": "", "tone": late, "style": ""}
        bench.prompt.text = "else"
        bench.controllers.shown.mark()
        assert bench.answers.cards["tone"].past == f"another prompt, {late}"
        link.state.opened.base = "other"
        bench.controllers.shown.mark()
        assert bench.answers.cards["base"].past == "another prompt, another base"


async def test_again_means_what_is_shown_with_seeds_that_were_not_used(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        generation = bench.controllers.generation
        generation.reroll()
        assert bench.ui.said == ["warning: There is no prompt to answer yet."]
        await bench.type("what is")
        generation.compare()
        await bench.ui.settled()
        generation.reroll()
        await bench.ui.settled()
        first, second = bench.requests(Generate)
        assert second.views == first.views and (second.seed, second.temperature) == (1, 0.7)
        assert "At temperature 0 every seed gives the same answer" in bench.ui.said[-1]
        bench.controllers.sampling.use(SamplingSettings(temperature=1.0, seed=4, samples=3))
        generation.reroll()
        await bench.ui.settled()
        assert (bench.requests(Generate)[-1].seed, bench.requests(Generate)[-1].temperature) == (7, 1.0)
        assert bench.prompt.title == ("temperature 1", "seeds 7 to 9")
        await bench.type("something else")
        generation.reroll()  # nothing of this prompt is shown: the mix on the desk
        await bench.ui.settled()
        assert [view.name for view in bench.requests(Generate)[-1].views] == ["gated"]
        for wanted in (1.3, 0.0, 0.4):
            generation.other_temperature()
            await bench.ui.settled()
            assert bench.requests(Generate)[-1].temperature == wanted
        bench.context.saver.now()
    async with running(tmp_path) as bench:
        assert bench.controllers.sampling.settings == SamplingSettings(temperature=0.4, seed=10, samples=3)


async def test_an_answer_is_brought_back_whole_and_answers_the_same_again(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.controllers.sampling.use(SamplingSettings(temperature=0.9, top_p=0.8, max_tokens=32, seed=11))
        await answered(bench)
        (old,) = bench.context.archive.search()
        bench.controllers.sampling.use(SamplingSettings())
        await answered(bench, "please")
        bench.controllers.mixing.move_fader("style", 2.0)
        before = bench.context.state.mix.faders
        bench.controllers.recall.bring_back(old)
        await bench.type("what is")
        assert bench.answers.cards["gated"].text == old.text and bench.answers.cards["gated"].past == ""
        bench.controllers.generation.answer()
        await bench.ui.settled()
        request = bench.requests(Generate)[-1]
        assert request.views[0].mix == old.mix, "to the last digit"
        assert (request.seed, request.temperature, request.top_p, request.max_tokens) == (11, 0.9, 0.8, 32)
        assert request.prompt == "what is"
        bench.controllers.mixing.undo()
        assert bench.context.state.mix.faders == before


async def test_an_answer_of_earlier_adapters_is_brought_back_under_these(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        names = bench.context.names
        finished_training(bench.context.store, *names, run=1)
        await bench.type("what is")
        bench.controllers.mixing.move_fader("tone", 0.5)
        bench.controllers.mixing.move_fader("style", 0.0)
        bench.controllers.generation.answer()
        await bench.ui.settled()
        (old,) = bench.context.archive.search()
        assert bench.context.link.state.opened is not None
        bench.context.link.state.opened.versions.update({"tone": 2, "style": 2})
        bench.controllers.recall.bring_back(old)
        mix = bench.controllers.mixing.view().mix
        assert mix is not None
        assert {name: value for name, value in mix.items() if value} == {
            "knowledge": old.mix["knowledge"],
            "tone@1": 0.5,
        }
        assert bench.context.state.desk_versions == ["tone@1"]
        bench.controllers.mixing.undo()
        assert bench.context.state.desk_versions == []
        gone = {"knowledge": 7, "tone": 1}
        assert bench.controllers.mixing.bring_back({"knowledge": 1.0, "tone": 1.0, "lost": 1.0}, gone, "custom") == [
            "knowledge as of then is gone, so it is left out.",
            "lost as of then is gone, so it is left out.",
        ]


async def test_every_change_of_the_desk_can_be_taken_back(tmp_path: Path) -> None:
    async with running(tmp_path, world=World()) as bench:
        await bench.type("what is")
        mixing, seen = bench.controllers.mixing, []

        def now() -> tuple[str, dict[str, float]]:
            return bench.context.state.mix.title(), mixing.coefficients()

        changes = [
            lambda: mixing.move_fader("tone", 1.5),
            lambda: mixing.move_fader("tone", 1.6),
            lambda: mixing.switch("style", "mute"),
            lambda: mixing.switch("knowledge", "pin"),
            lambda: mixing.next_mode(),
            lambda: mixing.switch("tone", "solo"),
            lambda: mixing.reset(),
            lambda: mixing.set_mode("uniform"),
        ]
        for change in changes:
            seen.append(now())
            change()
            assert now() != seen[-1]
        mixing.set_mode("uniform")  # no change
        for before in reversed(seen):
            mixing.undo()
            assert now() == before
        mixing.undo()
        assert bench.ui.said[-1] == "warning: Nothing on the desk was changed since it was opened."
        mixing.move_fader("tone", 0.5)
        for value in (0.6, 0.7, 0.8):
            mixing.move_fader("tone", value, drags=True)
        mixing.undo()
        assert now() == seen[0], "a drag is one change"


async def test_a_disk_that_takes_no_answers_is_said_once(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.context.archive.path.mkdir(parents=True)
        await answered(bench)
        await answered(bench, "please")
        said = [words for words in bench.ui.said if words.startswith("error: Answers are not kept")]
        assert len(said) == 1 and bench.answers.cards["gated"].text.endswith("word5 ")
