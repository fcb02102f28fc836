"""The gate's state in words: what it is, why, and what to do about it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from dlm_tui.document import Document, gate_probes, gate_samples
from dlm_tui.files import sha256_file
from dlm_tui.store.gate_files import WEIGHTS_NAME, GateConfig, read_gate_record
from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_reader import MetricsReader, weights_entropy
from dlm_tui.store.state import GateState, gate_state

# A gate that sends nearly everything one way: share of one adapter, and entropy as a part of ln N.
COLLAPSED_WEIGHT = 0.9
COLLAPSED_ENTROPY = 0.25


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
        "warnings": _warnings(store, state, entropy[0]),
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
        return "uniform", f"All adapters weigh the same{run}; enough tagged sections are there now: train the gate."
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
    if state.config is None:
        return None
    record = _matching_record(store, state.config) or {}
    base = record.get("base_model") or recorded_base
    if isinstance(base, str) and base != document.base_model:
        return f"the base was {base} then and is {document.base_model} now"
    names = state.config.adapter_names
    if names != document.adapter_names:
        return f"it knows {', '.join(names)} and the document declares {', '.join(document.adapter_names)}"
    recorded = record.get("probes")
    before = recorded if isinstance(recorded, dict) else state.sample_counts
    now = gate_samples(document)
    changed = [
        f"{name} had {before[name]} tagged sections and has {now[name]}"
        for name in names
        if name in before and before[name] != now[name]
    ]
    if changed:
        return "; ".join(changed)
    digest = record.get("probes_sha256")
    if digest is not None and digest != probes_digest(document):
        return "the prompts of its tagged sections are others now"
    return None


def probes_digest(document: Document) -> str:
    """SHA-256 of the declared adapters in order and of every (adapter, prompt) that trains the gate.

    As `tui_gate.json` keeps it in `probes_sha256`: the JSON text of [names, [[adapter, prompt], …]].
    """
    names = list(document.adapter_names)
    pairs = [[probe.adapter, probe.prompt] for probe in gate_probes(document) if probe.adapter in names]
    return hashlib.sha256(json.dumps([names, pairs]).encode()).hexdigest()


def _matching_record(store: Store, config: GateConfig) -> dict[str, Any] | None:
    """Our record, unless another tool replaced the gate after it was written."""
    record = read_gate_record(store)
    if record is None:
        return None
    written = record.get("gate_sha256")
    if config.mode != "trained":
        return record if written is None else None
    try:
        return record if written == sha256_file(store.gate_dir / WEIGHTS_NAME) else None
    except OSError:
        return None


def _warnings(store: Store, state: GateState, mean_entropy: float | None) -> list[str]:
    found = []
    if state.config is not None and state.config.mode == "trained" and not state.weights_stored:
        found.append("The gate's weights file is missing; train the gate again.")
    if state.mode != "trained" or state.last_run_id is None:
        return found
    top = max(state.events, key=lambda event: event.mean_weight, default=None)
    # That of the mean weights is an upper bound, for runs that did not record the prompts' own.
    nats = MetricsReader(store).prompt_entropies([state.last_run_id]).get(state.last_run_id, mean_entropy)
    if top is None or nats is None or len(state.events) < 2:
        return found
    if top.mean_weight >= COLLAPSED_WEIGHT and nats < COLLAPSED_ENTROPY * math.log(len(state.events)):
        found.append(
            f"The gate collapsed onto {top.adapter_name} (mean weight {top.mean_weight:.2f}, entropy {nats:.3f} nats): "
            "raise training.gate.entropy_lambda and balance the number of sections per adapter."
        )
    return found
