"""`dlm-tui [DOC]`: open the workbench."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_tui.cli.launch import launch, need_terminal
from dlm_tui.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One optional document."""
    parser.add_argument("document", metavar="DOC", nargs="?", help="path of a .dlm document")


def run(args: argparse.Namespace) -> int:
    """Open DOC, else the most recent document, else ask what to begin with."""
    if args.json:
        raise UsageError("the workbench is a screen; use `dlm-tui show DOC --json` for data")
    if args.document:
        return launch(Path(args.document), args)
    need_terminal()
    from dlm_tui.app import recent_document

    recent = recent_document()
    if recent is not None:
        return launch(recent, args)
    from dlm_tui.app import ask_for_start

    start = ask_for_start()
    if isinstance(start, int):
        return start
    if start == "demo":
        from dlm_tui.cli.demo import place_demo

        start = place_demo(Path("dlm-demo"))
    return launch(Path(start), args, train_if_untrained=True)
