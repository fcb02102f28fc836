"""The server of an exported folder, as `serve.py` there starts it. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dlm_tui.errors import DlmTuiError
from dlm_tui.output import say
from dlm_tui.plain_numbers import read_numbers
from dlm_tui.serving import command
from dlm_tui.serving.llama import options
from dlm_tui.serving.llama.backend import ROWS, LlamaBackend
from dlm_tui.serving.llama.folder import LiveFolder


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Serve an exported folder until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="serve.py", description="Answer OpenAI clients, the gate deciding each mix.", allow_abbrev=False
    )
    read_numbers(parser)
    command.add_arguments(parser, rows=ROWS)
    options.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="tell the address as JSON on stdout")
    args = parser.parse_args(arguments)
    try:
        found = LiveFolder(folder)
        command.run(args, folder.name, lambda: open_backend(args, found))
    except DlmTuiError as error:
        say(f"serve.py: {error}")
        return error.exit_code
    return 0


def open_backend(args: argparse.Namespace, folder: LiveFolder) -> LlamaBackend:
    """The backend that `args` (rows, queue, grid, threads, context) ask for."""
    return LlamaBackend(
        folder,
        rows=args.rows,
        queue=args.queue,
        grid=args.grid,
        threads=args.threads,
        context_length=args.context,
    )
