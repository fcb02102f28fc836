"""What new users met, looked at closely: each sentence of what was promised to them, on the real screen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dlm_tui.app.config import Config, Live, config_path
from dlm_tui.app.launch import make_app
from dlm_tui.app.layout import PAGE_TITLES
from dlm_tui.app.panes.desk import DeskPane
from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.document import load
from dlm_tui.engine.protocol import Event, JobRequest, Progress
from tests.tui import actions
from tests.tui.conftest import Bench, Opener
from tests.tui.document import write_document
from tests.tui.drawn import drawn_strips
from tests.tui.recorded import RecordedJob, World

# ---- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "dlm_id: harbour\n"], ids=["missing", "malformed"])
async def test_an_id_is_offered_and_is_good(workbench: Opener, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    async with workbench(size=(160, 40)) as bench:
        opened: list[int] = []
        monkeypatch.setattr(bench.controllers.documents, "edit", lambda path, line: opened.append(line))
        text = bench.path.read_text()
        right = re.search(r"dlm_id: .*\n", text)
        assert right is not None
        bench.path.write_text(text.replace(right[0], wrong, 1))
        await bench.until(lambda: bench.context.document_error is not None, "it cannot be read")
        bench.panes.go_to("outline")
        await bench.until(lambda: bench.panes.focused_pane == "outline", "the outline has the focus")
        await bench.press("f3")
        shown = " ".join(bench.text.split())
        offered = re.search(r"one that is free: (dlm_id: [0-9A-HJKMNP-TV-Z]{26})", shown)
        assert offered is not None, shown
        await bench.press("enter")
        assert opened == [2], "the line of the key, or where it would stand"
        bench.path.write_text(text.replace(right[0], offered[1] + "\n", 1))
        await bench.until(lambda: bench.context.document_error is None, "what was offered is taken")
        assert load(bench.path).dlm_id == offered[1].removeprefix("dlm_id: ") != right[0].strip()


# ---- blank lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0, 1, 2])
@pytest.mark.parametrize("end", ["\n", ""], ids=["line end", "none"])
async def test_a_label_keeps_the_habit_of_blank_lines(workbench: Opener, tmp_path: Path, gap: int, end: str) -> None:
    head = write_document(tmp_path).read_text().partition("::instruction")[0].rstrip("\n")
    sections = [f"::instruction#tone::\n### Q\nPlease say {n}?\n### A\nAnswer {n}." for n in range(4)]
    before = ("\n" * (gap + 1)).join([head, *sections]) + end
    path = tmp_path / "harbour.dlm"
    path.write_text(before)
    async with workbench(path=path) as bench:
        await bench.type("please hand me the oar")
        await bench.press("ctrl+l")
        await bench.until(lambda: isinstance(bench.app.screen, LabelScreen), "label dialog")
        await bench.press("ctrl+g")
        await bench.until(lambda: path.read_text() != before, "labelled")
        added = path.read_text().removeprefix(before)
        assert added.startswith("\n" * (gap + (not end)) + "::prose#") and added.endswith("the oar" + end)
        assert [section.content.strip() for section in load(path).sections[1:5]] == [
            section.partition("\n")[2] for section in sections
        ]


# ---- pages, themes, what is dimmed ---------------------------------------------------------------------------------


async def test_every_page_has_a_letter_in_jump_mode(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.conversed(bench)
        await actions.answered(bench)
        panes = {pane.id: pane.JUMP for pane in bench.screen.query(Pane)}
        assert set(PAGE_TITLES) <= set(panes) and len(set(panes.values())) == len(panes) and all(panes.values())
        for name, letter in panes.items():
            await bench.press("f2")
            assert isinstance(bench.app.screen, JumpScreen)
            title = bench.screen.query_one(f"#{name}", Pane).TITLE
            assert re.search(rf" {letter}  {title}( |$)", bench.text, re.MULTILINE), name
            await bench.press(letter)
            await bench.until(lambda name=name: bench.panes.focused_pane == name, str(name))  # type: ignore[misc]


async def test_a_theme_reaches_every_page_and_the_dialog_in_front(workbench: Opener) -> None:
    """After there and back the screen is as one that never changed, down to the style of every cell."""
    light = Config(live=Live(pause=0.05), theme="dlm-light")
    async with workbench(size=(120, 40), config=light) as bench:
        await actions.compared(bench)
        await bench.press("f5")
        await bench.idle()
        began = await painted(bench, "dlm-light")
        dark = await painted(bench, "dlm-dark")
        assert [name for name in began if began[name] == dark[name]] == []
        changed = await painted(bench, "dlm-light")
        assert [name for name in began if began[name] != changed[name]] == []


async def painted(bench: Bench, theme: str) -> dict[str, list[str]]:
    """Every cell's style in the help, which is in front while the theme changes, and then on every page."""
    seen: dict[str, list[str]] = {}
    bench.panes.show_page("answers")
    bench.panes.focus_pane("prompt")
    bench.app.clear_notifications()
    await bench.settled()
    bench.screen.action_help()
    await bench.until(lambda: bench.app.screen is not bench.screen, "help")
    bench.app.choose_theme(theme)
    await bench.settled()
    seen["help"] = cells(bench)
    await bench.press("escape")
    for page in PAGE_TITLES:
        bench.panes.show_page(page)
        bench.app.clear_notifications()
        await bench.settled()
        seen[page] = cells(bench)
    return seen


