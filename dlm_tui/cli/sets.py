"""`dlm-tui sets DOC VERB`: the prompt sets of a document: in and out of files, run, compared with the run before."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.path_option import given_path
from dlm_tui.cli.set_running import add_run_arguments, chosen_set, document_runs, run_set
from dlm_tui.counting import counted
from dlm_tui.document import load
from dlm_tui.document.prompt_set_files import cases_csv, cases_jsonl, read_cases, write_cases
from dlm_tui.document.prompt_sets import PromptSets, Sets
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.given_files import NameTaken
from dlm_tui.input import read_text_file
from dlm_tui.output import emit, put, say, shown
from dlm_tui.store.set_comparison import (
    SORTS,
    MovedAnswer,
    compare_runs,
    drawn_otherwise,
    new_answers,
    sorted_answers,
    sorted_moves,
)
from dlm_tui.store.set_run_files import results_csv, results_jsonl
from dlm_tui.store.set_runs import SetAnswer, SetRun, run_before

_Make = Callable[[], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which set and file."""
    parser.add_argument("verb", choices=("list", "import", "export", "results", "run", "compare"))
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=given_path, help="of import, export and results: .csv or .jsonl"
    )
    parser.add_argument(
        "--replace", action="store_true", help="the set, instead of adding to it (import); the file (export, results)"
    )
    parser.add_argument("--sort", choices=SORTS, default="order", help="of run and compare: what moved most first")
    add_run_arguments(parser)
    owners = {"file": "import export results", "replace": "import export results", "sort": "run compare"}
    owners |= {"set_name": "import export results run compare"}
    owners |= dict.fromkeys(("views", "max_tokens", "temperature", "top_p", "seed"), "run")
    belong(parser, lambda args: str(args.verb), owners)


def run(args: argparse.Namespace) -> int:
    """The list, the file, or what moved, on stdout."""
    load(Path(args.document))  # nothing is listed of, or written beside, a document that is not there
    if args.verb == "list":
        return _list(args)
    if args.verb == "import":
        return _import(args)
    runs = document_runs(Path(args.document))
    if args.verb in ("results", "compare") and args.set_name is None:
        args.set_name = runs.last_set()
    name, cases = chosen_set(args)
    if args.verb == "export":
        return _write(args, {".csv": lambda: cases_csv(cases), ".jsonl": lambda: cases_jsonl(cases)})
    if args.verb == "run":
        done, earlier = run_set(args, name, cases)
        return _told(args, done, earlier)
    kept = runs.newest(name)
    if not kept:
        raise DlmTuiError(f"the set {name!r} was never run; `dlm-tui sets DOC run --set {name}` does it")
    if args.verb == "results":
        return _write(args, {".csv": lambda: results_csv(kept[0]), ".jsonl": lambda: results_jsonl(kept[0], cases)})
    return _told(args, kept[0], kept[1:])


def _list(args: argparse.Namespace) -> int:
    sets = PromptSets(Path(args.document)).cases()
    if args.json:
        emit(
            {
                name: [{"prompt": case.prompt, "expect": [str(item) for item in case.expect]} for case in cases]
                for name, cases in sets.items()
            }
        )
        return 0
    for name, cases in sets.items():
        expected = sum(len(case.expect) for case in cases)
        put(f"{name}  {counted(len(cases), 'prompt')}, {counted(expected, 'expectation')}")
    return 0


def _import(args: argparse.Namespace) -> int:
    if args.file is None or args.set_name is None:
        raise UsageError("name the file, and the set that it becomes: sets DOC import FILE --set NAME")
    file = PromptSets(Path(args.document))
    read = read_cases(read_text_file(args.file), args.file)
    known = {case.prompt for case in read}

    def take_in(sets: Sets) -> None:
        before = [] if args.replace else sets.get(args.set_name, [])
        sets[args.set_name] = [case for case in before if case.prompt not in known] + read

    sets = file.update(take_in)
    if args.json:
        emit({"set": args.set_name, "read": len(read), "prompts": len(sets[args.set_name])})
    else:
        say(f"{counted(len(read), 'prompt')} read into {args.set_name}, which has {len(sets[args.set_name])}")
    return 0


def _write(args: argparse.Namespace, forms: dict[str, _Make]) -> int:
    suffix = Path(args.file).suffix.lower() if args.file else ".jsonl" if args.json else ".csv"
    make = forms.get(suffix)
    if make is None:
        raise UsageError(f"{args.file} is neither .csv nor .jsonl")
    text = make()
    if args.file is None:
        put(text, end="")
        return 0
    try:
        write_cases(Path(args.file), text, replace=args.replace)
    except NameTaken as taken:
        raise UsageError(f"{taken}, or replace it with --replace") from taken
    if args.json:
        emit({"written": args.file})
    else:
        say(f"written to {args.file}")
    return 0


def _told(args: argparse.Namespace, after: SetRun, earlier: list[SetRun]) -> int:
    before = run_before(earlier, after)
    moved = sorted_moves(compare_runs(before, after), args.sort) if before else []
    new = sorted_answers(new_answers(before, after), args.sort)
    if args.json:
        emit(
            {
                "run": msgspec.to_builtins(after),
                "before": before.run_id if before else None,
                "moved": [_move_json(move) for move in moved],
                "new": [{"prompt": answer.prompt, "view": answer.view} for answer in new],
                "drawn_otherwise": drawn_otherwise(before, after) if before else "",
            }
        )
        return 0
    if before is None:
        for answer in new:
            put(f"[{answer.view}] {shown(answer.prompt, keep='')[:80]}: {shown(answer.text.strip(), keep='')[:200]}")
        first = "the first of this set under its views" if earlier else "the first of this set"
        say(f"run {after.run_id}: {first}, so there is nothing to compare with")
        return 0
    sys.stdout.write(f"{'weights':>8} {'answer':>8} {'log p of former':>16}  checks  view  prompt\n")
    for move in moved:
        logprob = "–" if move.logprob is None else f"{move.logprob:+.2f}"
        checks = f"{len(move.before.broken)}→{len(move.after.broken)}" if move.after.expected else "–"
        _put_row(f"{move.weight:.3f}", "changed" if move.changed else "same", logprob, checks, move.after)
    for answer in new:
        _put_row("–", "new", "–", str(len(answer.broken)) if answer.expected else "–", answer)
    changed = sum(move.changed for move in moved)
    more = f", {len(new)} new" if new else ""
    say(f"run {after.run_id} against run {before.run_id}: {changed} of {counted(len(moved), 'answer')} changed{more}")
    if otherwise := drawn_otherwise(before, after):
        say(f"run {before.run_id} was drawn otherwise ({otherwise}), which changes answers as well")
    return 0


def _put_row(weights: str, answer: str, logprob: str, checks: str, asked: SetAnswer) -> None:
    figures = f"{weights:>8} {answer:>8} {logprob:>16}  {checks:>6}"
    put(f"{figures}  {asked.view}  {shown(asked.prompt, keep='')[:80]}")


def _move_json(move: MovedAnswer) -> dict[str, object]:
    return {
        "prompt": move.after.prompt,
        "view": move.after.view,
        "weights_moved": move.weight,
        "changed": move.changed,
        "before": move.before.text,
        "after": move.after.text,
        "former_logprob_before": move.before.logprob,
        "former_logprob_after": move.after.former_logprob,
        "logprob_moved": move.logprob,
        "broken_before": move.before.broken,
        "broken_after": move.after.broken,
    }
