"""What the adapters of a training do to their own sections: measured once they are in force, stored and told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlm_tui.counting import counted
from dlm_tui.document import Row
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import Cancelled, DlmTuiError
from dlm_tui.progress import Report, note, run_to_end, warn
from dlm_tui.scoring.own_effect import Passage, own_effect, spread
from dlm_tui.store import OwnEffect
from dlm_tui.store.adapter_history import record_effects
from dlm_tui.training.commit import FinishedRun

if TYPE_CHECKING:
    from dlm_tui.model import Base
    from dlm_tui.training.report import TrainOutcome
    from dlm_tui.training.request import TrainRequest

_log = logging.getLogger(__name__)


def measure_effects(request: TrainRequest, runs: Sequence[FinishedRun], outcome: TrainOutcome, report: Report) -> None:
    """Measure each run's adapter on a few of the sections it trained on; warn of one that learned next to nothing.

    What stops this, a person or an error, costs the figures alone: everything is trained and in force by now.
    """
    found: dict[str, tuple[int, OwnEffect]] = {}
    try:
        for run in runs:
            effect = _measured(request, run, report)
            if effect is not None:
                found[run.name] = run.version.version, effect
                outcome.adapters[run.name].effect = effect
    except (Cancelled, KeyboardInterrupt):
        note(report, "the rest of the effects is not measured: it was stopped")
    except DlmTuiError as error:
        warn(report, f"the adapters are in force, but their effect cannot be measured: {error}")
    try:
        record_effects(request.store, found)
    except (DlmTuiError, OSError) as error:
        _log.warning("the measured effects cannot be stored: %s", error)
    for run in runs:
        text = nothing_text(request, run, outcome.adapters[run.name].effect)
        if text:
            outcome.adapters[run.name].warning = text
            warn(report, text)


def nothing_text(request: TrainRequest, run: FinishedRun, effect: OwnEffect | None) -> str:
    """What to do about an adapter that learned next to nothing; empty for one that learned something."""
    if effect is None or not effect.nothing:
        return ""
    rate, epochs = run.plan.phases[0].learning_rate, request.document.training.num_epochs
    sections, steps = len(run.plan.rows.section_ids), sum(run.result.steps.values())
    return (
        f"{run.name} has learned next to nothing in {counted(steps, 'step')}: it changes its own answers by"
        f" {effect.kl:.4f} nats a token, {effect.nothing}. Raise its learning_rate (now {rate:g}) or"
        f" training.num_epochs (now {epochs}), or add sections (now {sections}), and train again."
    )


def _measured(request: TrainRequest, run: FinishedRun, report: Report) -> OwnEffect | None:
    """None for an adapter whose rows have no answer to look at."""
    from dlm_tui.model import load_peft_adapter

    rows = {row.section_id: row for row in (*run.plan.rows.train, *run.plan.rows.preference)}
    passages = [passage for row in rows.values() if (passage := _passage(row, request.base)) is not None]
    if not passages:
        return None
    adapter = load_peft_adapter(run.version.path, run.name, request.base)
    work = own_effect(request.base, adapter, spread(passages), seed_in_range(request.document.training.seed))
    return run_to_end(work, report)


def _passage(row: Row, base: Base) -> Passage | None:
    """The question and answer of a row; of a text its two halves."""
    if row.kind == "text":
        ids = base.passage(row.text)
        return Passage.cut(ids, len(ids) // 2)
    turns = row.messages or (("user", row.prompt), ("assistant", row.chosen))
    ids, question = base.conversation([{"role": role, "content": content} for role, content in turns])
    return Passage.cut(ids, question)
