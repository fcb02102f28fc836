"""`python -m dlm_tui.app DOC`: the screen itself, without the checks for a terminal; the browser server starts it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_tui.app import run
from dlm_tui.errors import DlmTuiError
from dlm_tui.output import say
from dlm_tui.store import resolve_home


def main() -> int:
    """Open the workbench; errors are one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="dlm-tui")
    parser.add_argument("document", type=Path)
    parser.add_argument("--home")
    parser.add_argument("--base")
    args = parser.parse_args()
    try:
        return run(args.document, resolve_home(args.home), args.base)
    except DlmTuiError as error:
        say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
