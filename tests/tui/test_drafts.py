"""What is typed into a dialog, or picked, stays where the document cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from textual.screen import Screen
from textual.widgets import OptionList, TextArea

from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.screens.lesson import LessonScreen
from dlm_tui.app.screens.review import ReviewScreen
from dlm_tui.app.screens.section import SectionScreen
from dlm_tui.document import load
from tests.tui import actions
from tests.tui.conftest import Bench, Opener
from tests.tui.test_picking import drawn, reviewed
from tests.tui.test_sections import _at_first_section


@contextmanager
def read_only(bench: Bench) -> Iterator[None]:
    bench.path.chmod(0o444)
    try:
        yield
    finally:
        bench.path.chmod(0o644)


async def _refused(bench: Bench, text: str, typed: str) -> None:
    """Type it, and see that it is refused and kept."""
    bench.app.screen.query_one(TextArea).text = text
    await bench.quiet()
    before = bench.path.read_bytes()
    with read_only(bench):
        await bench.press("ctrl+g")
        await bench.until(lambda: any("What you typed is kept" in toast for toast in bench.toasts), "refused")
    assert bench.path.read_bytes() == before
    bench.app.clear_notifications()
    assert typed in text


async def _again(bench: Bench, kind: type[Screen[object]], typed: str) -> None:
    """The dialog is open again with what was typed, and writes it now."""
    await bench.until(lambda: actions.showing(bench, kind), "dialog")
    assert typed in bench.app.screen.query_one(TextArea).text
    await bench.press("ctrl+g")
    await bench.until(lambda: typed.encode() in bench.path.read_bytes(), "written")


@pytest.mark.parametrize("key", ["a", "e"])
async def test_the_text_of_a_section(key: str, workbench: Opener) -> None:
    async with workbench() as bench:
        await _at_first_section(bench)
        await bench.press(key)
        await bench.until(lambda: actions.showing(bench, SectionScreen), "dialog")
        await _refused(bench, "### Q\nWhen?\n\n### A\nAn hour of work.", "An hour of work.")
        await _at_first_section(bench)
        await bench.press(key)
        await _again(bench, SectionScreen, "An hour of work.")


async def test_the_right_answer_of_a_label(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.prompt(bench)
        bench.screen.action_label()
        await bench.until(lambda: actions.showing(bench, LabelScreen), "dialog")
        bench.app.screen.query_one(OptionList).highlighted = 2
        await _refused(bench, "An hour of work.", "An hour of work.")
        bench.screen.action_label()
        await _again(bench, LabelScreen, "An hour of work.")
        assert load(bench.path).sections[-1].adapter == bench.context.names[2]


async def test_an_answer_that_was_mended(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.prompt(bench)
        await actions.answered(bench)
        bench.screen.answers.action_teach("edit")
        await bench.until(lambda: actions.showing(bench, LessonScreen), "dialog")
        await _refused(bench, "An hour of work.", "An hour of work.")
        bench.screen.answers.action_teach("edit")
        await _again(bench, LessonScreen, "An hour of work.")


async def test_picks(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await actions.prompt(bench)
        await drawn(bench, "8")
        await bench.press("2", "1", "0", "1")
        await reviewed(bench)
        with read_only(bench):
            await bench.press("ctrl+g")
            await bench.until(lambda: any("The picks are kept" in toast for toast in bench.toasts), "refused")
        bench.screen.action_pick()
        await bench.until(lambda: actions.showing(bench, ReviewScreen), "the picks again")
        await bench.press("ctrl+g")
        await bench.until(lambda: any("3 preferences written" in toast for toast in bench.toasts), "written")
        assert [section.type for section in load(bench.path).sections[-3:]] == ["preference"] * 3


async def test_nobody_types_what_cannot_be_written(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.prompt(bench)
        await _at_first_section(bench)
        with read_only(bench):
            for ask in (lambda: bench.screen.outline.action_change_section("edit"), bench.screen.action_label):
                bench.app.clear_notifications()
                ask()
                await bench.until(lambda: any("is read-only" in toast for toast in bench.toasts), "said")
                assert not bench.app.screen.is_modal
