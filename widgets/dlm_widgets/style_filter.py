"""A line filter that gives every segment a style: Textual's filters for NO_COLOR take none without one."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_PLAIN = Style()


class StyleEverySegment(LineFilter):
    """Put it before the others; some widgets, the chart's canvas among them, return blanks without a style."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, those without a style with an empty one."""
        return [segment if segment.style else Segment(segment.text, _PLAIN, segment.control) for segment in segments]
