"""`dlm-tui web DOC`: the same program in a browser, on this machine only, without the internet."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.errors import DlmTuiError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A document and where to listen."""
    parser.add_argument("document", metavar="DOC", help="path of a .dlm document")
    parser.add_argument("--port", type=int, default=8000, help="port on the loopback address (default 8000)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises DlmTuiError when the extra is missing or the port is taken."""
    from dlm_tui.document import load
    from dlm_tui.store import resolve_home

    if not 0 <= args.port <= 65535:
        raise UsageError("--port is between 0 and 65535")
    path = Path(args.document).resolve()
    load(path)
    try:
        from dlm_tui.app.web import serve
    except ModuleNotFoundError as error:
        raise DlmTuiError(
            f"the browser screen needs the extra package {error.name}: pip install 'dlm-tui[web]'"
        ) from None
    return serve(path, resolve_home(args.home), args.base, args.port)
