"""Commands that a message names, as one can copy them."""

from __future__ import annotations

import re
from pathlib import Path

from dlm_tui.shell_word import shell_word

_COMMAND = re.compile(r"`(dlm-tui [^`]*)`")
_DOCUMENT = re.compile(r"\bDOC\b")
_WITHOUT_STORE = "dlm-tui parse "


def copyable(text: str, document: str | None, home: str | Path | None = None) -> str:
    """The text, with the document that was given where a command in backticks says DOC, and with the home that was
    given: without it the command would find another store."""
    if not document:
        return text
    given = shell_word(document)

    def whole(found: re.Match[str]) -> str:
        command = _DOCUMENT.sub(lambda _: given, found[1])
        if home and given in command and not command.startswith(_WITHOUT_STORE):
            command += f" --home {shell_word(home)}"
        return f"`{command}`"

    return _COMMAND.sub(whole, text)
