"""The outcome of a training run as `dlm-tui train --json` prints it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.training.pipeline import TrainOutcome


def outcome_json(document: Document, outcome: TrainOutcome) -> dict[str, Any]:
    """Adapters with run, version and losses (nats per token); the gate's mode and mean weights; seconds."""
    gate = outcome.gate
    return {
        "dlm_id": document.dlm_id,
        "seed": document.training.seed,
        "adapters": {name: asdict(item) for name, item in outcome.adapters.items()},
        "gate": None
        if gate is None
        else {
            "mode": gate.mode,
            "reason": gate.reason,
            "run_id": gate.run_id,
            "loss": gate.loss,
            "entropy": gate.entropy,
            "mean_weights": dict(gate.mean_weights),
            "warning": gate.warning,
        },
        "gate_error": outcome.gate_error,
        "notes": outcome.notes,
        "seconds": outcome.seconds,
    }
