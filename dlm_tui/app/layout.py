"""Which panes are shown at which size: a pure function, so that every arrangement can be tested without a screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["narrow", "normal", "wide", "ultra"]
PANES = ("prompt", "desk", "answers", "talk", "insight", "runs", "jobs", "outline")
_TABBED: dict[Size, tuple[str, ...]] = {
    "narrow": ("answers", "insight", "runs", "jobs", "outline"),
    "normal": ("answers", "insight", "runs", "jobs", "outline"),
    "wide": ("insight", "runs", "jobs", "outline"),
    "ultra": ("runs", "jobs"),
}
PAGE_TITLES = {
    "answers": "Answers",
    "insight": "Insight",
    "runs": "Runs",
    "jobs": "Jobs",
    "outline": "Document",
}


def size_class(width: int, height: int) -> Size:
    """narrow below 80x24, wide from 120x30, ultra (three columns) from 170x40."""
    if width >= 170 and height >= 40:
        return "ultra"
    if width >= 120 and height >= 30:
        return "wide"
    return "normal" if width >= 80 and height >= 24 else "narrow"


@dataclass(frozen=True)
class Arrangement:
    """What is visible: panes, the tabs (page ids) and the current page."""

    size: Size
    visible: frozenset[str]
    tabs: tuple[str, ...]
    page: str
    zoom: str | None = None


def arrange(width: int, height: int, page: str, zoom: str | None = None, *, talk: bool = False) -> Arrangement:
    """The arrangement of a screen of this size. A zoomed pane is alone; a page that has its own place is not a tab.

    With `talk` the conversation is in the place of the answers.
    """
    size = size_class(width, height)
    tabs = _TABBED[size]
    current = page if page in tabs else tabs[0]
    if zoom is not None:
        return Arrangement(size, frozenset({zoom}), tabs, current, zoom)
    shown = (set(PANES) - set(tabs) - {"talk"}) | {current}
    if talk and "answers" in shown:
        shown = (shown - {"answers"}) | {"talk"}
    return Arrangement(size, frozenset(shown), tabs, current)
