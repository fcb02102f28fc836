"""`dlm-tui repl DOC`: a prompt a line, each answered by itself with the weights that the gate gives it."""

from __future__ import annotations

import argparse
import sys

from dlm_tui.cli.prompt import add_view_arguments, answer, chosen_view, refuse_two_mixes, sampling_of
from dlm_tui.input import read_prompts
from dlm_tui.output import emit, say

_LEAVE = {"/exit", "/quit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The view and the sampling, for all turns."""
    add_view_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answers on stdout (with --json one object a line), the weights of each on stderr; /exit or Ctrl+D leaves."""
    from dlm_tui.cli.open_session import open_session

    refuse_two_mixes(args)
    session = open_session(args)
    view, sampling = chosen_view(args, session), sampling_of(args, session)
    if sys.stdin.isatty():
        say("one prompt a line; every turn stands alone. /exit or Ctrl+D leaves.")
    for prompt in read_prompts(None):
        if prompt.strip().lower() in _LEAVE:
            break
        if not prompt.strip():
            continue
        told = answer(session, prompt, view, sampling, stream=not args.json)
        say(f"[{told['view']}] " + "  ".join(f"{name} {weight:.3f}" for name, weight in told["weights"].items()))
        if args.json:
            emit(told)
    return 0
