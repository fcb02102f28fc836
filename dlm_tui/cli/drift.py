"""`dlm-tui drift DOC`: what freezing the gate into one mix costs, measured on the training and the saved prompts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.output import emit

if TYPE_CHECKING:
    from dlm_tui.gate import DriftReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> int:
    """The report on stdout."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.document.prompt_sets import PromptSets
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.gate import drift_report
    from dlm_tui.progress import run_to_end

    saved = PromptSets(Path(args.document)).usable_prompts()
    session = open_session(args)
    if session.gate is None and session.gate_error:
        raise DlmTuiError(session.gate_error)
    work = drift_report(session.document, session.store, session.model, session.gate, prompts=saved)
    report = run_to_end(work, Narration(quiet=True))
    if args.json:
        emit(report.as_json())
    else:
        _print(report)
    return 0


def _print(report: DriftReport) -> None:
    out = sys.stdout.write
    out(f"{report.verdict}\n")
    out(f"compared on {report.training_prompts} training and {report.saved_prompts} saved prompts")
    out(f"; answers of {report.answers} of them, {report.answer_tokens} tokens each\n")
    for row, title in (
        (report.frozen, "static mean"),
        (report.uniform, "uniform"),
        (report.best_static, "best frozen mix"),
    ):
        mix = "  ".join(f"{name} {weight:.3f}" for name, weight in row.mix.items())
        out(f"{title:<16} KL {row.kl:.4f} nats (worst {row.kl_max:.4f}), ")
        out(f"{row.changed_answers:.0%} of answers change   {mix}\n")
