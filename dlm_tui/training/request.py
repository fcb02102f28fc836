"""What a training is asked for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.document.prompt_sets import read_prompts
from dlm_tui.store.adapter_kind import AdapterKind, KindChoices, training_records
from dlm_tui.store.checkpoints import Asked
from dlm_tui.training.plan import TrainingPlan, plan_training, refuse_choices, refuse_undeclared

if TYPE_CHECKING:
    from dlm_tui.document import Document, TrainerSettings
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base
    from dlm_tui.store import Store
    from dlm_tui.training.adapter_work import Elsewhere


def refuse_before_base(
    document: Document,
    store: Store,
    adapters: Sequence[str] | None,
    choices: KindChoices | None = None,
    *,
    gate_only: bool = False,
) -> None:
    """What can be said before a base is loaded, which takes a while.

    Raises UsageError for an adapter that is not declared or cannot be trained as was chosen, ManifestError for a store
    that another base was trained in, OwnedElsewhere for one of another document, LockHeld naming who trains the
    document now, StoreError for a disk that is too full.
    """
    from dlm_tui.store import refuse_foreign_base, refuse_full_disk, refuse_other_document, run_lock

    refuse_undeclared(document, adapters)
    refuse_other_document(store, document)
    refuse_choices(document, adapters, choices or KindChoices(), kinds_before(document, store))
    refuse_foreign_base(store, document)
    refuse_full_disk(store, adapters or document.routing_names, gate_only=gate_only)
    if store.root.is_dir():
        with run_lock(store):
            pass


def kinds_before(document: Document, store: Store) -> dict[str, AdapterKind]:
    """How the versions in force were trained, by adapter."""
    return {name: record.kind for name, record in training_records(store, document.routing_names).items()}


@dataclass(frozen=True)
class CalibrationPrompts:
    """The prompts of a prompt set, the name of its file, and where that is."""

    source: str
    prompts: tuple[str, ...]
    path: str | None = None


def calibration_prompts(path: Path) -> CalibrationPrompts:
    """The prompts of a file of prompt sets. Raises PromptSetsError for one that cannot be read or holds none."""
    return CalibrationPrompts(path.name, tuple(read_prompts(path)), str(path.absolute()))


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train. `adapters` None means all; `gate_only` leaves the adapters alone.

    `choices` say how; what they leave open is as the versions in force were trained. `calibration` is the prompt set
    that selections look at, None for each adapter's own sections. `document` includes the sections of its sources;
    `scan` is the finished pass that read them. `base_folder` is what was given in the place of the document's base.
    `resume` goes on with the training that was interrupted, exactly; a
    checkpoint is written every `checkpoint_steps` optimiser steps of an adapter, or when `checkpoint_seconds` have
    passed. `trainer` takes the place of the side file's settings. With `elsewhere` the adapters are trained and the
    gate's prompts embedded by other machines; an adapter that is lost there begins again. `receipt`, a file of the
    store, says afterwards that the adapters were put in force: it is written in the same change.
    """

    document: Document
    store: Store
    base: Base
    adapters: list[str] | None = None
    gate_only: bool = False
    choices: KindChoices = field(default_factory=KindChoices)
    calibration: CalibrationPrompts | None = None
    scan: SourceScan | None = None
    base_folder: str | None = None
    resume: bool = False
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 600.0
    trainer: TrainerSettings | None = None
    elsewhere: Elsewhere | None = None
    receipt: Path | None = None

    def asked(self, plan: TrainingPlan, threads: int) -> Asked:
        """What has to be asked for again where this training is interrupted."""
        return Asked(
            threads=threads,
            trainer=plan.trainer,
            adapters=self.adapters,
            choices=self.choices,
            calibration=self.calibration.path if self.calibration is not None else None,
            base=self.base_folder,
            checkpoint_steps=self.checkpoint_steps,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def plan(self) -> TrainingPlan:
        """What the adapters' training will do. Raises as `plan_training`."""
        return plan_training(
            self.document,
            base_modules=self.base.source.target_modules,
            adapters=self.adapters,
            choices=self.choices,
            before=kinds_before(self.document, self.store),
            prompts=len(self.calibration.prompts) if self.calibration is not None else None,
            weights=self.scan.weights if self.scan is not None else None,
            trainer=self.trainer,
        )
