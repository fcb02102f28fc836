"""`dlm-tui check DOC --set NAME`: a set of prompts as a regression test."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_tui.cli.set_running import add_run_arguments, chosen_set, run_set
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, say, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The set and how it is run."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Which answers do not meet what is expected of them, and why, on stdout; 1 if there is one."""
    load(Path(args.document))
    name, cases = chosen_set(args)
    expected = sum(len(case.expect) for case in cases)
    if not expected:
        raise UsageError(f"nothing is expected of the answers to the set {name!r}, so there is nothing to check")
    done, _ = run_set(args, name, cases)
    failed = done.failed
    if args.json:
        emit(
            {
                "document": args.document,
                "set": name,
                "run": done.run_id,
                "versions": done.versions,
                "seed": done.seed,
                "prompts": len(cases),
                "answers": len(done.answers),
                "expectations": sum(answer.expected for answer in done.answers),
                "passed": not failed,
                "failed": [
                    {
                        "prompt": answer.prompt,
                        "view": answer.view,
                        "text": answer.text,
                        "weights": answer.weights,
                        "why": answer.broken,
                    }
                    for answer in failed
                ],
            }
        )
        return 1 if failed else 0
    for answer in failed:
        for why in answer.broken:
            sys.stdout.write(f"FAILED [{answer.view}] {shown(answer.prompt, keep='')[:100]}: {shown(why, keep='')}\n")
    good = sum(1 for answer in done.answers if answer.expected and not answer.broken)
    say(f"{name}: {good} of {sum(1 for answer in done.answers if answer.expected)} answers are as expected")
    return 1 if failed else 0
