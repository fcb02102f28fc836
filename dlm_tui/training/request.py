"""What a training is asked for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlm_tui.training.plan import Parameterization, TrainingPlan, plan_training, refuse_undeclared

if TYPE_CHECKING:
    from dlm_tui.document import Document, TrainerSettings
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base
    from dlm_tui.store import Store


def refuse_before_base(document: Document, store: Store, adapters: Sequence[str] | None) -> None:
    """What can be said before a base is loaded, which takes a while.

    Raises UsageError for an adapter that is not declared, ManifestError for a store that another base was trained in,
    OwnedElsewhere for one of another document, LockHeld naming who trains the document now, StoreError for a disk that
    is too full.
    """
    from dlm_tui.store import refuse_foreign_base, refuse_full_disk, refuse_other_document, run_lock

    refuse_undeclared(document, adapters)
    refuse_other_document(store, document)
    refuse_foreign_base(store, document)
    refuse_full_disk(store)
    if store.root.is_dir():
        with run_lock(store):
            pass


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train. `adapters` None means all; `gate_only` leaves the adapters alone.

    `document` includes the sections of its sources; `scan` is the finished pass that read them. `resume` goes on with
    the training that was interrupted, exactly; a checkpoint is written every `checkpoint_steps` optimiser steps of an
    adapter, or when `checkpoint_seconds` have passed. `trainer` takes the place of the side file's settings.
    """

    document: Document
    store: Store
    base: Base
    adapters: list[str] | None = None
    gate_only: bool = False
    parameterization: Parameterization = "lora"
    selection: str = "s_only"
    scan: SourceScan | None = None
    resume: bool = False
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 600.0
    trainer: TrainerSettings | None = None

    def plan(self) -> TrainingPlan:
        """What the adapters' training will do. Raises as `plan_training`."""
        return plan_training(
            self.document,
            base_modules=self.base.source.target_modules,
            adapters=self.adapters,
            parameterization=self.parameterization,
            selection=self.selection,
            weights=self.scan.weights if self.scan is not None else None,
            trainer=self.trainer,
        )
