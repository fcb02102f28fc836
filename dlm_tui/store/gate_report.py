"""The gate's state in words: what it is, why, and what to do about it."""

from __future__ import annotations

from typing import Any

from dlm_tui.document import Document, gate_mode, gate_probes, gate_samples
from dlm_tui.store.gate_files import read_gate_record
from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_reader import MetricsReader, weights_entropy
from dlm_tui.store.state import GateState, gate_state

# A gate that sends nearly everything one way: share of one adapter, and entropy as a part of ln N.
COLLAPSED_WEIGHT = 0.95
COLLAPSED_ENTROPY = 0.1


def describe_gate(document: Document, store: Store, recorded_base: str | None = None) -> dict[str, Any]:
    """`mode` none, trained, uniform, diverged or stale, with `reason` as one sentence; reads only.

    Further keys: `in_force` (what routes now), `last_run_id`, `lacking` (adapter → sections it lacks for a trained
    gate, empty if none), `samples` (probes per adapter in the document now), `entropy` in nats and
    `normalised_entropy` of the last run's mean weights (None when diverged), `warnings` (sentences).
    `recorded_base` is the base of the manifest. Raises GateFileError, MetricsError.
    """
    state = gate_state(store, document.adapter_names)
    samples = gate_samples(document)
    floor = document.training.gate.cold_start_floor
    lacking = {name: floor - count for name, count in samples.items() if count < floor}
    mode, reason = _mode_and_reason(document, store, state, lacking, recorded_base)
    diverged = state.mode == "diverged"
    entropy = (None, None) if diverged else weights_entropy([event.mean_weight for event in state.events])
    return {
        "mode": mode,
        "in_force": state.in_force,
        "reason": reason,
        "last_run_id": state.last_run_id,
        "lacking": lacking,
        "samples": samples,
        "entropy": entropy[0],
        "normalised_entropy": entropy[1],
        "warnings": _warnings(store, state, entropy[1]),
    }


def _mode_and_reason(
    document: Document, store: Store, state: GateState, lacking: dict[str, int], recorded_base: str | None
) -> tuple[str, str]:
    run = f" in run {state.last_run_id}" if state.last_run_id is not None else ""
    if state.mode == "diverged":
        kept = (
            "the gate trained before it stays in force"
            if state.config is not None
            else "no earlier gate exists, so all adapters weigh the same"
        )
        return "diverged", f"Training the gate diverged{run}: {kept}; train it again, with a smaller gate.lr."
    if state.mode == "none":
        return "none", _why_none(document, store, lacking)
    change = _what_changed(document, store, state, recorded_base)
    if change:
        return "stale", f"The gate was last trained{run}, but {change}; train it again."
    if state.mode == "uniform":
        if lacking:
            needs = ", ".join(f"{name} lacks {count} more" for name, count in lacking.items())
            floor = document.training.gate.cold_start_floor
            return "uniform", (
                f"All adapters weigh the same: a gate needs {floor} tagged sections per adapter and {needs}."
            )
        return "uniform", f"All adapters weigh the same: the gate was left uniform{run}."
    probes = sum(state.sample_counts.values())
    over = f" on {probes} prompts" if probes else ""
    return "trained", f"The gate was trained{run}{over}."


def _why_none(document: Document, store: Store, lacking: dict[str, int]) -> str:
    if not document.gate_enabled:
        return "The document does not ask for a gate (training.gate.enabled)."
    if not store.exists():
        return "Nothing was trained yet: the document has no store."
    if lacking:
        needs = ", ".join(f"{name} lacks {count} more" for name, count in lacking.items())
        return f"No gate was trained yet; with the sections of now it would stay uniform: {needs}."
    return "No gate was trained yet."


def _what_changed(document: Document, store: Store, state: GateState, recorded_base: str | None) -> str | None:
    """What makes the stored gate out of date, as a clause, or None."""
    record = read_gate_record(store) or {}
    base = record.get("base_model") or recorded_base
    if isinstance(base, str) and base != document.base_model:
        return f"the base was {base} then and is {document.base_model} now"
    names = state.config.adapter_names if state.config is not None else ()
    if set(names) != set(document.adapter_names):
        return f"it knows {', '.join(names)} and the document declares {', '.join(document.adapter_names)}"
    if record.get("document_sha256") == document.sha256:
        return None
    before = record.get("probes")
    if isinstance(before, dict):
        now = {probe.section.section_id: probe.adapter for probe in gate_probes(document)}
        now = {key: name for key, name in now.items() if name in names}
        added = sum(key not in before for key in now)
        gone = sum(key not in now for key in before)
        moved = sum(before[key] != now[key] for key in now if key in before)
        if added or gone or moved:
            return f"since then {added} tagged sections came, {gone} went and {moved} changed adapter"
    else:
        # Another tool's gate: all that is known of its sections is how many there were per adapter.
        counts = state.sample_counts
        now_counts = gate_samples(document)
        if counts and any(now_counts.get(name, 0) != count for name, count in counts.items()):
            return "the number of tagged sections per adapter is another one now"
    if state.config is not None and document.gate_enabled and gate_mode(document) != state.config.mode:
        return f"with the settings of now it would be {gate_mode(document)} instead of {state.config.mode}"
    return None


def _warnings(store: Store, state: GateState, normalised: float | None) -> list[str]:
    found = []
    if state.config is not None and state.config.mode == "trained" and not state.weights_stored:
        found.append("The gate's weights file is missing; train the gate again.")
    if state.mode != "trained" or state.last_run_id is None:
        return found
    top = max(state.events, key=lambda event: event.mean_weight, default=None)
    final = MetricsReader(store).gate_steps(state.last_run_id)[-1:]
    trained_entropy = final[0]["entropy"] if final else None
    one_sided = top is not None and top.mean_weight >= COLLAPSED_WEIGHT
    if one_sided and normalised is not None and normalised < COLLAPSED_ENTROPY and top is not None:
        at_end = f", final entropy {trained_entropy:.3f} nats" if isinstance(trained_entropy, float) else ""
        found.append(
            f"The gate collapsed onto {top.adapter_name} (mean weight {top.mean_weight:.2f}{at_end}): raise "
            "training.gate.entropy_lambda and balance the number of sections per adapter."
        )
    return found
