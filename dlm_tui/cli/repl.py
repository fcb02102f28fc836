"""`dlm-tui repl DOC`: a conversation, a line each, every turn routed from its own words."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.cli.prompt import add_view_arguments, chosen_view, refuse_at_once, sampling_of
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import checked_text, read_prompts
from dlm_tui.output import emit, put, say

if TYPE_CHECKING:
    from dlm_tui.cli.repl_commands import Commands
    from dlm_tui.cli.repl_talk import Talk
    from dlm_tui.cli.repl_terminal import Terminal
    from dlm_tui.store import KeptAnswer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The view and the sampling, until a command changes them."""
    add_view_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answers on stdout (with --json one object a line), what is said about each on stderr; /exit or Ctrl-D leaves."""
    from dlm_tui.app.state import StateFile
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.cli.repl_commands import Commands
    from dlm_tui.cli.repl_talk import Talk

    refuse_at_once(args)
    session = open_session(args)
    talk = Talk(session, chosen_view(args, session), sampling_of(args, session), StateFile(Path(args.document)).answers)
    commands = Commands(talk)
    if sys.stdin.isatty():
        say("one turn a line; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        _converse(talk, commands, json=args.json)
    else:
        for line in read_prompts(None):
            _take(line, talk, commands, json=args.json, stoppable=False)
            if commands.leaving:
                break
    return 0


def _converse(talk: Talk, commands: Commands, *, json: bool) -> None:
    """Line by line from the terminal; what goes wrong with one is said, and the next is asked for."""
    from dlm_tui.app.config import state_path
    from dlm_tui.cli.repl_terminal import Terminal, Words

    def names(command: str) -> Sequence[str]:
        from dlm_tui.model.views import VIEWS

        trained = talk.session.model.names
        return {"/adapter": trained, "/view": (*VIEWS, *trained), "/gate": ("auto", "off")}.get(command, ())

    words = Words(tuple(commands.table), names)
    terminal = Terminal(state_path() / "repl_history", words, lambda: len(talk.turns))
    with _terminated_by(terminal):
        for line in terminal.lines():
            try:
                terminal.begun = _take(line, talk, commands, json=json, stoppable=True) or ""
            except KeyboardInterrupt:
                say("stopped before anything was written")
            except DlmTuiError as error:
                say(str(error))
            if commands.leaving:
                return


def _take(line: str, talk: Talk, commands: Commands, *, json: bool, stoppable: bool) -> str | None:
    """Answer a line or do what it says; the text with which the next line begins, if there is one."""
    line = checked_text(line, "the line")
    if not line.strip():
        return None
    if line.lstrip().startswith("/"):
        return commands.run(line)
    # a terminal shows the answer as it comes, everything else gets it whole
    streams = sys.stdout.isatty() and not json
    told = talk.say_to(line, (lambda text: put(text, end="")) if streams else (lambda _: None), stoppable=stoppable)
    if json:
        emit({**_as_json(told), "warnings": talk.session.warnings})
    else:
        put("" if streams else told.text)
    for sentence in talk.about(told):
        say(sentence)
    return None


def _as_json(told: KeptAnswer) -> dict[str, Any]:
    return {
        "prompt": told.prompt,
        "view": told.view,
        "weights": told.mix,
        "text": told.text,
        "tokens": len(told.token_ids),
        "reason": told.reason,
        "seed": told.seed,
        "temperature": told.temperature,
        "top_p": told.top_p,
        "turn": told.turn,
        "dropped": told.dropped,
        "prompt_tokens": told.prompt_tokens,
        "run_tokens": told.run_tokens,
    }


@contextmanager
def _terminated_by(terminal: Terminal) -> Iterator[None]:
    """SIGTERM ends the program and not just the line, and the terminal is left as it was."""
    before = signal.signal(signal.SIGTERM, lambda *_: terminal.end(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
