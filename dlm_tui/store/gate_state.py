"""A document's gate: what is stored, what routes prompts now, why, and what to do about it. No torch, reads only.

Everything that says something about the state of a gate (screen, commands, export) says it with `gate_status`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dlm_tui.counting import counted
from dlm_tui.document import document_side_file, gate_samples, lacking_samples, probes_digest
from dlm_tui.store.collapse import collapse_text, collapsed_onto
from dlm_tui.store.errors import ForeignGate, GateFileError, ManifestError
from dlm_tui.store.former_gates import run_of_gate
from dlm_tui.store.gate_files import WEIGHTS_NAME, GateConfig, check_gate_files, matching_record, read_gate_config
from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_reader import GateEvent, MetricsReader, weights_entropy
from dlm_tui.store.owed import REMEDY, was_cut
from dlm_tui.store.settled import current_path
from dlm_tui.store.trained_on import Identity, other_base
from dlm_tui.store.training_numbers import training_numbers

if TYPE_CHECKING:
    from dlm_tui.document import Document


@dataclass(frozen=True)
class GateState:
    """What the store holds. `mode` is "diverged" when the newest gate training diverged, else the configuration's.

    `config` is the gate that stays in force after a divergence, or None. `events` are the rows of the latest run that
    has any, in declared order, else as configured, else by name.
    """

    mode: str
    config: GateConfig | None = None
    events: list[GateEvent] = field(default_factory=list)
    last_run_id: int | None = None
    weights_stored: bool = False

    @property
    def sample_counts(self) -> dict[str, int]:
        """Probes per adapter of the newest gate run."""
        return {event.adapter_name: event.sample_count for event in self.events}


@dataclass(frozen=True)
class GateStatus:
    """`mode`: none, trained, uniform, diverged, stale, foreign (another base) or damaged; `reason`: why, one sentence.

    `in_force` is what routes prompts now: "trained" (the learned weights, also of a stale gate and of the one before a
    divergence), "uniform" or "none" (both 1/N). `samples` counts the document's probes per adapter, `lacking` those
    that an adapter needs before a gate is trained. `entropy` (nats) and `normalised_entropy` are of the last run's mean
    weights, None after a divergence. `warnings` are sentences.
    """

    mode: str
    reason: str
    in_force: str
    last_run_id: int | None = None
    lacking: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    entropy: float | None = None
    normalised_entropy: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """The reason when something can be done about it; empty for a gate that is trained and up to date."""
        return "" if self.mode == "trained" else self.reason

    def as_json(self) -> dict[str, Any]:
        """All fields, for `show --json`."""
        return asdict(self)


def gate_state(store: Store, adapter_names: Sequence[str] | None = None) -> GateState:
    """The state of the stored gate. Raises GateFileError, MetricsError."""
    current_path(store, store.gate_dir)  # one that a killed process was putting there is there first
    config = read_gate_config(store)
    reader = MetricsReader(store)
    last = reader.latest_gate_run()
    events = reader.gate_events(last) if last is not None else []
    if config is not None and (own := _own_events(store, config, last)):
        last, events = own[0].run_id, own
    order = list(adapter_names or (config.adapter_names if config is not None else ()))
    events.sort(key=lambda event: order.index(event.adapter_name) if event.adapter_name in order else len(order))
    if any(event.mode == "diverged" for event in events):
        mode = "diverged"
    else:
        mode = config.mode if config is not None else "none"
    return GateState(mode, config, events, last, (store.gate_dir / WEIGHTS_NAME).is_file())


def _own_events(store: Store, config: GateConfig, last: int | None) -> list[GateEvent]:
    """What a gate of ours says of itself whose process was killed before it could record it; else empty."""
    run = run_of_gate(store)
    record = matching_record(store, config) if run is not None and (last is None or run > last) else None
    means, counts = ((record or {}).get(key) for key in ("static_mean", "probes"))
    if run is None or not isinstance(means, dict) or not isinstance(counts, dict):
        return []
    return [
        GateEvent(run, name, float(means[name]), int(counts[name]), config.mode, at="")
        for name in config.adapter_names
        if name in means and name in counts
    ]


def gate_status(
    document: Document,
    store: Store,
    identity: Identity | None = None,
    hidden_size: int | None = None,
    *,
    recorded_base: str | None = None,
) -> GateStatus:
    """The status of the document's gate.

    With `identity` and `hidden_size` of the loaded base, the gate must have been trained on that base; without them the
    base's name is compared, where no name was recorded with the gate that of the manifest (`recorded_base`). Raises
    GateFileError and MetricsError for files that cannot be read.
    """
    state = gate_state(store, document.adapter_names)
    record = matching_record(store, state.config) if state.config is not None else None
    samples = gate_samples(document)
    lacking = lacking_samples(document)
    unusable = _unusable(document, store, state, record, identity, hidden_size, recorded_base)
    in_force = "none" if state.config is None or unusable is not None else state.config.mode
    mode, reason = unusable or _mode_and_reason(document, store, state, record, lacking, in_force)
    entropy = (None, None) if state.mode == "diverged" else weights_entropy([e.mean_weight for e in state.events])
    return GateStatus(
        mode, reason, in_force, state.last_run_id, lacking, samples, *entropy, _warnings(document, store, state)
    )


def refuse_foreign_gate(
    config: GateConfig,
    record: Mapping[str, object] | None,
    identity: Identity,
    hidden_size: int,
    *,
    allow_other_dtype: bool = False,
) -> None:
    """Raises ForeignGate when the gate was trained on another base than this one, saying which and what to do.

    `allow_other_dtype` takes the same weights in another type for the same base.
    """
    again = "Train the gate again (train --gate-only), or open the document with the base it was trained on."
    if config.mode == "trained" and config.input_dim != hidden_size:
        raise ForeignGate(
            f"The gate was trained on embeddings of {config.input_dim} numbers, the base {identity.id} "
            f"gives {hidden_size}. {again}"
        )
    if record is None or config.mode != "trained":
        return
    other = other_base(record, identity)
    if other is None:
        return
    if other.dtypes is None:
        trained_on = record.get("base_id") or "another base"
        raise ForeignGate(
            f"The gate was trained on {trained_on} with other {other.what} than the base {identity.id} has now. {again}"
        )
    if not allow_other_dtype:
        raise ForeignGate(
            f"The gate was trained on the same weights as {other.dtypes[0]}, the base {identity.id} has them as "
            f"{other.dtypes[1]}, which moves its weights a little. `allow_other_dtype = true` in the "
            f"document's .tui.toml uses it all the same. {again}"
        )


def staleness(document: Document, store: Store, config: GateConfig, record: Mapping[str, object] | None) -> str:
    """Why the stored gate no longer fits the document, in one sentence; empty while it does.

    With our record the probes are compared; another tool's gate has only its adapter names and sample counts.
    """
    names = document.adapter_names
    if tuple(names) != config.adapter_names:
        return (
            f"The gate was trained for {', '.join(config.adapter_names)}, "
            f"the document declares {', '.join(names) or 'no adapters'}: train the gate again."
        )
    before, now = _recorded_counts(store, config, record), gate_samples(document)
    changed = [
        f"{name} had {counted(before[name], 'prompt')} and has {now[name]}"
        for name in names
        if name in before and before[name] != now[name]
    ]
    if changed:
        return f"The document changed since the gate was trained ({'; '.join(changed)}): train the gate again."
    digest = (record or {}).get("probes_sha256")
    if digest is not None and digest != probes_digest(document):
        return "The document's gate prompts changed since the gate was trained: train the gate again."
    return ""


def cold_start_text(lacking: Mapping[str, int], floor: int) -> str:
    """Which adapters need how many more sections."""
    needs = ", ".join(f"{name} {count}" for name, count in lacking.items())
    return (
        f"Too few prompts to train a gate (cold_start_floor is {floor}): sections still needed: {needs}. "
        "Until then every adapter has the same weight."
    )


def diverged_text(in_force: str) -> str:
    """What happens after a divergence; `in_force` is the mode of the gate that stays: trained, uniform or none."""
    stays = (
        "no earlier gate can be used, so every adapter has the same weight"
        if in_force == "none"
        else f"the previous {in_force} gate stays in force"
    )
    return (
        f"The last gate training diverged (its loss was not finite): the adapters are committed, {stays}, "
        "and the next run tries again. Lower training.gate.lr if it happens again."
    )


def alarm_text(mode: str, reason: str, warning: str) -> str:
    """What a person has to know at once of a gate that was trained now (cold start, divergence, collapse), else empty.

    `mode` is trained, uniform or diverged; `reason` says why; `warning` is of a trained gate.
    """
    return " ".join(part for part in (reason if mode != "trained" else "", warning) if part)


def _unusable(
    document: Document,
    store: Store,
    state: GateState,
    record: Mapping[str, object] | None,
    identity: Identity | None,
    hidden_size: int | None,
    recorded_base: str | None,
) -> tuple[str, str] | None:
    """(mode, reason) of a stored gate that cannot route; None for one that can, or when there is none."""
    config = state.config
    if config is None:
        return None
    if identity is not None:
        try:
            width = config.input_dim if hidden_size is None else hidden_size
            allowed = document_side_file(document).allow_other_dtype
            refuse_foreign_gate(config, record, identity, width, allow_other_dtype=allowed)
        except ForeignGate as error:
            return "foreign", str(error)
    else:
        base = (record or {}).get("base_model") or recorded_base
        if isinstance(base, str) and base != document.base_model:
            return "foreign", (
                f"The gate was trained on the base {base}, the document names {document.base_model}: "
                "train the gate again."
            )
    try:
        check_gate_files(store, config)
    except GateFileError as error:
        return "damaged", str(error)
    if config.mode == "trained" and not state.weights_stored:
        return "damaged", f"{store.gate_dir / WEIGHTS_NAME} is missing: train the gate again."
    return None


def _mode_and_reason(
    document: Document,
    store: Store,
    state: GateState,
    record: Mapping[str, object] | None,
    lacking: Mapping[str, int],
    in_force: str,
) -> tuple[str, str]:
    if state.mode == "diverged":
        return "diverged", diverged_text(in_force)
    floor = document.training.gate.cold_start_floor
    cut = document.gate_enabled and was_cut(store)
    if state.config is None:
        if not document.gate_enabled:
            return "none", "The document does not enable a gate (training.gate.enabled)."
        if cut:
            return "none", f"The gate is not trained yet, and the adapters are: {REMEDY}."
        if lacking:
            return "none", f"The gate is not trained yet. {cold_start_text(lacking, floor)}"
        return "none", "The gate is not trained yet: train the document."
    if cut:
        return "stale", f"The gate is older than the adapters, it was not trained with them: {REMEDY}."
    changed = staleness(document, store, state.config, record)
    if changed:
        return "stale", changed
    if state.mode == "uniform":
        if lacking:
            return "uniform", cold_start_text(lacking, floor)
        return "uniform", "Every adapter has the same weight; there are enough prompts now: train the gate."
    probes = sum(state.sample_counts.values())
    prompts = f" on {counted(probes, 'prompt')}" if probes else ""
    return "trained", f"The gate was trained{_in_training(store, state)}{prompts}."


def _in_training(store: Store, state: GateState) -> str:
    """` in training 3`; empty where the gate's own files tell all that is known."""
    try:
        number = training_numbers(store).get(state.last_run_id or 0)
    except ManifestError:
        return ""  # what is wrong with the manifest is not the gate's
    return f" in training {number}" if number is not None else ""


def _recorded_counts(store: Store, config: GateConfig, record: Mapping[str, object] | None) -> dict[str, int]:
    recorded = (record or {}).get("probes")
    if isinstance(recorded, dict):
        return {str(name): int(count) for name, count in recorded.items() if isinstance(count, int)}
    events = gate_state(store, list(config.adapter_names)).events
    return {event.adapter_name: event.sample_count for event in events if event.mode == config.mode}


def _warnings(document: Document, store: Store, state: GateState) -> list[str]:
    if state.mode != "trained" or state.last_run_id is None:
        return []
    means = {event.adapter_name: event.mean_weight for event in state.events}
    nats = MetricsReader(store).prompt_entropies([state.last_run_id]).get(state.last_run_id)
    onto = collapsed_onto(means, nats, state.sample_counts)
    if onto is None:
        return []
    strength = document.training.gate.entropy_lambda
    return [collapse_text(onto, means[onto], nats, strength, state.sample_counts)]
