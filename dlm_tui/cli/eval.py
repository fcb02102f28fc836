"""`dlm-tui eval DOC`: the gate judged by k-fold cross-validation on the document's own prompts."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from dlm_tui.document.counts import checked_folds
from dlm_tui.output import emit, say

if TYPE_CHECKING:
    from dlm_tui.gate import EvaluationReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many folds."""
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="default: 5")


def run(args: argparse.Namespace) -> int:
    """The report on stdout; it is also kept in the store's metrics where that can be written."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.gate import evaluate_gate, record_evaluation
    from dlm_tui.progress import run_to_end

    checked_folds(args.folds)
    session = open_session(args, adapters=False)
    work = evaluate_gate(session.document, session.store, session.model, folds=args.folds)
    report = run_to_end(work, Narration(quiet=True))
    if problem := record_evaluation(session.store, report):
        say(f"the report is not kept: {problem}")
    if args.json:
        emit(report.as_json())
    else:
        _print(report)
    return 0


def _print(report: EvaluationReport) -> None:
    names = report.adapters
    out = sys.stdout.write
    out(f"{report.verdict}\n")
    if report.cold_start:
        out(f"{report.cold_start}\n")
    out(f"prompts      {report.prompts} in {report.folds} folds\n")
    out(f"accuracy     {report.accuracy:.3f} of held-out prompts\n")
    out(f"log loss     {report.log_loss:.4f} nats\n")
    advice = "" if report.temperature is None else f", temperature {report.temperature:.2f} would correct it"
    out(f"calibration  {report.ece:.4f} expected error{advice}\n")
    out(f"entropy      {report.mean_entropy:.4f} nats, {report.normalised_entropy:.2f} of ln N\n")
    out("mean weight  " + "  ".join(f"{name} {weight:.3f}" for name, weight in report.mean_weights.items()) + "\n")
    width = max(len(name) for name in names)
    out("confusion    " + " ".join(f"{name:>{width}}" for name in names) + "   (rows: meant, columns: routed)\n")
    for truth, row in report.confusion.items():
        out(f"{truth:>12} " + " ".join(f"{row[name]:>{width}}" for name in names) + "\n")
    for item in report.misrouted:
        prompt = "".join(char if char.isprintable() else " " for char in item.prompt)[:80]
        out(f"line {item.line}: {item.adapter} went to {item.routed} ({item.weight:.3f} left)  {prompt}\n")
