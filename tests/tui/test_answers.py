"""Answers that stay, on the real screen: the pane, the history, the comparison, finding, sampling, named mixes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from syrupy.assertion import SnapshotAssertion
from textual._xterm_parser import XTermParser
from textual.widgets import Input

from dlm_tui.app.config import SamplingSettings
from dlm_tui.app.keys import BY_ID
from dlm_tui.app.screens.answer_diff import AnswerDiffScreen
from dlm_tui.app.screens.answers import AnswersScreen
from dlm_tui.app.screens.named_mixes import NamedMixesScreen
from dlm_tui.app.screens.sampling import SamplingScreen
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.document.replacing import beside_lock
from dlm_tui.engine.protocol import ExportJob, Generate
from dlm_tui.store import KeptAnswer, KeptAnswers, Piece
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from tests.tui import mouse
from tests.tui.actions import answered, compared, kept, showing
from tests.tui.conftest import Bench, Opener

SIZES = [(60, 18), (80, 24), (120, 40)]
by_size = pytest.mark.parametrize("size", SIZES, ids=[f"{w}x{h}" for w, h in SIZES])


def told(bench: Bench, widget: str) -> str:
    return str(bench.app.screen.query_one(widget, LiteralStatic).text)


def answer(text: str, view: str = "tone", **more: object) -> KeptAnswer:
    plain = KeptAnswer(
        prompt="what is the tide",
        text=text,
        view=view,
        kind="solo",
        mix={view: 1.0},
        versions={view: 1},
        base="pocket",
        seed=0,
        temperature=0.0,
        top_p=1.0,
        max_tokens=128,
        reason="stop",
        at="2026-03-01T10:00:00.000Z",
        pieces=[Piece(word + " ", 4.0 if word == "high" else None) for word in text.split(" ")],
    )
    return msgspec.structs.replace(plain, **more)


async def sampled_thrice(bench: Bench) -> None:
    """Three samples of one view, and an older answer beside them."""
    bench.context.archive.keep([answer("high at six, low at noon")])
    bench.controllers.sampling.use(SamplingSettings(temperature=0.7, seed=3, samples=3))
    bench.screen.prompt_pane.set_text("what is the tide at the wharf")
    await bench.idle()
    bench.screen.action_answer()
    await bench.until(lambda: len(kept(bench)) == 4, "kept")
    bench.controllers.recall.open()
    await bench.until(lambda: showing(bench, AnswersScreen) and "Found: 4" in bench.text, "found")
    bench.app.screen.query_one(PickList).highlighted = 3
    await bench.press("f9", "escape")
    await bench.until(lambda: len(bench.screen.answers.cards) == 4, "beside")


@by_size
async def test_samples_side_by_side_and_an_answer_of_another_prompt(
    workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]
) -> None:
    async with workbench(size=size) as bench:
        await sampled_thrice(bench)
        bench.panes.focus_pane("answers")
        shown = await bench.settled()
        assert shown == screens
        cards = bench.screen.answers.cards
        assert [card.has_class("-past") for card in cards] == [False, False, False, True]
        bench.screen.answers.action_next_answer(-1)
        await bench.until(lambda: "\u2039another prompt\u203a" in bench.text, "said in words, too")


@by_size
async def test_the_history_of_answers(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await sampled_thrice(bench)
        await bench.press("alt+h")
        await bench.until(lambda: "Found: 4" in bench.text, "found")
        assert await bench.settled() == screens


async def test_the_history_finds_by_text_adapter_and_date(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        bench.context.archive.keep(
            [
                answer("high at six"),
                answer("low", view="style", at="2026-03-02T10:00:00.000Z"),
                answer("gone", view="lost", at="2026-04-01T10:00:00.000Z"),
            ]
        )
        await bench.press("alt+h")
        dialog = bench.app.screen
        assert isinstance(dialog, AnswersScreen)
        await bench.until(lambda: "Found: 3" in bench.text, "all")

        async def look(found: str, **fields: str) -> None:
            for name in ("text", "adapter", "since", "until"):
                dialog.query_one(f"#answers-{name}", Input).value = fields.get(name, "")
            await bench.until(lambda: told(bench, "#answers-note") == found, found)

        await look("Found: 1.", text="SIX high")
        assert "high at six" in told(bench, "#answers-preview") and "greedy, seed 0, pocket" in bench.text
        await look("No answer fits.", text="nothing")
        assert told(bench, "#answers-preview") == ""
        await look("Found: 1.", adapter="st")  # a beginning that one adapter has
        await look("Found: 1.", adapter="lost")  # no longer declared
        await look("Found: 2.", until="2026-03")
        await look("Found: 1.", since="2026-03-02", until="2026-03-02")
        await look("Found: 3.", since="2026", until="2026")
        await look("'soon' is no date such as 2026-11-30, 2026-11 or 2026.", since="soon")
        await look("Found: 3.")
        await bench.press("down", "f4")
        await bench.until(lambda: told(bench, "#answers-note") == "Found: 2.", "forgotten")
        assert [one.text for one in kept(bench)] == ["gone", "high at six"]


async def test_an_answer_is_brought_back_by_keys_after_a_restart(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.controllers.sampling.use(SamplingSettings(temperature=0.7, seed=9))
        await bench.type("what is the tide")
        await bench.idle()
        await bench.press("ctrl+g")
        await bench.until(lambda: len(kept(bench)) == 1, "kept")
        await bench.press("ctrl+n")
        await bench.idle()
        bench.controllers.sampling.use(SamplingSettings())
        mix = kept(bench)[0].mix
    async with workbench() as bench:
        assert not bench.screen.answers.cards
        await bench.press("alt+h")
        await bench.until(lambda: "Found: 1" in bench.text, "found")
        await bench.press("enter")
        await bench.until(lambda: bench.screen.prompt_pane.text == "what is the tide", "the prompt is back")
        await bench.idle()
        assert "gated 9 word5" in bench.screen.answers.cards[0].text
        await bench.press("ctrl+g")
        await bench.until(lambda: len(kept(bench)) == 2, "asked again")
        request = next(one for one in reversed(bench.world.requests) if isinstance(one, Generate))
        assert (request.seed, request.temperature, request.views[0].mix) == (9, 0.7, mix)
        assert kept(bench)[0].text.replace("custom", "gated") == kept(bench)[1].text


async def test_the_prompts_answers_are_there_after_a_restart(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is the tide")
        await bench.idle()
        await compared(bench)
    async with workbench(wait=False) as bench:
        await bench.until(lambda: len(bench.screen.answers.cards) == 5, "shown before anything is asked")
        assert not any(isinstance(request, Generate) for request in bench.world.requests)
        assert "tone word5" in bench.screen.answers.cards[3].text


@by_size
async def test_two_answers_by_words(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        first, second = answer("high at six, low at noon"), answer("high at seven, low at noon, then high", "style")
        bench.context.archive.keep([second, first])
        bench.screen.prompt_pane.set_text("what is the tide")
        await bench.until(lambda: len(bench.screen.answers.cards) == 2, "kept answers are shown")
        bench.screen.answers.cards[1].focus()
        await bench.press("d")
        await bench.until(lambda: showing(bench, AnswerDiffScreen) and "Words:" in bench.text, "compared")
        assert await bench.settled() == screens
        assert told(bench, "#diff-text") == "high at [-six,-] {+seven,+} low at [-noon-] {+noon, then high+}"
        plain = styles(bench, "high")
        await bench.press("space")
        assert "Heat of the first." in told(bench, "#diff-note") and styles(bench, "high") != plain
        await bench.press("space", "space")
        assert styles(bench, "high") == plain


def styles(bench: Bench, word: str) -> set[str]:
    """The styles in which a word of the comparison is drawn."""
    content = bench.app.screen.query_one("#diff-text", LiteralStatic).content
    plain = content.plain
    return {str(span.style) for span in content.spans if plain[span.start : span.end].strip() == word}


async def test_heat_that_was_not_measured_is_said(workbench: Opener) -> None:
    async with workbench() as bench:
        await answered(bench)
        bench.screen.action_answer()
        await bench.until(lambda: len(kept(bench)) == 2, "twice")
        await bench.idle()
        bench.panes.focus_pane("answers")
        await bench.press("d")
        await bench.until(lambda: showing(bench, AnswerDiffScreen) and "Words: 12 same" in bench.text, "compared")
        await bench.press("space")
        assert "The heat of the first was not measured." in told(bench, "#diff-note")


async def test_nothing_to_compare_is_said(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.screen.action_compare_words()
        await bench.quiet()
        assert "no finished answer to compare" in bench.toasts[-1]
        await answered(bench)
        bench.screen.action_compare_words()
        await bench.idle()
        assert "no other answer to compare" in bench.toasts[-1]


@by_size
async def test_text_is_found_in_the_answers(
    workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]
) -> None:
    async with workbench(size=size) as bench:
        await compared(bench)
        bench.panes.focus_pane("answers")
        await bench.press("f")
        await bench.type("tone WORD3".lower())
        assert told(bench, "#find-count") == "1 of 1"
        assert await bench.settled() == screens
        for _ in range(6):
            await bench.press("backspace")
        assert told(bench, "#find-count") == "1 of 6"
        await bench.press("enter", "down", "up", "up", "up")
        assert told(bench, "#find-count") == "6 of 6"
        await bench.press("escape")
        assert not bench.screen.answers.finding
        assert bench.app.focused is bench.screen.answers.cards[3], "where the place was"


async def test_finding_goes_on_while_answers_come_and_by_the_mouse(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await answered(bench)
        bench.screen.answers.columns = False
        bench.panes.focus_pane("answers")
        await bench.press("f")
        await bench.type("word1")
        assert told(bench, "#find-count") == "1 of 1"
        bench.screen.action_compare()
        await bench.until(lambda: told(bench, "#find-count") == "1 of 5", "one in each answer")
        await mouse.press_button(bench, "find_step(1)")
        assert told(bench, "#find-count") == "2 of 5"
        assert [card.display for card in bench.screen.answers.cards].index(True) == 1, "its answer is brought forward"
        await mouse.press_button(bench, "find_step(-1)")
        await mouse.press_button(bench, "find_end")
        assert not bench.screen.answers.finding


@by_size
async def test_sampling_is_changed_where_the_answer_is_asked_for(
    workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]
) -> None:
    async with workbench(size=size) as bench:
        bench.screen.prompt_pane.set_text("what is the tide")
        await bench.idle()
        await bench.press("alt+o")
        assert await bench.settled() == screens

        async def fill(**values: str) -> None:
            for name, value in values.items():
                bench.app.screen.query_one(f"#sampling-{name}", Input).value = value
            await bench.press("ctrl+g")

        for wrong, why in (
            ({"temperature": "warm"}, "Temperature: 'warm' is not a number"),
            ({"temperature": "nan"}, "Temperature is from 0 to 10, not nan"),
            ({"temperature": "0.5", "top_p": "0"}, "Top-p is above 0, and at most 1, not 0.0"),
            ({"top_p": "0.9", "max_tokens": "1.5"}, "Tokens: '1.5' is not a whole number"),
            ({"max_tokens": "64", "samples": "99"}, "Samples is from 1 to 16, not 99"),
            ({"samples": "2", "seed": "2147483648"}, "Seed is from 0 to 2147483647, not 2147483648"),
        ):
            await fill(**wrong)
            assert showing(bench, SamplingScreen) and told(bench, "#sampling-problem").startswith(why)
        await fill(samples="2", seed="40")
        await bench.until(lambda: len(kept(bench)) == 2, "asked with them")
        request = next(one for one in reversed(bench.world.requests) if isinstance(one, Generate))
        assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 64)
        assert (request.samples, request.seed) == (2, 40)
        assert [card.text[:13] for card in bench.screen.answers.cards] == ["gated 40 word", "gated 41 word"]
        await bench.idle()
        assert "temperature 0.5" in bench.text


@by_size
async def test_named_mixes(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await bench.type("what is the tide")
        await bench.idle()
        bench.controllers.mixing.move_fader("tone", 1.25)
        await bench.leave_prompt()
        await bench.press("n")
        await bench.type("tone")
        await bench.press("enter")
        assert "tone is an adapter of the document" in told(bench, "#mix-note")
        await bench.press("backspace", "backspace", "backspace", "backspace")
        await bench.type("loud")
        await bench.press("enter")
        await bench.idle()
        assert "--mix loud" in told(bench, "#mix-note")
        mix = NamedMixes(bench.path).load()["loud"]
        assert mix == bench.controllers.mixing.coefficients() and mix["tone"] == 1.25
        NamedMixes(bench.path).save({"loud": mix, "quiet": {"style": -0.5}})
        await bench.press("escape")
        bench.controllers.mixing.reset()
        await bench.press("n")
        assert await bench.settled() == screens
        await bench.press("enter")
        assert bench.controllers.mixing.coefficients() == mix and bench.context.state.mix.mode == "custom"
        await bench.press("backspace")
        assert bench.context.state.mix.mode == "gate"
        await bench.press("n", "space", "down", "space", "ctrl+o")
        await bench.until(lambda: len(kept(bench)) == 3, "compared")
        asked = next(one for one in reversed(bench.world.requests) if isinstance(one, Generate)).views
        assert [(view.name, view.mix) for view in asked[1:]] == [("mix:loud", mix), ("mix:quiet", {"style": -0.5})]
        await bench.leave_prompt()
        await bench.press("n", "down", "f5")
        await bench.until(lambda: not showing(bench, NamedMixesScreen), "the export dialog")
        await bench.press("ctrl+g")
        await bench.idle()
        (job,) = [one.request for one in bench.jobs if isinstance(one.request, ExportJob)]
        assert job.mix == "quiet"
        await bench.leave_prompt()
        await bench.press("n", "down", "f4")
        await bench.idle()
        assert list(NamedMixes(bench.path).load()) == ["loud"]


async def test_a_file_of_mixes_that_cannot_be_read_is_set_aside_by_saving(workbench: Opener, tmp_path: Path) -> None:
    async with workbench() as bench:
        file = NamedMixes(bench.path).path
        file.write_text("{")
        await bench.leave_prompt()
        await bench.press("n")
        assert "does not hold named mixes" in told(bench, "#mix-note")
        await bench.type("loud")
        await bench.press("enter")
        await bench.idle()
        assert "could not be read is now" in told(bench, "#mix-note")
        assert list(NamedMixes(bench.path).load()) == ["loud"] and len(list(tmp_path.glob("*.mixes.damaged*"))) == 1


async def test_a_file_that_was_mended_while_the_dialog_was_open_is_not_set_aside(
    workbench: Opener, tmp_path: Path
) -> None:
    async with workbench() as bench:
        mixes, sets = NamedMixes(bench.path), PromptSets(bench.path)
        mixes.path.write_text("{")
        sets.path.write_text("{")
        await bench.type("what is the tide")
        await bench.leave_prompt()
        await bench.press("n")
        assert "Saving sets it aside." in told(bench, "#mix-note")
        mixes.path.write_text('{"one": "tone:1", "two": "style:1"}')
        await bench.type("loud")
        await bench.press("enter")
        await bench.idle()
        assert list(mixes.load()) == ["one", "two", "loud"] and "now" not in told(bench, "#mix-note")
        await bench.press("escape", "f9")
        assert "Saving sets it aside." in told(bench, "#set-note")
        sets.path.write_text('{"mine": ["one"]}')
        await bench.press("enter")
        await bench.idle()
        assert sets.load() == {"mine": ["one"], "saved": ["what is the tide"]}
        assert list(tmp_path.glob("*.damaged*")) == []


async def test_a_change_that_fails_behind_its_dialog_is_said(workbench: Opener) -> None:
    async with workbench() as bench:
        mixes = NamedMixes(bench.path)
        await bench.leave_prompt()
        await bench.press("n")
        await bench.type("loud")
        dialog = bench.app.screen
        with beside_lock(mixes.path):
            await bench.press("enter", "escape")
            assert bench.app.screen is bench.screen and dialog is not bench.screen
            await bench.until(
                lambda: any("being changed by another process" in toast for toast in bench.toasts), "said"
            )
        assert mixes.load() == {}


async def test_alt_and_a_letter_is_a_key_while_typing_as_a_terminal_sends_it(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.idle()
        for sent, screen in ((b"\x1bh", AnswersScreen), (b"\x1bo", SamplingScreen)):
            parser = XTermParser()
            for event in [*parser.feed(sent.decode()), *parser.feed("")]:
                bench.app.post_message(event)
            await bench.until(lambda screen=screen: showing(bench, screen), "its dialog")  # type: ignore[misc]
            await bench.press("escape")
        assert bench.screen.prompt_pane.text == "what is"


async def test_another_window_sees_what_this_one_keeps(workbench: Opener) -> None:
    async with workbench() as bench:
        await answered(bench)
        other = KeptAnswers(bench.context.archive.path)
        assert [one.text for one in other.search()] == [bench.screen.answers.cards[0].text]


async def test_finding_ends_from_wherever_the_focus_is(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.screen.run_key(BY_ID["answers.find"])
        await bench.quiet()
        assert bench.screen.answers.finding and not bench.screen.answers.cards
        await bench.press("escape")
        assert not bench.screen.answers.finding
        await bench.screen.run_key(BY_ID["answers.find"])
        await bench.quiet()
        bench.panes.focus_pane("prompt")
        await mouse.press_button(bench, "find_end")
        assert not bench.screen.answers.finding
