"""What freezing the gate costs, as figures for the manifest."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from dlm_tui.errors import DlmTuiError
from dlm_tui.export.requests import Session
from dlm_tui.progress import Progress, map_steps
from dlm_tui.progress_words import stage_words

_TOP = ("kl", "kl_max", "changed_answers")
_KEPT = ("prompts", "answers", "answer_tokens", "uniform", "best_static", "kept", "verdict")


def measure_drift(
    session: Session, mix: Mapping[str, float] | None
) -> Generator[Progress, None, dict[str, Any] | None]:
    """The drift block of `mix` (None: the static mean): `kl`, `kl_max` and `changed_answers` of the frozen mix against
    the live gate (nats at the next token; share of greedy answers), and the same for the uniform and the best mix.

    Over the training prompts and those saved beside the document. None when no trained gate is in force.
    """
    from dlm_tui.document.prompt_sets import PromptSets
    from dlm_tui.gate import drift_report

    gate = session.gate
    if gate is None or gate.network is None:
        return None
    path = session.document.path
    prompts = PromptSets(path).usable_prompts() if path is not None else []
    work = drift_report(session.document, session.store, session.model, gate, prompts=prompts, frozen=mix, answers=True)
    try:
        report = yield from map_steps(work, _named)
    except DlmTuiError:
        return None  # adapters of the gate that are not trained: there is no live routing to compare with
    block = report.as_json()
    return {**{key: block["frozen"][key] for key in _TOP}, **{key: block[key] for key in _KEPT}}


def _named(step: Progress) -> Progress:
    """A stage of the measurement under its own name, as a part of what the export does."""
    return msgspec.structs.replace(step, text=f"measuring what freezing costs: {stage_words(step)}")
