"""Foreign text made safe to show.

Documents, model output, file names and error messages are data. Everything that could act on a terminal, reorder a line
or hide is replaced by something visible, and the result is handed to Textual as `Content`, never as markup.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size
from textual.content import Content

_HIDDEN = {0x115F, 0x1160, 0x3164, 0xFFA0, 0x034F, 0x17B4, 0x17B5, 0x2800}
_MAX_MARKS = 3


class _Visible(dict[int, str]):
    """A translation table that is filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        self[code] = shown = _visible(code)
        return shown


def _visible(code: int) -> str:
    char = chr(code)
    if char == "\n":
        return char
    if char == "\t":
        return "    "
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    category = unicodedata.category(char)
    variation = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    if category in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} or code in _HIDDEN or variation:
        return f"\u2039U+{code:04X}\u203a"
    if category == "Zs":
        return " "
    return char


_TABLE = _Visible()


def sanitize(text: str, *, one_line: bool = False) -> str:
    """The text with control, bidirectional, zero-width and unassigned characters shown as what they are.

    Line feeds stay unless `one_line`, where they become "\u240a"; tabs become four spaces; a pile of more than three
    combining marks is cut. The result holds only characters a terminal draws in place.
    """
    text = text.replace("\r\n", "\n")
    if not text.isascii() or not text.isprintable():
        text = _tame_marks(text.translate(_TABLE))
    return text.replace("\n", "\u240a") if one_line else text


def _tame_marks(text: str) -> str:
    if text.isascii():
        return text
    out: list[str] = []
    run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me"} else 0
        if run <= _MAX_MARKS:
            out.append(char)
        elif run == _MAX_MARKS + 1:
            out.append("\u2026")
    return "".join(out)


def literal(text: str, style: str = "", *, one_line: bool = False) -> Content:
    """Foreign text as Content: no markup is read, `style` is ours."""
    return (
        Content.styled(sanitize(text, one_line=one_line), style)
        if style
        else Content(sanitize(text, one_line=one_line))
    )


def assemble(*parts: str | tuple[str, str]) -> Content:
    """Content from plain strings and (string, style) pairs; every string is made safe."""
    made = [(sanitize(part[0]), part[1]) if isinstance(part, tuple) else sanitize(part) for part in parts]
    return Content.assemble(*made)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """One line of exactly `width` cells: cut with an ellipsis or padded with spaces; wide characters count two."""
    if width <= 0:
        return ""
    shown = sanitize(text, one_line=True)
    length = cell_len(shown)
    if length > width:
        cut = set_cell_size(shown, width - 1)
        return set_cell_size(cut.rstrip() + "\u2026", width)
    padding = " " * (width - length)
    return padding + shown if right else shown + padding