def cells(bench: Bench) -> list[str]:
    strips = drawn_strips(bench.app)
    return [" ".join(f"{segment.text!r}{segment.style}" for segment in strip.simplify()) for strip in strips]


async def test_what_is_not_known_yet_is_not_called_untrained(workbench: Opener) -> None:
    world = World()
    world.measuring = asyncio.Event()
    async with workbench(world=world, size=(100, 34), wait=False) as bench:
        bench.panes.show_page("outline")
        await bench.until(
            lambda: "tone  4 tagged sections" in bench.text and "reading the base" in bench.text, "loading"
        )
        assert "not trained" not in bench.text
        world.measuring.set()
        await bench.until(lambda: "tone  4 tagged sections  v1" in bench.text, "open")
        world.trained = False
        bench.engines[-1].die()
        await bench.until(lambda: "tone  4 tagged sections  not trained" in bench.text, "now it is known")


async def test_answers_of_earlier_adapters_are_dimmed_and_say_so(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await actions.answered(bench)
        (card,) = bench.screen.answers.cards
        assert not card.has_class("-past") and "earlier adapters" not in bench.text
        await bench.press("ctrl+t")
        await bench.idle()
        await bench.until(lambda: "\u2039earlier adapters\u203a" in bench.text, "said")
        assert card.has_class("-past")
        await bench.press("ctrl+g")
        await actions.written(bench, 1)
        assert "earlier adapters" not in bench.text and not bench.screen.answers.cards[0].has_class("-past")


async def test_every_change_of_the_desk_is_taken_back_by_one_key(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.prompt(bench)
        await bench.leave_prompt()
        mixing, seen = bench.controllers.mixing, []
        for pressed in ("right", "shift+left", "m", "s", "p", "x", "x", "r", "right"):
            seen.append((repr(bench.context.state.mix), dict(mixing.coefficients())))
            await bench.press(pressed)
            assert repr(bench.context.state.mix) != seen[-1][0], pressed
        for before in reversed(seen):
            await bench.press("backspace")
            assert (repr(bench.context.state.mix), mixing.coefficients()) == before


# ---- progress ------------------------------------------------------------------------------------------------------


class Stumbling(RecordedJob):
    """A training whose messages come in the wrong order, as from two threads."""

    def __init__(self, world: World, request: JobRequest, seen: asyncio.Queue[int]) -> None:
        super().__init__(world, request)
        self._said = seen

    async def events(self) -> AsyncIterator[Event]:
        for done, left in ((5, 40.0), (4, 60.0), (6, 30.0), (2, 90.0), (7, 20.0)):
            yield Progress(stage="train", scope="tone", done=done, total=10, eta=left)
            self._said.put_nowait(done)
            await self.world.hold.wait()
            self.world.hold.clear()
        async for event in super().events():
            yield event


async def test_progress_and_time_left_never_run_backwards_on_the_screen(workbench: Opener) -> None:
    world, said = World(), asyncio.Queue[int]()
    world.hold.clear()

    async def start(request: JobRequest) -> RecordedJob:
        return Stumbling(world, request, said)

    async with workbench(world=world, size=(100, 34), job_starter=start) as bench:
        await bench.press("ctrl+t")
        for words in (
            "50% \u00b7 40 s left",
            "50% \u00b7 40 s left",
            "60% \u00b7 30 s left",
            "60% \u00b7 30 s left",
            "70% \u00b7 20 s left",
        ):
            await said.get()
            await bench.until(lambda words=words: f"training tone \u00b7 {words}" in bench.text, words)  # type: ignore[misc]
            world.hold.set()
        world.hold = asyncio.Event()
        world.hold.set()


# ---- where it is kept ----------------------------------------------------------------------------------------------


async def test_state_and_recents_are_where_dlm_home_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_HOME", str(tmp_path / "dlm"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = write_document(tmp_path)
    app = make_app(path, tmp_path / "dlm", None)
    async with app.run_test(size=(80, 24)) as pilot:
        bench = Bench(app, pilot, World(), [], [], path)
        await bench.until(lambda: app.is_open and app.workbench.is_mounted, "open")
        await bench.type("what is the tide")
        await bench.until(lambda: not bench.context.saver.is_due, "saved")
        await bench.until(lambda: bench.context.link.state.phase == "failed", "the base is not on this machine", 300.0)
        await bench.press("f10")
    here = tmp_path / "dlm" / "dlm-tui"
    assert str(path) in (here / "recent.json").read_text()
    assert any("what is the tide" in file.read_text() for file in here.rglob("*.json"))
    assert not (tmp_path / "state").exists() and not config_path().exists()


# ---- rows that only move --------------------------------------------------------------------------------------------


async def test_a_note_on_the_desk_leaves_no_row_unpainted(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workbench(size=(80, 24)) as bench:
        painted: list[str] = []
        refresh = bench.screen.refresh

        def seen(*regions: object, **how: bool) -> object:
            painted.append("all" if not regions and not how.get("layout") else "part")
            return refresh(*regions, **how)

        monkeypatch.setattr(bench.screen, "refresh", seen)
        desk = bench.screen.query_one(DeskPane)
        before = desk.query_one("#desk-note").display
        desk.note("" if before else "gate stale")
        await bench.until(lambda: "all" in painted, "what moved is painted with all the rest")
        painted.clear()
        desk.note("" if before else "gate stale")
        await bench.settled()
        assert "all" not in painted
