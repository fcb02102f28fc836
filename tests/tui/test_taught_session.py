"""A document of one's own on the real engine: trained, asked, talked about for three turns with a fork, five answers
picked blind, trained on them, the marked set compared, and back to the version before. Once at 80x24 with keys, once at
120x40 with the mouse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.widgets import Input

from dlm_tui.app.config import SamplingSettings
from dlm_tui.app.keys import BY_ID
from dlm_tui.app.launch import make_app
from dlm_tui.app.screens.adapters import AdaptersScreen
from dlm_tui.app.screens.draw import DrawScreen
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.app.screens.pick import Blind, PickScreen
from dlm_tui.app.screens.prompt_sets import PromptSetsScreen
from dlm_tui.app.screens.review import ReviewScreen
from dlm_tui.app.screens.set_run import SetRunScreen
from dlm_tui.app.screens.settings_offer import SettingsOffer
from dlm_tui.document import load, preference_triples
from dlm_tui.document.preferences import preference_counts
from dlm_tui.store import Store, current_version
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from tests.tui import mouse
from tests.tui.actions import showing, turns_kept
from tests.tui.conftest import Bench
from tests.tui.recorded import World
from tests.tui.test_real import has_base, write

PROMPT = "When does the tide reach post 2?"
BEHIND, LAST, OTHERWISE = "And post 3?", "Why so?", "And post 4?"
LONG = 900.0  # seconds that a training may take on a busy machine


class Hand:
    """Does what a person does, by keys alone or by the mouse alone; letters are typed either way."""

    def __init__(self, bench: Bench, *, by_mouse: bool) -> None:
        self.bench, self.by_mouse = bench, by_mouse

    async def do(self, key_id: str) -> None:
        """What a binding does: its first key, or a click on its word, else on its entry in the palette."""
        key, bench = BY_ID[key_id], self.bench
        if not self.by_mouse:
            await bench.press(key.keys.split(",")[0])
        elif mouse.button(bench, key.action):
            await mouse.press_button(bench, key.action)
        else:
            await mouse.by_palette(bench, key)

    async def into(self, dialog: type, seconds: float = 90.0) -> None:
        await self.bench.until(lambda: showing(self.bench, dialog), dialog.__name__, seconds)

    async def choose(self, list_id: str, index: int) -> None:
        """Mark a row of a list that has the focus, or by a click."""
        listing = self.bench.app.screen.query_one(list_id, PickList)
        if self.by_mouse:
            await mouse.click_row(self.bench, listing, index)
        else:
            await self.bench.press("home", *["down"] * index)
        assert listing.highlighted == index

    async def fill(self, field_id: str, text: str) -> None:
        """Write into a field instead of what stands in it."""
        field = self.bench.app.screen.query_one(field_id, Input)
        if self.by_mouse:
            await mouse.click(self.bench, (field.content_region.x, field.content_region.y), field)
        else:
            while not field.has_focus:
                await self.bench.press("tab")
        await self.bench.press("home", "ctrl+k")
        await self.bench.type(text)
        assert field.value == text

    async def ask(self, text: str) -> None:
        """A new prompt, typed and routed."""
        await self.do("prompt.new")
        await self.bench.until(lambda: self.bench.screen.prompt_pane.text == "", "a new prompt")
        await self.bench.type(text)
        routing = self.bench.routing
        await self.bench.until(lambda: routing.routed and routing.routed.prompt == text, "routed", LONG)

    async def follow(self, text: str, turns: int) -> None:
        """Ask behind what is shown; so many turns stand there afterwards."""
        await self.ask(text)
        await self.do("talk.follow")
        await self.bench.until(lambda: turns_kept(self.bench, turns), f"{turns} turns", LONG)

    async def mark_turn_before(self) -> None:
        """From the last turn of three to the second one."""
        bench = self.bench
        second = bench.screen.talk.cards[1]
        if self.by_mouse:
            head, holder = second.query_one(".turn--head"), bench.screen.talk.query_one("#turns")
            while head.region.y < holder.region.y:
                await mouse.wheel(bench, (holder.region.x + 3, holder.region.y + 1), -1)
            await mouse.click(bench, (head.region.x + 1, head.region.y), head)
        else:
            await self.do("view.jump")
            await self.into(JumpScreen)
            await bench.press(bench.screen.talk.JUMP, "up")
        await bench.until(lambda: bench.screen.talk.marked == second.turn, "the second turn is marked")

    async def pick(self, number: int) -> None:
        if self.by_mouse:
            blind = self.bench.app.screen.query_one(f"#blind-{number}", Blind)
            place = (blind.content_region.x, blind.content_region.y)
            await mouse.click(self.bench, place, mouse.under(self.bench, place))
        else:
            await self.bench.press(str(number))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
@pytest.mark.parametrize("by_mouse", [False, True], ids=["80x24 with keys", "120x40 with the mouse"])
async def test_from_an_own_document_to_a_taught_version_and_back(tmp_path: Path, by_mouse: bool) -> None:
    path = write(tmp_path)
    app = make_app(path, tmp_path / "home", None)
    async with app.run_test(size=(120, 40) if by_mouse else (80, 24), notifications=True) as pilot:
        bench = Bench(app, pilot, World(), [], [], path)
        await bench.until(lambda: app.is_open and bench.context.link.ready, "the engine opens the document", LONG)
        hand, store = Hand(bench, by_mouse=by_mouse), Store(tmp_path / "home", load(path).dlm_id)
        bench.controllers.sampling.use(SamplingSettings(max_tokens=16, temperature=1.6))

        await hand.do("train.all")
        await bench.until(lambda: bench.context.trained_names == ("tide", "bread"), "trained", LONG)
        await bench.until(lambda: not bench.context.board.running(), "the gate, too", LONG)
        assert versions(store) == {"tide": 1, "bread": 1}

        bench.panes.focus_pane("prompt")
        await bench.type(PROMPT)
        await hand.do("prompt.compare")
        await bench.until(lambda: bench.screen.answers.cards and not bench.controllers.generation.running, "answers")
        await hand.do("prompt.sets")
        await hand.into(PromptSetsScreen)
        await hand.do("dialog.accept")
        await bench.until(lambda: "Saved in saved." in bench.text, "saved in a set")
        await hand.do("dialog.close")

        await bench.until(lambda: bench.controllers.shown.current is not None, "the answer is kept")
        talk = bench.controllers.conversing
        await hand.follow(BEHIND, 2)
        await hand.follow(LAST, 3)
        assert [turn.prompt for turn in talk.turns] == [PROMPT, BEHIND, LAST]
        await hand.mark_turn_before()
        await hand.do("talk.fork")
        await bench.until(lambda: turns_kept(bench, 1) and bench.screen.prompt_pane.text == BEHIND, "forked")
        await hand.follow(OTHERWISE, 2)
        first, second = talk.turns
        assert (first.prompt, second.prompt) == (PROMPT, OTHERWISE) and second.turn_ids == [first.answer_id]
        assert talk.conversation is not None and len(talk.conversation) == 4, "what was asked first stays"
        assert "\u20392/2\u203a" in bench.text
        await hand.ask(PROMPT)

        await hand.do("teach.pick")
        await hand.into(DrawScreen)
        await hand.fill("#draw-count", "16")
        await hand.do("dialog.accept")
        await hand.into(PickScreen)
        await bench.until(lambda: "pair 1 of" in bench.text, "drawn", LONG)
        for picked in range(1, 6):
            await hand.pick(1 + picked % 2)
            await bench.until(
                lambda picked=picked: f"{picked} picked" in bench.text or showing(bench, ReviewScreen), "picked"
            )
            if showing(bench, ReviewScreen):
                break
        if showing(bench, PickScreen):
            await hand.do("dialog.accept")
        await hand.into(ReviewScreen)
        await hand.choose("#review-adapter", 1)
        # another processor rounds, and so draws, other answers: there may be fewer pairs of different ones
        to_write = int(found[1]) if (found := re.search(r"(\d) preferences to write", bench.text)) else 0
        assert to_write >= 4
        await hand.do("dialog.accept")
        await bench.until(lambda: preference_counts(load(path)) == {"tide": to_write, "bread": 0}, "they are written")
        sections = [section for section in load(path).sections if section.type == "preference"]
        assert all(
            section.auto_mined and str(section.judge_name).startswith("dlm-tui person blind") for section in sections
        )
        assert all(preference_triples(section)[0].prompt == PROMPT for section in sections)
        await bench.until(lambda: bench.context.document.sha256 == load(path).sha256, "the document is read again")

        await hand.do("train.preferences")
        await hand.into(SettingsOffer)
        await hand.do("dialog.accept")
        await hand.into(SetRunScreen, LONG)
        await bench.until(lambda: "answers changed" in note(bench), "before and after", LONG)
        assert (
            versions(store) == {"tide": 2, "bread": 1} and load(path).training.preference.hyperparams.num_epochs == 10
        )
        after, before = bench.context.setup.state_file.set_runs.newest("saved")
        assert (before.versions, after.versions) == ({"tide": 1, "bread": 1}, {"tide": 2, "bread": 1})
        assert after.former == before.run_id and after.views == ["gated", "tide"]
        tide = next(answer for answer in after.answers if answer.view == "tide")
        former = next(answer for answer in before.answers if answer.view == "tide")
        assert tide.former_logprob is not None and former.logprob is not None
        assert abs(tide.former_logprob - former.logprob) > 1e-3, "the training on preferences moved the adapter"
        await hand.do("dialog.close")

        await hand.do("train.adapters")
        await hand.into(AdaptersScreen)
        await hand.do("dialog.back")
        await bench.until(lambda: versions(store) == {"tide": 1, "bread": 1}, "back")
        await bench.until(lambda: bench.context.opened.versions == {"tide": 1, "bread": 1}, "in the engine, too", LONG)  # type: ignore[union-attr]
        await hand.do("dialog.close")
        assert bench.screen.failures == []
        await hand.do("app.quit")
        await bench.until(lambda: app._exit, "left")


def versions(store: Store) -> dict[str, int]:
    found = {name: current_version(store, name) for name in ("tide", "bread")}
    return {name: version.version for name, version in found.items() if version is not None}


def note(bench: Bench) -> str:
    return str(bench.app.screen.query_one("#run-note", LiteralStatic).text) if showing(bench, SetRunScreen) else ""
