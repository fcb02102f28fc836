"""Where headless commands write: data to stdout, narration to stderr."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def plain(value: Any) -> Any:
    """The same value with non-finite floats as None, so that the JSON is standard."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def emit(value: Any) -> None:
    """One JSON value on one line of stdout, in ASCII: no line separator and no terminal control passes unescaped."""
    sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
    sys.stdout.flush()


_line_is_open = False
"""Whether narration stands on the terminal's current line without its end."""


def say(text: str) -> None:
    """One line of narration on stderr; control characters in it are shown, never sent to the terminal."""
    global _line_is_open
    sys.stderr.write(("\n" if _line_is_open else "") + _shown(text) + "\n")
    _line_is_open = False
    sys.stderr.flush()


def say_in_place(text: str, *, done: bool) -> None:
    """Narration on a terminal's current line, over what is there; `done` leaves it standing."""
    global _line_is_open
    sys.stderr.write("\r" + _shown(text) + "\033[K" + ("\n" if done else ""))
    _line_is_open = not done
    sys.stderr.flush()


def _shown(text: str) -> str:
    return "".join(c if c == "\t" or c.isprintable() else repr(c)[1:-1] for c in text)
