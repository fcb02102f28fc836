"""Progress of a headless command on stderr, in the words that the screen uses too."""

from __future__ import annotations

import sys

import msgspec

from dlm_tui.output import say, say_in_place
from dlm_tui.progress import NOTE, WARNING, Eta, Progress
from dlm_tui.progress_words import look_lines, progress_words, share_of, stage_words

_LINES = 20
"""A stage that is counted gets about this many lines where there is no terminal."""


class Narration:
    """Reports steps: on a terminal one line that is written over, elsewhere a line now and then; notes always.

    `quiet` leaves out what is no note where there is no terminal, for commands whose work is short.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._eta = Eta()
        self._stage: tuple[str, str | None] | None = None
        self._line = -1

    def __call__(self, step: Progress) -> None:
        """Say this step, or let it pass."""
        if step.stage in {NOTE, WARNING}:
            say(("warning: " if step.stage == WARNING else "") + (step.text or ""))
            return
        if step.look is not None:
            for line in look_lines(step.scope or "", step.look):
                say(line)
            return
        step = msgspec.structs.replace(step, eta=self._eta.of(step))
        if sys.stderr.isatty():
            say_in_place(progress_words(step), done=share_of(step) == 1.0)
        elif not self._quiet:
            self._say_now_and_then(step)

    def _say_now_and_then(self, step: Progress) -> None:
        share = share_of(step)
        line = -1 if share is None else int(share * _LINES)
        if (step.stage, step.scope) != self._stage:
            self._stage, self._line = (step.stage, step.scope), line
            say(progress_words(step) if step.loss is not None else f"{stage_words(step)} …")
        elif step.loss is not None and line > self._line:
            self._line = line
            say(progress_words(step))
