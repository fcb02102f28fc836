"""Drawing bars with eighth blocks."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style

_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"


def bar_text(fraction: float, width: int) -> str:
    """A bar of `width` cells filled to `fraction` in [0, 1] (clamped; NaN counts as 0), in eighths of a cell."""
    fraction = min(1.0, max(0.0, fraction)) if fraction == fraction else 0.0
    eighths = round(fraction * width * 8)
    full, rest = divmod(eighths, 8)
    tail = _EIGHTHS[rest] if rest else ""
    return ("\u2588" * full + tail).ljust(width)


def bar_segments(fraction: float, width: int, fill: Style, track: Style, ghost: float | None = None) -> list[Segment]:
    """The bar and its track; `ghost` marks an earlier value with a thin line."""
    text = bar_text(fraction, width)
    filled = len(text.rstrip())
    cells = [(char, fill) for char in text[:filled]] + [("\u2500", track)] * (width - filled)
    if ghost is not None and width:
        spot = min(width - 1, max(0, round(ghost * width)))
        cells[spot] = ("\u2503", fill if spot < filled else fill + Style(dim=True)) if spot >= filled else cells[spot]
    segments: list[Segment] = []
    for char, style in cells:
        if segments and segments[-1].style == style:
            segments[-1] = Segment(segments[-1].text + char, style)
        else:
            segments.append(Segment(char, style))
    return segments
