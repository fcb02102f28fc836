"""Every page and dialog says the same without colours, in the terminal's own, in light ones and in sixteen."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment

from dlm_tui.app.config import Config, Live
from dlm_tui.app.layout import PAGE_TITLES
from tests.tui.conftest import Bench, Opener
from tests.tui.dialogs import every_dialog, open_each
from tests.tui.drawn import drawn_strips
from tests.tui.test_screens import record_runs

PROMPT = "what is the tide, please"
QUICK = Config(live=Live(pause=0.05))
LOOKS = {
    "no colours": {"NO_COLOR": "1"},
    "no colours, terminal's own": {"NO_COLOR": "1", "theme": "ansi-dark"},
    "dlm-light": {"theme": "dlm-light"},
    "ansi-light": {"theme": "ansi-light"},
}


async def walk(bench: Bench, tmp_path: Path) -> dict[str, str]:
    """The text of every page and dialog after a comparison and a training of the gate."""
    bench.screen.prompt_pane.set_text(PROMPT)
    await bench.idle()
    await bench.press("ctrl+o")
    await bench.idle()
    await bench.press("f5")
    await bench.idle()
    record_runs(bench, tmp_path)
    bench.controllers.history.poll()
    seen: dict[str, str] = {}
    opened: set[type] = set()
    for page in PAGE_TITLES:
        bench.panes.show_page(page)
        bench.app.clear_notifications()
        await bench.idle()
        seen[page] = plain(bench)
        paint(bench)
    bench.screen.runs.action_toggle_chart()
    bench.panes.show_page("runs")
    await bench.until(lambda: "loss nats/prompt" in bench.text, "the losses")
    seen["losses"] = plain(bench)
    async for name in open_each(bench):
        opened.add(type(bench.app.screen))
        seen[name] = plain(bench)
        paint(bench)
    assert opened == every_dialog(), "a dialog that nobody opened here has been drawn in no other look"
    return seen


def plain(bench: Bench) -> str:
    """The page, or the dialog's box, as text: what fills the trajectory is a block, and it is always the same time."""
    text = re.sub("[\u2588\u25cf\u25c6\u25b2]{2,}", lambda match: "\u2588" * len(match[0]), bench.text)
    text = re.sub(r"20\d\d-\d\d-\d\dT[\d:]+", "at", text)  # when a preference is written
    for box in bench.app.screen.query(".box"):  # the terminal's own colours are not blended with what lies below
        left, top, right, bottom = box.region.corners
        return "\n".join(line[left:right] for line in text.split("\n")[top:bottom])
    return text


def paint(bench: Bench) -> None:
    """Write the screen as terminals with few colours (TERM=xterm has sixteen) or none get it."""
    strips = drawn_strips(bench.app)
    for system in ("standard", "256", "truecolor", None):
        console = Console(file=io.StringIO(), color_system=system, force_terminal=True)  # type: ignore[arg-type]
        assert all(strip.render(console) is not None for strip in strips)


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, str]]:
    """What was shown with all colours, kept for the other looks."""
    return {}


async def test_what_a_filter_made_of_a_line_is_kept(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual keeps it by the filter's identity: another filter for every frame would filter each line anew."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with workbench() as bench:
        first, second = bench.app.get_line_filters(), bench.app.get_line_filters()
        assert [id(each) for each in first] == [id(each) for each in second]
        assert len(first) >= 2, "the greys and what stands before them"


@pytest.mark.parametrize("theme", ["dlm-light", "dlm-dark", "textual-light"])
async def test_sixteen_colours_leave_everything_readable(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch, theme: str
) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "standard")
    async with workbench(size=(120, 40), config=Config(live=QUICK.live, theme=theme)) as bench:
        await bench.idle()
        found = [pair for strip in drawn_strips(bench.app) for segment in strip if (pair := rounded(segment))]
        assert len(found) > 100
        lost = {pair for pair in found if pair[1] == pair[0] or {pair[0], pair[1]} <= {7, 15}}
        assert not lost, "ink on paper of its own colour"


def rounded(segment: Segment) -> tuple[int | None, int | None] | None:
    """Ink and paper of a written segment in sixteen colours, where both are given."""
    style = segment.style
    if not segment.text.strip() or style is None or style.color is None or style.bgcolor is None:
        return None
    ink, paper = style.color.downgrade(ColorSystem.STANDARD), style.bgcolor.downgrade(ColorSystem.STANDARD)
    return ink.number, paper.number


@pytest.mark.parametrize("look", ["all colours", *LOOKS])
async def test_every_look_says_the_same(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, look: str, shown: dict[str, dict[str, str]]
) -> None:
    settings = dict(LOOKS.get(look, {}))
    theme = settings.pop("theme", "dlm-dark")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dlm_tui.app.controllers.picking.secrets.randbelow", lambda most: 7)
    async with workbench(size=(120, 40), config=Config(live=QUICK.live, theme=theme)) as bench:
        shown[look] = await walk(bench, tmp_path)
        bench.screen.prompt_pane.set_text(PROMPT)
        bench.panes.show_page("insight")
        await bench.idle()
        told_apart = [glyph for glyph in "\u25cf\u25c6\u25b2" if 2 * glyph in bench.text]
        assert len(told_apart) >= 2 if "NO_COLOR" in settings else not told_apart
    if "all colours" in shown:
        assert shown[look] == shown["all colours"]
