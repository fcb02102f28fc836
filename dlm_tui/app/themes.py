"""Our light and dark theme, which themes there are, and the adapter colours that suit a theme."""

from __future__ import annotations

from collections.abc import Sequence

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from dlm_widgets.adapter_palette import ANSI, DARK, LIGHT

DLM_DARK = Theme(
    name="dlm-dark",
    primary="#8aa4c8",
    secondary="#7c8ba1",
    warning="#e0b341",
    error="#e5726c",
    success="#6fbf9a",
    accent="#b9c7dc",
    foreground="#dfe4ec",
    background="#14171c",
    surface="#191d24",
    panel="#222833",
    dark=True,
    variables={"block-cursor-background": "#8aa4c8", "block-cursor-foreground": "#14171c"},
)
DLM_LIGHT = Theme(
    name="dlm-light",
    primary="#3c5a86",
    secondary="#5d6b80",
    warning="#8a6100",
    error="#b3362f",
    success="#1d7a52",
    accent="#2b4468",
    foreground="#20252d",
    background="#fbfaf7",
    surface="#f3f1ec",
    panel="#e7e4dc",
    dark=False,
    variables={"block-cursor-background": "#3c5a86", "block-cursor-foreground": "#fbfaf7"},
)

THEME_NAMES = (DLM_DARK.name, DLM_LIGHT.name, *BUILTIN_THEMES)


def paint_color(text: str) -> str | None:
    """A colour as all that paints takes it, `#rrggbb` or `ansi_red`, from CSS's or Textual's words; None for others.

    rich and Textual know different names, and either stops painting at one that it does not know.
    """
    name = text.strip().lower()
    try:
        color = Color.parse(name)
    except ColorParseError:
        return None
    if color.a < 1:
        return None
    return name if color.ansi is not None else color.hex6.lower()


def adapter_palette(theme: Theme, chosen: Sequence[str]) -> tuple[str, ...]:
    """The adapters' colours under a theme; the person's own palette wins on dark themes."""
    if theme.ansi:
        return ANSI
    if not theme.dark:
        return LIGHT
    return (*chosen, *DARK[len(chosen) :]) if chosen else DARK
