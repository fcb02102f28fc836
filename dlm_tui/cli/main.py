"""`dlm-tui`: the headless twin and the launcher. Only the module of the command that is asked for is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from dlm_tui import __version__
from dlm_tui.cli.belonging import refuse_idle_options
from dlm_tui.cli.copyable import copyable
from dlm_tui.cli.foreign import instead_of_command, instead_of_flag
from dlm_tui.cli.interrupt import EXIT_CODE, LINE
from dlm_tui.cli.path_option import given_path
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.input import with_home
from dlm_tui.meant import nearest
from dlm_tui.model.environment import CHILD_ENVIRONMENT, collect_rarely, quiet_libraries
from dlm_tui.output import STANDARD_OUTPUT, NarrationHandler, say, streams_are_there
from dlm_tui.plain_numbers import read_numbers
from dlm_tui.system_errors import system_sentence, unforeseen_sentence

COMMANDS = {
    "open": "open the workbench on a document (the default; without DOC: the most recent, else a choice)",
    "demo": "copy the demo document to a folder and open it",
    "new": "write a document to start from and open it",
    "show": "document, adapters, gate and store at a glance",
    "parse": "check documents and print what is in them",
    "train": "train the adapters and the gate",
    "sweep": "try settings, judged on held-out sections, and write the best into the document",
    "queue": "jobs that wait in line: list, add, pause, resume, cancel, move, run",
    "route": "gate weights of prompts",
    "prompt": "answer a prompt",
    "repl": "answer prompts, a line each, until the end of input",
    "eval": "judge the gate by k-fold cross-validation",
    "check": "run a set of prompts and tell which answers are not as expected",
    "sets": "prompt sets: list, run, compare with the run before; in and out of CSV and JSONL",
    "drift": "what freezing the gate into a static mix costs",
    "label": "add a labelled prompt to the document and retrain the gate",
    "adapter": "versions of the adapters: list, compare, use, back, keep, drop, prune; import and export one",
    "section": "list, add, edit, delete and retag the sections of the document",
    "score": "how much the adapters change the model, against noise",
    "metrics": "runs and gate events with entropy",
    "export": "write the adapters out for other programs",
    "pack": "put a document and what it learned into one file",
    "unpack": "take such a file apart on this machine",
    "verify": "check such a file without unpacking it",
    "serve": "an OpenAI-compatible server that routes every request",
    "traffic": "what the gate did with the requests that were served",
    "web": "show the workbench in a browser on this machine",
    "doctor": "versions, device, what is missing; with DOC: look through its store, --repair mends it",
}
# These take no document, or take it in a way of their own.
_OWN_ARGUMENTS = {"adapter", "open", "demo", "new", "parse", "unpack", "verify", "doctor", "web"}
_WITH_STORE = {"adapter", "open", "doctor"}
_WITHOUT_BASE = {"metrics", "traffic", "section", "pack"}
"""What opens no base takes no choice of how to keep one."""


class _Parser(argparse.ArgumentParser):
    """argparse quotes what it was given in its messages; control characters in that never reach the terminal."""

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        say(f"dlm-tui: {message} (`{self.prog} --help` tells the options)")
        self.exit(2)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"dlm-tui {command}", description=COMMANDS[command], allow_abbrev=False)
    read_numbers(parser)
    if command not in _OWN_ARGUMENTS:
        parser.add_argument("document", metavar="DOC", help="path of a .dlm document")
    if command not in _OWN_ARGUMENTS or command in _WITH_STORE:
        parser.add_argument("--adopt", action="store_true", help="DOC was moved here: its store is this document's")
    if command != "parse":
        parser.add_argument(
            "--home", metavar="DIR", type=given_path, help="where stores live (default: $DLM_HOME, else ~/.dlm)"
        )
        parser.add_argument(
            "--base", metavar="PATH", type=given_path, help="a model folder or GGUF file instead of the document's base"
        )
    if command not in _OWN_ARGUMENTS | _WITHOUT_BASE or command in _WITH_STORE:
        parser.add_argument(
            "--quantize",
            choices=("nf4", "fp4", "int8", "torchao-int8", "none"),
            help="keep the base's linear layers in 4 or 8 bits, from now on (it is remembered in DOC.tui.toml)",
        )
        parser.add_argument(
            "--offload",
            metavar="FOLDER",
            help="where a base without room in memory may lie on the disk, from now on (remembered, too), or none",
        )
    parser.add_argument("--json", action="store_true", help="machine-readable data on stdout, nothing else there")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _overview() -> str:
    lines = ["usage: dlm-tui [COMMAND] [DOC] [options]", "", "Commands:"]
    lines += [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    lines += ["", "`dlm-tui COMMAND --help` tells the options of a command. `dlm-tui DOC` opens DOC.", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 usage, 3 document invalid, 130 cancelled."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not streams_are_there():
        say("dlm-tui: standard output is closed; give it somewhere to go, for example > /dev/null")
        return 2
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # before or behind the command, which tells its own
        return _cancelled()
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        if error.filename != STANDARD_OUTPUT:  # --debug
            raise
        say(f"dlm-tui: {system_sentence(error)}")
        return _reader_gone()


def _command(arguments: list[str]) -> int:
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(_overview())
        return 0
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"dlm-tui {__version__}\n")
        return 0
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "open"
    unknown = instead_of_flag(command, arguments)
    if command == "open" and arguments and not Path(arguments[0]).exists():
        unknown = instead_of_command(arguments[0]) or _meant(arguments[0])
    if unknown is not None:
        say(f"dlm-tui: {unknown}")
        return 2
    parser = _parser(command)
    module = importlib.import_module(f"dlm_tui.cli.{command}")
    module.add_arguments(parser)
    try:
        args = parser.parse_intermixed_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _run(module.run, args)


def _meant(word: str) -> str | None:
    """A sentence for a word that is no file and nearly a command."""
    near = nearest(word, COMMANDS)
    return f"there is no file and no command {word!r}: did you mean `dlm-tui {near}`?" if near else None


def _run(run: object, args: argparse.Namespace) -> int:
    for name, value in CHILD_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when torch is loaded, which is later than this
    collect_rarely()
    quiet_libraries()
    log, handler = logging.getLogger("dlm_tui"), NarrationHandler()
    log.addHandler(handler)
    try:
        refuse_idle_options(args)
        if getattr(args, "adopt", False):
            from dlm_tui.cli.own_store import adopt_store

            adopt_store(args)
        flags = [flag for flag in ("quantize", "offload") if getattr(args, flag, None)]
        with _remembered(args, flags) if flags else contextlib.nullcontext():
            return int(run(args))  # type: ignore[operator]
    except DlmTuiError as error:
        if args.debug:
            raise
        say(f"dlm-tui: {_copyable(str(error), args)}")
        return error.exit_code
    except KeyboardInterrupt:
        return _cancelled()
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug or getattr(error, "filename", None) == STANDARD_OUTPUT:
            raise
        sentence = system_sentence(error) or unforeseen_sentence(error)
        say(f"dlm-tui: {_copyable(sentence, args)}")
        return 1
    finally:
        log.removeHandler(handler)


def _copyable(sentence: str, args: argparse.Namespace) -> str:
    return copyable(sentence, getattr(args, "document", None), getattr(args, "home", None))


@contextlib.contextmanager
def _remembered(args: argparse.Namespace, flags: Sequence[str]) -> Iterator[None]:
    """`--quantize` and `--offload` in the side file, where whoever loads the base looks; taken back where the base
    cannot be opened so. Raises UsageError."""
    from dlm_tui.document import read_side_file, set_side_value, side_file_path
    from dlm_tui.document.side_file import remove_empty_side_file
    from dlm_tui.model.registry import BaseUnavailable

    if not args.document or not Path(args.document).is_file():
        raise UsageError(f"--{flags[0]} needs the DOC that it is remembered for")
    path = side_file_path(Path(args.document))
    before, was_there = read_side_file(path), path.exists()
    for flag in flags:
        value = getattr(args, flag)
        if value != "none" and flag == "offload":
            value = str(with_home(value).absolute())
        set_side_value(path, flag, None if value == "none" else value)
    try:
        yield
    except BaseUnavailable:
        for flag in flags:
            set_side_value(path, flag, getattr(before, flag))
        if not was_there:
            remove_empty_side_file(path)  # another process may have put something in it since
        raise


def _cancelled() -> int:
    say(LINE)
    return EXIT_CODE


def _reader_gone() -> int:
    """Nobody takes our stdout any more; keep the interpreter from complaining about that at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
