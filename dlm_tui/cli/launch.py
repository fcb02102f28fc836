"""From a command to the screen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_tui.cli.interrupt import leave_interrupts_to_the_screen
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.input import is_utf8
from dlm_tui.shell_word import shell_word


def launch(document: Path, args: argparse.Namespace, *, train_if_untrained: bool = False) -> int:
    """Check that there is a file to open, then hand over to the screen."""
    if not document.exists():
        from dlm_tui.document import meant_document

        raise DlmTuiError(f"{document} does not exist{meant_document(document)}")
    if document.is_dir():
        raise DlmTuiError(f"{document} is a folder, not a document")
    if not is_utf8(str(document.absolute())):
        raise DlmTuiError(f"the screen needs a path that is UTF-8 text, which {document} is not: rename it")
    if document.name.endswith(".dlm.pack"):
        unpack = f"dlm-tui unpack {shell_word(document)} --open"
        raise UsageError(f"{document} is a pack: `{unpack}` takes it apart and opens it")
    need_terminal()
    from dlm_tui.document.in_place import finish_cut_change

    finish_cut_change(document)  # what it has to say stands in the terminal, and not under the screen
    from dlm_tui.app import run as run_app
    from dlm_tui.store import resolve_home

    return run_app(document, resolve_home(args.home), args.base, train_if_untrained=train_if_untrained)


def need_terminal() -> None:
    """Raises UsageError when there is no terminal to draw on, before anything is copied or loaded; Ctrl+C is the
    screen's from here on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the workbench needs a terminal; `dlm-tui --help` lists the headless commands")
    leave_interrupts_to_the_screen()
