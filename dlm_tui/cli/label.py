"""`dlm-tui label DOC PROMPT --adapter NAME`: a prompt becomes a section of the document, and the gate learns it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlm_tui.input import checked_text
from dlm_tui.output import emit, say, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to label, and as what."""
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--adapter", metavar="NAME", required=True, help="the adapter that this prompt belongs to")
    parser.add_argument("--answer", metavar="TEXT", help="also a wanted answer; without it the prompt alone is added")


def run(args: argparse.Namespace) -> int:
    """What was added and what moved, on stdout."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.document.comparison import top
    from dlm_tui.document.prompt_sets import PromptSets
    from dlm_tui.gate import label_prompt
    from dlm_tui.progress import run_to_end

    path = Path(args.document)
    prompt = checked_text(args.prompt, "the prompt")
    answer = None if args.answer is None else checked_text(args.answer, "the answer")
    saved = PromptSets(path).usable_prompts()
    session = open_session(args, adapters=False)
    outcome = run_to_end(
        label_prompt(
            path,
            session.document,
            session.store,
            session.model,
            prompt,
            args.adapter,
            answer=answer,
            saved=saved,
        ),
        Narration(quiet=True),
    )
    gate = outcome.gate
    say(f"added at line {outcome.appended.line} of {path}; {gate.mode} gate, run {gate.run_id}. {gate.reason}")
    if gate.warning:
        say(gate.warning)
    if args.json:
        emit(
            {
                "document": str(path),
                "prompt": args.prompt,
                "adapter": args.adapter,
                "line": outcome.appended.line,
                "added": outcome.appended.added_text,
                "mode": gate.mode,
                "reason": gate.reason,
                "run_id": gate.run_id,
                "before": outcome.before,
                "after": outcome.after,
                "saved_prompts": len(saved),
                "changed": [
                    {"prompt": moved.text, "before": top(moved.before), "after": top(moved.after)}
                    for moved in outcome.changed
                ],
                "seconds": gate.seconds,
            }
        )
        return 0
    for name, weight in outcome.after.items():
        before = "" if outcome.before is None else f"{outcome.before.get(name, 0.0):.4f} → "
        sys.stdout.write(f"{name}  {before}{weight:.4f}\n")
    for moved in outcome.changed:
        sys.stdout.write(f"changed: {top(moved.before)} → {top(moved.after)}  {shown(moved.text, keep='')[:100]}\n")
    return 0
