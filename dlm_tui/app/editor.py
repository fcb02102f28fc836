"""Opening a file at a line in the person's editor."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dlm_tui.system_errors import cause

_PLUS_LINE = {
    "vi",
    "vim",
    "nvim",
    "nano",
    "emacs",
    "emacsclient",
    "kak",
    "micro",
    "joe",
    "ne",
    "mg",
    "helix",
    "hx",
}


def editor_command(configured: str, path: Path, line: int) -> list[str]:
    """The command: the configured one, $VISUAL, $EDITOR or vi. `{line}` and `{file}` in it are filled in.

    Raises ValueError for one whose quotes do not close.
    """
    text = configured or os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    words = shlex.split(text) or ["vi"]
    if any("{file}" in word for word in words):
        return [word.replace("{line}", str(line)).replace("{file}", str(path)) for word in words]
    name = Path(words[0]).name
    if name in {"code", "codium", "cursor"}:
        return [*words, "--wait", "--goto", f"{path}:{line}"]
    if name in {"hx", "helix", "subl", "zed"}:
        return [*words, f"{path}:{line}"]
    return [*words, f"+{line}", str(path)] if name in _PLUS_LINE else [*words, str(path)]


def run_editor(command: Sequence[str]) -> str | None:
    """Run it on this terminal and wait; a sentence when it fails."""
    try:
        code = subprocess.run(list(command), check=False).returncode
    except OSError as error:
        return cause(error)
    except ValueError as error:  # a NUL in it
        return str(error)
    return f"it ended with code {code}" if code else None
