"""One adapter's training as one piece of work, wherever it is done: here, in a fold of a sweep, on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.phases import Finetuned, OnStep
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.rows import AdapterRows

if TYPE_CHECKING:
    from dlm_tui.model import Base


@dataclass(frozen=True, kw_only=True)
class AdapterWork:
    """What to train on what. `prompts` are token ids that a selection looks at, None for the adapter's own rows."""

    plan: TrainingPlan
    adapter: AdapterPlan
    rows: AdapterRows
    prompts: list[list[int]] | None = None


def train_adapter(
    base: Base, work: AdapterWork, on_step: OnStep, checkpoints: AdapterCheckpoints | None = None
) -> Finetuned:
    """Train it, from the start or from a checkpoint. The result depends on the base and the work alone.

    Raises Diverged, DlmTuiError, and whatever `on_step` raises.
    """
    if work.adapter.parameterization == "pissa":
        from dlm_tui.training.pissa import finetune_pissa

        return finetune_pissa(base, work.plan, work.adapter, work.rows, on_step, checkpoints, work.prompts)
    from dlm_tui.training.finetune import finetune

    return finetune(base, work.plan, work.adapter, work.rows, on_step, checkpoints)
