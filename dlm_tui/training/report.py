"""The outcome of a training run, as `dlm-tui train --json` prints it and the wire carries it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from dlm_tui.document.seeds import seed_in_range
from dlm_tui.losses import GATE, SFT, UNITS, Loss
from dlm_tui.progress import EarlyLook
from dlm_tui.store.effects import OwnEffect

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.gate import GateOutcome


class AdapterOutcome(msgspec.Struct, kw_only=True):
    """A trained adapter: its run, committed version, steps and losses; its kind in words (`pissa wanda r8 ±2`), and per
    layer how far down the spectrum a selection lies (0: the largest singular values).

    `train_losses` are those of the last step of every phase, in order; `train_loss` is the last of them, of whatever
    kind that is, `val_loss` one in nats per token.
    `early_answers` are the looks that were taken on the way. `effect` on its own sections is None where it was not
    measured; `warning` says that it learned next to nothing.
    """

    run_id: int
    version: int
    steps: int
    train_loss: float | None
    val_loss: float | None
    train_loss_kind: str | None = None
    train_loss_unit: str | None = None
    val_loss_unit: str = UNITS[SFT]
    train_losses: list[Loss] = []
    kind: str = ""
    selection: str | None = None
    tail_depth: dict[str, float] = {}
    early_answers: list[EarlyLook] = []
    effect: OwnEffect | None = None
    warning: str = ""


@dataclass(kw_only=True)
class TrainOutcome:
    """What a run left behind. `gate` is None when the document has no gate."""

    adapters: dict[str, AdapterOutcome] = field(default_factory=dict)
    gate: GateOutcome | None = None
    gate_error: str | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def gate_failed(self) -> bool:
        """Whether a gate was to be trained and is not: its training broke off or diverged."""
        return self.gate_error is not None or (self.gate is not None and self.gate.mode == "diverged")


class TrainedGate(msgspec.Struct, kw_only=True):
    """The gate after its training: `mode` is trained, uniform or diverged; loss in nats per prompt, entropy in nats."""

    mode: str
    reason: str
    run_id: int
    loss: float | None
    entropy: float | None
    mean_weights: dict[str, float]
    warning: str = ""
    loss_kind: str = GATE
    loss_unit: str = UNITS[GATE]


class TrainReport(msgspec.Struct, kw_only=True):
    """What a run left behind. `gate` is None when none was trained; `gate_error` says why one was not."""

    dlm_id: str
    seed: int
    adapters: dict[str, AdapterOutcome]
    gate: TrainedGate | None
    gate_error: str | None
    notes: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as a plain object."""
        return dict(msgspec.to_builtins(self))


def train_report(document: Document, outcome: TrainOutcome) -> TrainReport:
    """The outcome of training `document`."""
    gate = outcome.gate
    return TrainReport(
        dlm_id=document.dlm_id,
        seed=seed_in_range(document.training.seed),
        adapters=outcome.adapters,
        gate=None
        if gate is None
        else TrainedGate(
            mode=gate.mode,
            reason=gate.reason,
            run_id=gate.run_id,
            loss=gate.loss,
            entropy=gate.entropy,
            mean_weights=dict(gate.mean_weights),
            warning=gate.warning,
        ),
        gate_error=outcome.gate_error,
        notes=outcome.notes,
        seconds=outcome.seconds,
    )
