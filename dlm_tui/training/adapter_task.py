"""One adapter of a training: what was asked, the plan, and its rows, as everything that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dlm_tui.store.adapter_kind import TEXT_SELECTIONS
from dlm_tui.training.adapter_work import AdapterWork
from dlm_tui.training.checkpoints import AdapterCheckpoints, CheckpointEvery, fingerprint
from dlm_tui.training.commit import pinned_versions
from dlm_tui.training.early_answers import early_prompts
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.request import TrainRequest
from dlm_tui.training.rows import AdapterRows


@dataclass(frozen=True)
class AdapterTask:
    """What is to be done for one adapter of the plan."""

    request: TrainRequest
    plan: TrainingPlan
    adapter: AdapterPlan
    rows: AdapterRows

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.adapter.name

    @property
    def steps(self) -> int:
        """Optimiser steps of all its phases."""
        return sum(self.plan.steps(self.rows.of(phase), phase) for phase in self.adapter.phases)

    @property
    def calibrated_on(self) -> str | None:
        """The prompt set that the adapter's selection looks at, None where it looks at the adapter's own rows."""
        calibration = self.request.calibration
        return calibration.source if calibration and self.adapter.selection in TEXT_SELECTIONS else None

    @property
    def fingerprint(self) -> str:
        """Of all that decides what the adapter becomes."""
        own = {key: value for key, value in vars(self.adapter).items() if key != "rows"}
        prompts = self.request.calibration.prompts if self.request.calibration and self.calibrated_on else None
        identity = self.request.base.identity.key
        return fingerprint(self.plan.deciding(), own, vars(self.rows), prompts, identity, pinned_versions())

    @property
    def details(self) -> dict[str, Any]:
        """What the metrics keep of its kind of training, beside its parameterization."""
        adapter = self.adapter
        details = {
            "selection": adapter.selection,
            "rank": adapter.rank,
            "coefficient": adapter.coefficient if adapter.signed else None,
            "calibration": self.calibrated_on,
            "settings": self.plan.settings(adapter),
        }
        return {key: value for key, value in details.items() if value is not None}

    @property
    def log_text(self) -> dict[str, Any]:
        """The plan as the run's log begins with it."""
        adapter, rows = self.adapter, self.rows
        return {
            "adapter": adapter.name,
            "parameterization": adapter.parameterization,
            "selection": adapter.selection,
            "rank": adapter.rank,
            "signed": adapter.coefficient if adapter.signed else None,
            "rows": len(rows.train),
            "validation_rows": len(rows.validation),
            "preference_rows": len(rows.preference),
            "base": self.request.base.identity.id,
            "settings": self.plan.settings(adapter),
        }

    def work(self) -> AdapterWork:
        """The same for whoever trains it, here or on another machine."""
        prompts = self._calibration_ids() if self.calibrated_on else None
        asks = self.plan.trainer.early_answers
        asked = early_prompts(self.adapter.rows, self.rows, self.request.base) if asks else None
        return AdapterWork(plan=self.plan, adapter=self.adapter, rows=self.rows, prompts=prompts, asked=asked)

    def checkpoints(self, run_id: int) -> AdapterCheckpoints:
        """Where the run keeps how far it is, and what an earlier try left there. Raises what opening them raises."""
        request = self.request
        return AdapterCheckpoints.open(
            request.store,
            self.name,
            self.fingerprint,
            run_id,
            self.steps,
            CheckpointEvery(steps=request.checkpoint_steps, seconds=request.checkpoint_seconds),
            request.resume,
            request.asked(self.plan, torch.get_num_threads()),
        )

    def _calibration_ids(self) -> list[list[int]]:
        """The prompts of the prompt set as the base is asked them, cut as training rows are."""
        prompts = self.request.calibration.prompts if self.request.calibration else ()
        system = self.request.document.system_prompt
        return [self.request.base.chat(prompt, system)[: self.rows.limit] for prompt in prompts]
