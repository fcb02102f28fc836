"""Commands that a message names, as one can copy them."""

from __future__ import annotations

import re

from dlm_tui.shell_word import shell_word

_COMMAND = re.compile(r"`dlm-tui [^`]*`")
_DOCUMENT = re.compile(r"\bDOC\b")


def copyable(text: str, document: str | None) -> str:
    """The text, with the document that was given where a command in backticks says DOC."""
    if not document:
        return text
    given = shell_word(document)
    return _COMMAND.sub(lambda command: _DOCUMENT.sub(lambda _: given, command[0]), text)
