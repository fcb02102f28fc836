"""What only a mouse does: lists that mark before they take, wheels, words and menus within reach at every size."""

from __future__ import annotations

import pytest
from textual.command import CommandList
from textual.widgets import OptionList

from dlm_tui.app.commands import command_name
from dlm_tui.app.keys import KEYS
from dlm_tui.app.screens.export import ExportScreen
from dlm_tui.app.screens.history import HistoryScreen
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.app.screens.label import LabelScreen
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.pick_list import PickList
from tests.tui import mouse
from tests.tui.actions import compared, fader, focus_of, prompt, showing, view
from tests.tui.conftest import Bench, Opener

SIZES = [(60, 18), (80, 24), (120, 40), (200, 60)]


def listing_of(bench: Bench) -> OptionList:
    return bench.app.screen.query_one(PickList)


async def test_the_first_click_marks_and_the_second_takes(workbench: Opener) -> None:
    async with workbench() as bench:
        for text in ("one", "two", "three"):
            bench.context.state.remember(text, {}, None)
        bench.screen.action_history()
        await bench.until(lambda: showing(bench, HistoryScreen), "history")
        listing = listing_of(bench)
        await mouse.click_row(bench, listing, 0)
        assert listing.highlighted == 0 and showing(bench, HistoryScreen)
        await mouse.click_row(bench, listing, 2)
        assert listing.highlighted == 2 and showing(bench, HistoryScreen)
        await mouse.press_button(bench, "delete")
        await bench.until(lambda: len(bench.context.state.history) == 2, "the marked one is forgotten")
        await mouse.click_row(bench, listing, 1)
        assert showing(bench, HistoryScreen)
        await mouse.click_row(bench, listing, 1)
        await bench.until(lambda: bench.screen.prompt_pane.text == "two", "taken")


