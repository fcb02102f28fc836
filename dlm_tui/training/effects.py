"""What the adapters of a training do to their own sections: measured once they are in force, stored and told."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from dlm_tui.counting import counted
from dlm_tui.document import Row
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import Cancelled, DlmTuiError
from dlm_tui.progress import Report, note, run_to_end, warn
from dlm_tui.scoring.own_effect import Passage, own_effect, spread
from dlm_tui.store import OwnEffect, read_manifest
from dlm_tui.store.adapter_history import find_version, record_effects
from dlm_tui.store.layout import FLAT
from dlm_tui.store.owed import owed_by_training, settle_effect

if TYPE_CHECKING:
    from dlm_tui.model import Base
    from dlm_tui.training.plan import AdapterPlan
    from dlm_tui.training.report import TrainOutcome
    from dlm_tui.training.request import TrainRequest


def measure_effects(request: TrainRequest, outcome: TrainOutcome, report: Report) -> None:
    """Measure what is owed, each adapter on a few of the sections it trained on; warn of one that learned nothing.

    What stops this, a person or an error, costs the figures alone: everything is trained and in force by now, and what
    is not measured is owed still.
    """
    owed = owed_by_training(request.store)
    versions = owed.effects if owed is not None else {}
    try:
        for plan in request.plan().adapters if versions else ():
            if plan.name in versions:
                _measure(request, plan, versions[plan.name], outcome, report)
    except (Cancelled, KeyboardInterrupt):
        note(report, "the rest of the effects is not measured: it was stopped (`train --resume` measures it)")
    except (DlmTuiError, OSError) as error:
        warn(report, f"the adapters are in force, but their effect cannot be measured: {error}")


def _measure(request: TrainRequest, plan: AdapterPlan, version: int, outcome: TrainOutcome, report: Report) -> None:
    """Measure one adapter, record it and tell."""
    store = request.store
    manifest = read_manifest(store)
    effect = _measured(request, plan, version, set(manifest.content_hashes) if manifest else set(), report)
    runs = manifest.training_runs if manifest else []
    steps = sum(run.steps for run in runs if (run.adapter_name or FLAT, run.adapter_version) == (plan.name, version))
    text = nothing_text(request, plan, steps, effect)
    if text:
        warn(report, text)
    if plan.name in outcome.adapters:
        outcome.adapters[plan.name].effect, outcome.adapters[plan.name].warning = effect, text
    elif effect is not None:
        note(report, f"{plan.name}@{version}: effect {effect.kl:.3g} nats a token")
    if effect is not None:
        record_effects(store, {plan.name: (version, effect)})
    settle_effect(store, plan.name)


def nothing_text(request: TrainRequest, plan: AdapterPlan, steps: int, effect: OwnEffect | None) -> str:
    """What to do about an adapter that learned next to nothing; empty for one that learned something."""
    if effect is None or not effect.nothing:
        return ""
    rate, epochs = plan.phases[0].learning_rate, request.document.training.num_epochs
    sections = len(plan.rows.section_ids)
    return (
        f"{plan.name} has learned next to nothing in {counted(steps, 'step')}: it changes its own answers by"
        f" {effect.kl:.4f} nats a token, {effect.nothing}. Raise its learning_rate (now {rate:g}) or"
        f" training.num_epochs (now {epochs}), or add sections (now {sections}), and train again."
    )


def _measured(
    request: TrainRequest, plan: AdapterPlan, version: int, trained: Container[str], report: Report
) -> OwnEffect | None:
    """None for an adapter whose rows have no answer to look at; `trained` are the sections of its training, of which
    the document may hold fewer by now."""
    from dlm_tui.model import load_peft_adapter

    rows = {row.section_id: row for row in (*plan.rows.train, *plan.rows.preference) if row.section_id in trained}
    passages = [passage for row in rows.values() if (passage := _passage(row, request.base)) is not None]
    if not passages:
        return None
    adapter = load_peft_adapter(find_version(request.store, plan.name, version).path, plan.name, request.base)
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
