"""How far long work is, as the screen draws it; the words are the command line's too."""

from __future__ import annotations

from textual.content import Content

from dlm_tui.progress_words import Step, left_text, share_of, stage_words, time_text
from dlm_tui.progress_words import progress_parts as plain_parts
from dlm_tui.progress_words import progress_words as plain_words
from dlm_widgets.bars import bar_text
from dlm_widgets.sanitize import assemble, sanitize

__all__ = ["left_text", "progress_line", "progress_parts", "progress_words", "share_of", "stage_words", "time_text"]

_BAR_STYLE = "$primary on $foreground 12%"


def progress_words(step: Step) -> str:
    """`progress_words.progress_words` on one line, with control characters shown instead of obeyed."""
    return sanitize(plain_words(step), one_line=True)


def progress_parts(step: Step) -> list[str]:
    """`progress_words.progress_parts`, made safe in the same way."""
    return [sanitize(part, one_line=True) for part in plain_parts(step)]


def progress_line(step: Step, width: int = 20) -> Content:
    """A bar of `width` cells, left out for work without a count, and the words, on one line."""
    share = share_of(step)
    bar = "" if share is None else bar_text(share, width)
    return assemble((bar, _BAR_STYLE), "  " if bar else "", progress_words(step))
