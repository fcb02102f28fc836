"""What lies on the workbench closes once, however many keys and clicks were on their way."""

from __future__ import annotations

import pytest
from textual.command import CommandList, CommandPalette
from textual.widgets import Button, Input

from dlm_tui.app.app import WorkbenchApp
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.app.setup import Setup
from tests.tui.conftest import Bench, Opener
from tests.tui.test_key_order import at_once


async def palette_with(bench: Bench, words: str) -> CommandPalette:
    """The palette, with the one entry that has these words."""
    await bench.press("ctrl+p")
    palette = bench.app.screen
    assert isinstance(palette, CommandPalette)
    await bench.until(lambda: palette.query_one(CommandList).option_count > 10, "everything")
    palette.query_one(Input).value = words
    await bench.until(lambda: palette.query_one(CommandList).option_count == 1, "the entry")
    await bench.press("down")
    return palette


async def facts_asked(bench: Bench) -> list[str]:
    """The prompt is left; a line for every time the facts of the engine are asked for."""
    await bench.leave_prompt()
    runs: list[str] = []
    bench.controllers.engine.show_facts = lambda: runs.append("facts")  # type: ignore[method-assign]
    return runs


@pytest.mark.parametrize("keys", [("enter", "enter"), ("enter", "enter", "enter", "escape")])
async def test_the_palette_runs_one_command_and_leaves_the_workbench(workbench: Opener, keys: tuple[str, ...]) -> None:
    async with workbench() as bench:
        runs = await facts_asked(bench)
        await palette_with(bench, "about the engine")
        at_once(bench.app, *keys)
        await bench.until(lambda: runs, "the command")
        assert runs == ["facts"] and bench.app.screen is bench.screen


@pytest.mark.parametrize("keys", [("enter", "escape"), ("escape", "escape"), ("escape", "enter")])
async def test_escape_at_once_closes_the_palette_alone(workbench: Opener, keys: tuple[str, ...]) -> None:
    async with workbench() as bench:
        runs = await facts_asked(bench)
        await palette_with(bench, "about the engine")
        at_once(bench.app, *keys)
        await bench.until(lambda: not CommandPalette.is_open(bench.app), "closed")
        assert bench.app.screen is bench.screen and len(runs) <= 1


async def test_enter_acts_before_a_later_escape(workbench: Opener) -> None:
    """As far apart as a hand presses them: the palette is still being taken away."""
    async with workbench() as bench:
        runs = await facts_asked(bench)
        palette = await palette_with(bench, "about the engine")
        palette.query_one(CommandList).action_select()
        await bench.until(lambda: not palette.is_active, "being closed")
        await palette.run_action("escape")
        await bench.quiet()
        assert bench.app.screen is bench.screen and runs == ["facts"]


async def test_two_clicks_on_an_entry_of_the_palette(workbench: Opener) -> None:
    async with workbench() as bench:
        runs: list[str] = []
        bench.controllers.engine.show_facts = lambda: runs.append("facts")  # type: ignore[method-assign]
        palette = await palette_with(bench, "about the engine")
        for _ in range(2):
            palette.query_one(CommandList).action_select()  # what a click on the marked entry does
        await bench.until(lambda: runs, "the command")
        assert runs == ["facts"] and bench.app.screen is bench.screen


async def test_a_second_palette_while_the_first_one_is_being_closed(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.app.action_command_palette()
        await bench.until(lambda: CommandPalette.is_open(bench.app), "palette")
        bench.app.screen.dismiss(None)
        bench.app.action_command_palette()
        await bench.quiet()
        assert CommandPalette.is_open(bench.app) and len(bench.app.screen_stack) == 3


async def test_no_palette_lies_below_the_workbench(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+P while the document is being opened."""

    async def asked_meanwhile(app: WorkbenchApp, setup: Setup) -> Setup:
        app.action_command_palette()
        return setup

    monkeypatch.setattr(WorkbenchApp, "_claimed", asked_meanwhile)
    async with workbench() as bench:
        assert bench.app.screen_stack[1:] == [bench.screen]
        await bench.press("ctrl+p")
        assert CommandPalette.is_open(bench.app)
        await bench.press("escape")
        assert bench.app.screen is bench.screen


async def test_dialogs_close_once(workbench: Opener) -> None:
    async with workbench() as bench:
        answers: list[bool | None] = []
        await bench.context.ui.open_dialog(ConfirmScreen("Sure?", "Yes"), answers.append)
        yes = bench.app.screen.query_one("#yes", Button)
        yes.press()
        yes.press()
        await bench.until(lambda: answers, "an answer")
        assert answers == [True] and bench.app.screen is bench.screen
        jump = JumpScreen([("a", "Answers", "answers", None)])
        await bench.app.push_screen(jump)
        jump.dismiss(None)
        jump.dismiss(None)
        await bench.quiet()
        assert bench.app.screen is bench.screen


async def test_a_dialog_that_is_covered_takes_nothing_else_away(workbench: Opener) -> None:
    async with workbench() as bench:
        answers: list[bool | None] = []
        below = ConfirmScreen("Sure?", "Yes")
        await bench.context.ui.open_dialog(below, answers.append)
        bench.controllers.settings.show_keys("dialog")
        await bench.until(lambda: isinstance(bench.app.screen, HelpScreen), "help")
        below.dismiss(True)
        await bench.quiet()
        assert isinstance(bench.app.screen, HelpScreen) and answers == []
        await bench.press("escape")
        assert bench.app.screen is below
