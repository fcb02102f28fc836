"""Our light and dark theme, and the adapter colours that suit a theme."""

from __future__ import annotations

from collections.abc import Sequence

from textual.theme import Theme

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


def adapter_palette(theme: Theme, chosen: Sequence[str]) -> tuple[str, ...]:
    """The adapters' colours under a theme; the person's own palette wins on dark themes."""
    if theme.ansi:
        return ANSI
    if not theme.dark:
        return LIGHT
    return (*chosen, *DARK[len(chosen) :]) if chosen else DARK
