"""Progress of a headless command on stderr, in the words that the screen uses too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec

from dlm_tui.output import say, say_in_place
from dlm_tui.progress import NOTE, WARNING, Eta, Progress
from dlm_tui.progress_words import look_lines, progress_words, share_of, stage_words

_LINES = 20
"""A stage with a loss gets about this many lines where there is no terminal."""
_EVERY = 10.0
"""Seconds after which any other stage that is counted says there how far it is."""
_SHORT = 5.0
"""Seconds of work that a quiet command says nothing about."""


class Narration:
    """Reports steps: on a terminal one line that is written over, elsewhere a line now and then; notes always.

    `quiet` is for commands whose work is mostly short: where there is no terminal a stage is said only once nothing
    was said for some seconds.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._quiet = quiet
        self._clock = clock
        self._eta = Eta(clock)
        self._stage: tuple[str, str | None] | None = None
        self._named = False  # whether the stage was said
        self._line = -1
        self._spoke = clock()

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
        else:
            self._say_now_and_then(step)

    def _say_now_and_then(self, step: Progress) -> None:
        share, silence = share_of(step), self._clock() - self._spoke
        line = -1 if share is None else int(share * _LINES)
        if (step.stage, step.scope) != self._stage:
            self._stage, self._named, self._line = (step.stage, step.scope), False, line
        if not self._named:
            if self._quiet and (silence < _SHORT or share == 1.0):  # short, or over by now
                return
            self._named = True
            counted = step.loss is not None or (self._quiet and share is not None)
            self._say(progress_words(step) if counted else f"{stage_words(step)} …")
        elif (line > self._line) if step.loss is not None else (share is not None and silence >= _EVERY):
            self._line = line
            self._say(progress_words(step))

    def _say(self, line: str) -> None:
        self._spoke = self._clock()
        say(line)
