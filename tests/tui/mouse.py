"""A hand on the mouse: it sees what is on the screen and clicks there, turns the wheel and drags."""

from __future__ import annotations

from textual import events
from textual.command import CommandList, CommandPalette
from textual.geometry import Region
from textual.widget import Widget
from textual.widgets import OptionList

from dlm_tui.app.commands import command_name
from dlm_tui.app.keys import BY_ID, Key
from dlm_tui.app.panes.pane import Pane
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.mixing_desk import MixingDesk
from dlm_widgets.page_tabs import PageTabs
from tests.tui.conftest import Bench

Place = tuple[int, int]


async def click(bench: Bench, place: Place, on: Widget) -> None:
    """Click a cell of the screen, once `on` is what lies there."""
    bench.app.clear_notifications()
    await bench.until(lambda: under(bench, place) is on, f"{on} at {place}")
    await bench.pilot.click(offset=place)
    await bench.quiet()


def under(bench: Bench, place: Place) -> Widget:
    """What lies at a cell of the screen."""
    found, _ = bench.app.screen.get_widget_at(*place)
    return found


async def wheel(bench: Bench, place: Place, way: int, *, shift: bool = False) -> None:
    """Turn the wheel by one notch at a cell of the screen: down (1) or up (-1)."""
    kind = events.MouseScrollDown if way > 0 else events.MouseScrollUp
    await bench.pilot._post_mouse_events([kind], offset=place, shift=shift)
    await bench.quiet()


async def drag(bench: Bench, start: Place, end: Place) -> None:
    """Press at one cell, move to another, let go there."""
    await bench.pilot.mouse_down(offset=start)
    await bench.pilot.hover(offset=end)
    await bench.pilot.mouse_up(offset=end)
    await bench.quiet()


def button(bench: Bench, action: str) -> tuple[Place, Widget] | None:
    """Where an action can be clicked: a word on an edge, a key in the footer, the status line or a dialog."""
    screen = bench.app.screen
    for edge in (*screen.query(Pane), *screen.query(PageTabs)):
        if edge.display and edge.region.area:
            for at, border_button in edge.words():
                if border_button.action == action:
                    return (edge.region.x + at, edge.region.y), edge
    for bar in screen.query(KeyBar):
        for at, hint in bar.placed():
            if hint.action == action:
                return (bar.region.x + at + 1, bar.region.y), bar
    return None


async def press_button(bench: Bench, action: str) -> None:
    """Click what stands for an action on the screen."""
    found = button(bench, action)
    assert found is not None, f"nothing to click for {action}\n{bench.text}"
    await click(bench, *found)


def row_of(bench: Bench, listing: OptionList, index: int) -> Place | None:
    """A cell of a list's row, where it can be seen."""
    region = listing.content_region.intersection(Region.from_offset((0, 0), bench.app.size))  # type: ignore[arg-type]
    for y in range(region.y, region.bottom):
        place = (region.x + 1, y)
        if bench.app.screen.get_style_at(*place).meta.get("option") == index and under(bench, place) is listing:
            return place
    return None


async def click_row(bench: Bench, listing: OptionList, index: int) -> None:
    """Bring a row of a list into sight with the wheel and click it."""
    bench.app.clear_notifications()
    await bench.quiet()
    turns = 0
    while (place := row_of(bench, listing, index)) is None:
        assert turns < 200, f"row {index} cannot be reached\n{bench.text}"
        await wheel(bench, (listing.content_region.x + 1, listing.content_region.y + 1), 1)
        turns += 1
    await click(bench, place, listing)


async def by_palette(bench: Bench, key: Key) -> None:
    """Open the palette by its word in the footer and click the entry of a binding."""
    await press_button(bench, BY_ID["app.palette"].action)
    await bench.until(lambda: CommandPalette.is_open(bench.app), "palette")
    listing = bench.app.screen.query_one(CommandList)
    name = command_name(key)

    def entries() -> list[str]:
        return [str(option.hit.text) for option in listing.options]  # type: ignore[attr-defined]

    await bench.until(lambda: name in entries() and "view: engine log" in entries(), f"entry {name}")
    await click_row(bench, listing, entries().index(name))


def strip_cell(bench: Bench, row: int, column: str) -> tuple[Place, Widget]:
    """A cell of an adapter's strip on the desk: its `name`, `fader` (the middle), `S`, `M` or `P`."""
    desk = bench.screen.query_one(MixingDesk)
    width = desk.content_size.width
    columns = desk._columns(width)
    x = {
        "name": 4,
        "fader": columns.fader_at + columns.fader // 2,
        "S": columns.switches_at + 1,
        "M": columns.switches_at + 3,
        "P": columns.switches_at + 5,
    }[column]
    return (desk.content_region.x + x, desk.content_region.y + desk._head_rows(width) + row), desk


async def click_strip(bench: Bench, row: int, column: str) -> None:
    """Click a part of an adapter's strip."""
    await click(bench, *strip_cell(bench, row, column))


async def click_tab(bench: Bench, page: str) -> None:
    """Click a page's name."""
    tabs = next(tabs for tabs in bench.screen.query(PageTabs) if tabs.display and tabs.region.area)
    at = next(at for at, _, found in tabs.tabs() if found.id == page)
    await click(bench, (tabs.region.x + at + 1, tabs.region.y), tabs)
