"""Regular expressions that come from files: the same language, but with an end. No torch."""

from __future__ import annotations

import time

import regex

from dlm_tui.errors import DlmTuiError

SECONDS = 1.0
_LONGEST = 4096


class PatternError(DlmTuiError):
    """A pattern that is no regular expression, or one that takes too long."""


class BoundedPatterns:
    """Matches patterns against module names; all its questions together may take `seconds` of processor time.

    `regex` reads what `re` reads and can stop a search that backtracks without end, by processor time, too.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = self._left = seconds

    def check(self, pattern: str) -> None:
        """Raises PatternError unless `pattern` is a regular expression of at most 4,096 characters."""
        if len(pattern) > _LONGEST:
            raise PatternError(f"the pattern {pattern[:40]!r}… is longer than {_LONGEST} characters")
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise PatternError(f"the pattern {pattern[:80]!r} is not a regular expression: {error}") from None

    def search(self, pattern: str, text: str) -> bool:
        """Whether `pattern` is found in `text`. Raises PatternError."""
        self.check(pattern)
        began = time.thread_time()
        try:
            found = regex.search(pattern, text, timeout=max(self._left, 1e-3), concurrent=True)
        except TimeoutError:
            raise PatternError(
                f"the pattern {pattern[:80]!r} takes longer than {self._seconds:g} seconds to match; write it without"
                " nested repetitions"
            ) from None
        finally:
            self._left -= time.thread_time() - began
        return found is not None