async def test_a_double_click_takes(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.context.state.remember("one", {}, None)
        bench.context.state.remember("two", {}, None)
        bench.screen.action_history()
        await bench.until(lambda: showing(bench, HistoryScreen), "history")
        listing = listing_of(bench)
        place = mouse.row_of(bench, listing, 1)
        assert place is not None
        await bench.pilot.double_click(offset=place)
        await bench.until(lambda: bench.screen.prompt_pane.text == "one", "taken")


async def test_sections_open_at_the_second_click(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.panes.show_page("outline")
        await bench.idle()
        listing = bench.screen.outline.query_one(PickList)
        line = bench.context.document.sections[2].start_line
        await mouse.click_row(bench, listing, 2)
        assert not any("the place is" in toast for toast in bench.toasts)
        await mouse.click_row(bench, listing, 2)
        await bench.until(lambda: any(f"the place is harbour.dlm:{line}" in toast for toast in bench.toasts), "opened")


async def test_a_label_is_made_with_the_mouse(workbench: Opener) -> None:
    async with workbench() as bench:
        await prompt(bench)
        bench.screen.action_label()
        await bench.until(lambda: showing(bench, LabelScreen), "label")
        await mouse.click_row(bench, listing_of(bench), 2)
        await bench.until(lambda: "+ ::prose#style::" in bench.text, "the diff follows")
        assert showing(bench, LabelScreen)
        await mouse.press_button(bench, "accept")
        await bench.until(lambda: "::prose#style::" in bench.path.read_text(), "written")
        await bench.idle()


async def test_an_export_is_chosen_with_the_mouse(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        bench.screen.action_export_dialog()
        await bench.until(lambda: showing(bench, ExportScreen), "export")
        await mouse.click_row(bench, bench.app.screen.query_one("#export-target", PickList), 1)
        await mouse.click_row(bench, bench.app.screen.query_one("#export-mix", PickList), 1)
        await mouse.press_button(bench, "accept")
        await bench.until(lambda: bench.context.state.last_export, "exported")
        await bench.idle()
        assert (bench.context.state.export.target, bench.context.state.export.mix) == ("ollama", "uniform")


async def test_the_wheel_moves_the_fader_under_it_and_scrolls_elsewhere(workbench: Opener) -> None:
    async with workbench() as bench:
        await prompt(bench)
        before = bench.controllers.mixing.coefficients()
        (x, y), _ = mouse.strip_cell(bench, 2, "fader")
        await mouse.wheel(bench, (x, y), -1)
        after = bench.controllers.mixing.coefficients()
        assert after["style"] == pytest.approx(before["style"] + 0.1, abs=0.006)
        assert after["knowledge"] == pytest.approx(before["knowledge"], abs=0.006)
        assert bench.screen.desk.strips.selected == "style"
        (x, y), _ = mouse.strip_cell(bench, 0, "name")
        await mouse.wheel(bench, (x, y), -1)
        assert bench.controllers.mixing.coefficients() == after


async def test_a_narrow_screen_has_its_faders_in_the_numbers(workbench: Opener) -> None:
    async with workbench(size=(60, 18)) as bench:
        await prompt(bench)
        before = fader(bench)
        region = bench.screen.desk.strips.content_region
        row = bench.text.splitlines()[region.y]
        at = row.index(f"{before:+.2f}")
        await mouse.wheel(bench, (at + 1, region.y), 1, shift=True)
        assert fader(bench) == pytest.approx(before - 0.5, abs=0.006)


async def test_a_pane_that_is_not_shown_is_one_click_away_in_jump_mode(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.screen.action_jump()
        await bench.until(lambda: showing(bench, JumpScreen), "jump mode")
        label = bench.app.screen.query_one("#jump-runs")
        await mouse.click(bench, (label.region.x + 1, label.region.y), label)
        await bench.until(lambda: focus_of(bench) == "runs", "runs")
        assert bench.app.screen is bench.screen


async def test_a_word_works_in_the_pane_it_stands_on(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await compared(bench)
        assert focus_of(bench) == "prompt"
        for _ in range(3):
            await mouse.press_button(bench, "next_answer(1)")
        assert view(bench) == "tone" and focus_of(bench) == "answers"
        desk = bench.screen.desk
        at = next(at for at, border_button in desk.words() if border_button.action == "mix_mode")
        await mouse.click(bench, (desk.region.x + at, desk.region.y), desk)
        assert bench.context.state.mix.mode == "uniform" and focus_of(bench) == "desk"
        answers = bench.screen.answers
        at = next(at for at, border_button in answers.words() if border_button.action == "zoom")
        await mouse.click(bench, (answers.region.x + at, answers.region.y), answers)
        await bench.until(lambda: bench.panes.zoom == "answers" and view(bench) == "tone", "zoomed")
        at = next(at for at, border_button in answers.words() if border_button.action == "zoom")
        await mouse.click(bench, (answers.region.x + at, answers.region.y), answers)
        await bench.until(lambda: bench.panes.zoom is None, "everything again")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_menu_help_and_quit_are_within_reach(workbench: Opener, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        for pane in ("prompt", "desk", "answers"):
            bench.panes.show_page("answers")
            bench.panes.focus_pane(pane)
            await bench.quiet()
            for action, bar in (("command_palette", "footer"), ("help", "footer"), ("quit", "leave")):
                found = mouse.button(bench, action)
                assert found is not None and found[1] is bench.screen.query_one(f"#{bar}", KeyBar), action
                assert mouse.under(bench, found[0]) is found[1]


async def test_the_palette_has_an_entry_for_every_binding(workbench: Opener) -> None:
    async with workbench() as bench:
        await mouse.press_button(bench, "command_palette")
        names = [command_name(key) for key in KEYS if key.where != "dialog" and key.id != "app.palette"]
        listing = bench.app.screen.query_one(CommandList)

        def entries() -> list[str]:
            return [str(option.hit.text) for option in listing.options]  # type: ignore[attr-defined]

        await bench.until(lambda: set(names) <= set(entries()), "all entries")
        assert len(set(entries())) == len(entries()) and len(set(names)) == len(names)


async def test_the_palette_works_in_a_pane_that_is_not_shown(workbench: Opener) -> None:
    async with workbench() as bench:
        key = next(key for key in KEYS if key.id == "runs.toggle")
        await mouse.by_palette(bench, key)
        await bench.until(lambda: bench.screen.runs.showing_loss and focus_of(bench) == "runs", "the loss is shown")
