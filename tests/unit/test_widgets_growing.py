"""Text that grows is cut into the same rows as the whole text at once, at a cost that does not grow with it."""

from __future__ import annotations

import random

import pytest
from rich.cells import cell_len, set_cell_size
from textual.app import App, ComposeResult
from textual.content import Content

from dlm_widgets import growing_text
from dlm_widgets.growing_text import GrowingText, Wrapped
from dlm_widgets.sanitize import sanitize

PIECES = (
    "a", "of", "the ", "- ", "harbour", "tide", "\n", "\n\n", " ", "   ", "\t", "\r\n", "\r", "x" * 37,
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0", "\u3042" * 23, "e" + "\u0301" * 5, "\u0301", "\u200b", "\u202e",
    "\x1b[31m", "[bold]", "\ufe0f", "\ufdfa", "\u202eabc", "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea", "\U0001f469\u200d\U0001f467",
)  # fmt: skip
WIDTHS = (2, 3, 7, 20, 33, 80)


def wrapped_at_once(text: str, width: int) -> list[str]:
    """What Textual makes of the text, line by line, without trailing spaces."""
    return [line.content.plain.rstrip() for line in Content(sanitize(text))._wrap_and_format(width)]


def rows(wrapped: Wrapped) -> list[str]:
    shown = (wrapped.row_text(row).rstrip() for row in wrapped.rows)
    return [set_cell_size(row, wrapped.width).rstrip() if cell_len(row) > wrapped.width else row for row in shown]


@pytest.mark.parametrize("seed", range(300))
def test_rows_of_growing_text_are_those_of_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    wrapped, raw, width, spaces = Wrapped(), "", chance.choice(WIDTHS), chance.random()
    for _ in range(chance.randrange(1, 120)):
        piece = chance.choice(PIECES) + (" " if chance.random() < spaces else "")
        if chance.random() < 0.3:
            piece = piece[: chance.randrange(1, len(piece) + 1)]
        raw += piece
        wrapped.add(piece)
        if chance.random() < 0.05:
            width = chance.choice(WIDTHS)
        if chance.random() < 0.5:
            wrapped.wrap(width)
            assert wrapped.text == sanitize(raw)
            assert rows(wrapped) == wrapped_at_once(raw, width)
    wrapped.wrap(width)
    assert rows(wrapped) == wrapped_at_once(raw, width)


@pytest.mark.parametrize("piece", ["word ", "\u65e5\u672c", "x", "line\n"])
def test_only_the_end_is_wrapped_again(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(text: str, width: int) -> list[int]:
        seen.append(len(text))
        return real(text, width)

    real = growing_text.divide_line
    monkeypatch.setattr(growing_text, "divide_line", counted)
    wrapped = Wrapped()
    for _ in range(2_000):
        wrapped.add(piece)
        wrapped.wrap(40)
    assert len(wrapped.rows) >= 2_000 * cell_len(piece.rstrip()) // 40
    assert max(seen) <= 6 * 40


class OneText(App[None]):
    def compose(self) -> ComposeResult:
        yield GrowingText()


async def test_tints_and_selection_follow_the_text() -> None:
    app = OneText()
    async with app.run_test(size=(12, 10)) as pilot:
        text = app.query_one(GrowingText)
        text.add("alpha beta ")
        text.add("gamma", "bold")
        text.add(" delta\nnext")
        text.show_added()
        await pilot.pause()
        assert text.size.height == 3
        lines = [text.render_line(y) for y in range(3)]
        assert [line.text.rstrip() for line in lines] == ["alpha beta", "gamma delta", "next"]
        assert [segment.text for segment in lines[1] if segment.style and segment.style.bold] == ["gamma"]
        text.text_select_all()
        await pilot.pause()
        assert app.screen.get_selected_text() == "alpha beta gamma delta\nnext"
        app.screen.clear_selection()
        text.clear()
        text.show_added()
        await pilot.pause()
        assert text.size.height == 1 and not text.render_line(0).text.strip()
