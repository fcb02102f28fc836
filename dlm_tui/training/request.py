"""What a training is asked for. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlm_tui.training.plan import Parameterization, TrainingPlan, plan_training

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base
    from dlm_tui.store import Store


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train. `adapters` None means all; `gate_only` leaves the adapters alone.

    `document` includes the sections of its sources; `scan` is the finished pass that read them.
    """

    document: Document
    store: Store
    base: Base
    adapters: list[str] | None = None
    gate_only: bool = False
    parameterization: Parameterization = "lora"
    selection: str = "s_only"
    scan: SourceScan | None = None

    def plan(self) -> TrainingPlan:
        """What the adapters' training will do. Raises as `plan_training`."""
        return plan_training(
            self.document,
            base_modules=self.base.source.target_modules,
            adapters=self.adapters,
            parameterization=self.parameterization,
            selection=self.selection,
            weights=self.scan.weights if self.scan is not None else None,
        )
