"""One colour and one glyph per adapter, the same everywhere.

The colours follow the Okabe-Ito set, which people with any of the common colour vision deficiencies can tell apart; the
glyphs carry the same information without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GLYPHS = "\u25cf\u25c6\u25b2\u25a0\u2605\u25bc\u25b6\u25c0\u25ce\u25c7\u25b3\u25a3\u2606\u25bd\u25b7\u25c1"
DARK = ("#e69f00", "#56b4e9", "#2fbf91", "#cc79a7", "#f0e442", "#e8743b", "#7a9cf0", "#b8b8b8")
LIGHT = ("#a35f00", "#0b6fa8", "#00734f", "#a3437c", "#766a00", "#b84300", "#2f4fb0", "#5c5c5c")
ANSI = tuple(f"ansi_{name}" for name in ("yellow", "cyan", "green", "magenta", "bright_yellow", "red", "blue", "white"))


@dataclass(frozen=True)
class Mark:
    """How an adapter is drawn: a one-cell glyph and a colour as Textual writes it (`#rrggbb` or `ansi_...`)."""

    glyph: str
    color: str


def marks_for(names: Sequence[str], palette: Sequence[str] = DARK) -> dict[str, Mark]:
    """A mark for every name by its position: sixteen glyphs; colours repeat beyond those of the palette, glyphs shifted
    beyond theirs."""
    return {
        name: Mark(GLYPHS[(index + index // len(GLYPHS)) % len(GLYPHS)], palette[index % len(palette)])
        for index, name in enumerate(names)
    }


def rich_color(color: str) -> str:
    """The same colour as rich writes it, for drawing segments."""
    return color.removeprefix("ansi_")
