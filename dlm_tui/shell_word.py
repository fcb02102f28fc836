"""A path in a command that a sentence names, so that it can be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

_ESCAPED = {"\\": "\\\\", "'": "\\'"}


def shell_word(path: str | Path) -> str:
    """A path as one types it for a command: neither an option nor, where it cannot be shown, another file."""
    text = str(path)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(_ESCAPED.get(c) or (c if c.isprintable() else repr(c)[1:-1]) for c in text)
    return f"$'{escaped}'"  # as bash, zsh and ksh read it
