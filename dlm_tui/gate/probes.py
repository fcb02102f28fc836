"""What the gate is trained on, and what a stored gate says it was trained on. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dlm_tui.errors import DlmTuiError

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.store import GateConfig, Store

RECORD_FORMAT = 1


class ForeignGate(DlmTuiError):
    """The stored gate was trained on another base: its input means something else there."""


class Identity(Protocol):
    """What names a base: hashes are lower-case hex, `id` the name people know it by."""

    @property
    def id(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def tokenizer_sha256(self) -> str: ...


@dataclass(frozen=True)
class GateProbe:
    """A training prompt: its adapter, that adapter's index, the prompt and the line its section starts at."""

    adapter: str
    label: int
    prompt: str
    line: int


@dataclass(frozen=True)
class GateStatus:
    """`mode`: none, trained, uniform, diverged, stale or foreign; `reason`: one sentence, empty when all is well."""

    mode: str
    reason: str = ""


def trained_probes(document: Document) -> list[GateProbe]:
    """The document's probes of declared adapters, in document order."""
    from dlm_tui.document import gate_probes

    order = {name: index for index, name in enumerate(document.adapter_names)}
    return [
        GateProbe(probe.adapter, order[probe.adapter], probe.prompt, probe.section.start_line)
        for probe in gate_probes(document)
        if probe.adapter in order
    ]


def probe_counts(names: Sequence[str], probes: Sequence[GateProbe]) -> dict[str, int]:
    """Number of probes per declared adapter, zeros included."""
    counts = dict.fromkeys(names, 0)
    for probe in probes:
        counts[probe.adapter] += 1
    return counts


def missing_probes(counts: dict[str, int], floor: int) -> dict[str, int]:
    """How many more sections each adapter needs to reach `cold_start_floor`; empty when none does."""
    return {name: floor - count for name, count in counts.items() if count < floor}


def probes_digest(names: Sequence[str], probes: Sequence[GateProbe]) -> str:
    """SHA-256 of the adapter names in order and of every (adapter, prompt) in document order."""
    value = [list(names), [[probe.adapter, probe.prompt] for probe in probes]]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def fingerprint(identity: Identity) -> str:
    """The string under which embeddings of this base are kept."""
    return f"{identity.weights_sha256}:{identity.tokenizer_sha256}"


def check_base(config: GateConfig, record: Mapping[str, Any] | None, identity: Identity, hidden_size: int) -> None:
    """Raises ForeignGate when the gate was trained on another base than this one, saying which and what to do."""
    again = "Train the gate again (train --gate-only), or open the document with the base it was trained on."
    if config.mode == "trained" and config.input_dim != hidden_size:
        raise ForeignGate(
            f"The gate was trained on embeddings of {config.input_dim} numbers, the base {identity.id} "
            f"gives {hidden_size}. {again}"
        )
    if record is None or config.mode != "trained":
        return
    for key, now, what in (
        ("weights_sha256", identity.weights_sha256, "weights"),
        ("tokenizer_sha256", identity.tokenizer_sha256, "tokenizer"),
    ):
        if record.get(key) not in (None, now):
            trained_on = record.get("base_id") or "another base"
            raise ForeignGate(
                f"The gate was trained on {trained_on} with other {what} than the base {identity.id} has now. {again}"
            )


def staleness(document: Document, store: Store, config: GateConfig, record: Mapping[str, Any] | None) -> str:
    """Why the stored gate no longer fits the document, in one sentence; empty while it does.

    With our record the probes are compared; another tool's gate has only its adapter names and sample counts.
    """
    names = document.adapter_names
    if tuple(names) != config.adapter_names:
        return (
            f"The gate was trained for {', '.join(config.adapter_names)}, "
            f"the document declares {', '.join(names) or 'no adapters'}: train the gate again."
        )
    probes = trained_probes(document)
    now = probe_counts(names, probes)
    before = _recorded_counts(store, config, record)
    changed = [
        f"{name} had {before[name]} prompts and has {now[name]}"
        for name in names
        if name in before and before[name] != now[name]
    ]
    if changed:
        return f"The document changed since the gate was trained ({'; '.join(changed)}): train the gate again."
    digest = (record or {}).get("probes_sha256")
    if digest is not None and digest != probes_digest(names, probes):
        return "The document's gate prompts changed since the gate was trained: train the gate again."
    return ""


def _recorded_counts(store: Store, config: GateConfig, record: Mapping[str, Any] | None) -> dict[str, int]:
    from dlm_tui.store import gate_state

    recorded = (record or {}).get("probes")
    if isinstance(recorded, dict):
        return {str(name): int(count) for name, count in recorded.items() if isinstance(count, int)}
    events = gate_state(store, list(config.adapter_names)).events
    return {event.adapter_name: event.sample_count for event in events if event.mode == config.mode}
