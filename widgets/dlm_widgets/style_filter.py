"""Line filters: nothing that acts on a terminal, a style for every segment, which Textual's filters for NO_COLOR need,
and ink that sixteen colours leave readable."""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color as RichColor
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_PLAIN = Style()
_BLACK, _LIGHT, _DARK = 0, (7, 15), 8
_GREY, _WHITE = Style(color="bright_black"), Style(color="bright_white")


_ACTS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)])
_ACTS |= dict.fromkeys([*range(0x2066, 0x206A), 0x200B, 0x2060, 0xFEFF])
"""Controls, what turns the direction of a line, and blanks without a width: none of them takes a cell."""


class NothingThatActs(LineFilter):
    """Behind every widget, also those that are not made for foreign text: a control character in what they draw would
    be carried out by the terminal."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments without those characters."""
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [
            segment if segment.control else Segment(segment.text.translate(_ACTS), segment.style)
            for segment in segments
        ]


class StyleEverySegment(LineFilter):
    """Put it before the others; some widgets, the chart's canvas among them, return blanks without a style."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, those without a style with an empty one."""
        return [segment if segment.style else Segment(segment.text, _PLAIN, segment.control) for segment in segments]


class ReadableInSixteen(LineFilter):
    """For terminals of sixteen colours, behind the other filters: ink that rounds to its paper, or to the light grey on
    white, is drawn in a grey that does not. Colours that are the terminal's own stay as they are."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments in ink that can be read."""
        paper = background.rich_color
        return [
            Segment(segment.text, _readable(segment.style, paper), segment.control) if segment.style else segment
            for segment in segments
        ]


@lru_cache(4096)
def _readable(style: Style, paper: RichColor) -> Style:
    ink = _rounded(style.color)
    under = _rounded(style.bgcolor or paper)
    if (ink in _LIGHT and under in _LIGHT) or ink == under == _BLACK:
        return style + _GREY
    return style + _WHITE if ink == under == _DARK else style


def _rounded(color: RichColor | None) -> int | None:
    """Which of the sixteen a colour becomes; None for one that is not ours."""
    if color is None or color.triplet is None:
        return None
    return color.downgrade(ColorSystem.STANDARD).number
