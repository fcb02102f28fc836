"""The honest state of a document's gate. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm_tui.gate.messages import cold_start_text, diverged_text
from dlm_tui.gate.probes import (
    ForeignGate,
    GateStatus,
    Identity,
    check_base,
    missing_probes,
    probe_counts,
    staleness,
    trained_probes,
)

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.store import Store


def gate_status(
    document: Document, store: Store, identity: Identity | None = None, hidden_size: int | None = None
) -> GateStatus:
    """State and reason: none, trained, uniform, diverged, stale, or foreign when the base is another one.

    Reads only. Raises GateFileError and MetricsError for damaged files.
    """
    from dlm_tui.store import gate_state, read_gate_record

    state = gate_state(store, list(document.adapter_names))
    config = state.config
    if state.mode == "diverged":
        return GateStatus("diverged", diverged_text(state.in_force))
    if config is None:
        if not document.gate_enabled:
            return GateStatus("none", "The document does not enable a gate (training.gate.enabled).")
        return GateStatus("none", "The gate is not trained yet: train the document.")
    record = read_gate_record(store)
    if identity is not None:
        try:
            check_base(config, record, identity, hidden_size if hidden_size is not None else config.input_dim)
        except ForeignGate as error:
            return GateStatus("foreign", str(error))
    changed = staleness(document, store, config, record)
    if changed:
        return GateStatus("stale", changed)
    if config.mode == "uniform":
        floor = document.training.gate.cold_start_floor
        missing = missing_probes(probe_counts(document.adapter_names, trained_probes(document)), floor)
        text = cold_start_text(missing, floor) if missing else "Enough prompts are there now: train the gate."
        return GateStatus("uniform", text)
    return GateStatus("trained")
