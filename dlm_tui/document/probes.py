"""The texts that supervise the gate (formats.md section 11)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from dlm_tui.document.document import Document
from dlm_tui.document.errors import BodyError
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.sections import Section

PROSE_PROBE_CHARS = 2048
NO_GATE = "The document has no gate to train: set training.gate.enabled and declare at least two adapters."
NOTHING_BETWEEN = "The document declares fewer than two adapters: there is nothing to route between."


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that belongs to an adapter, and the section that says so."""

    adapter: str
    prompt: str
    section: Section


def gate_probes(document: Document) -> list[Probe]:
    """One probe per section with an adapter suffix, in document order, also for undeclared adapters.

    Malformed bodies give none.
    """
    probes: list[Probe] = []
    for section in document.sections:
        if section.adapter is None:
            continue
        prompt = _prompt(section)
        if prompt is not None:
            probes.append(Probe(section.adapter, prompt, section))
    return probes


def gate_samples(document: Document) -> dict[str, int]:
    """Probes per declared adapter, in declaration order."""
    counts = dict.fromkeys(document.adapter_names, 0)
    for probe in gate_probes(document):
        if probe.adapter in counts:
            counts[probe.adapter] += 1
    return counts


def lacking_samples(document: Document) -> dict[str, int]:
    """Adapter → how many more probes it needs to reach the cold-start floor; empty when none needs any."""
    floor = document.training.gate.cold_start_floor
    return {name: floor - count for name, count in gate_samples(document).items() if count < floor}


def probes_digest(document: Document) -> str:
    """SHA-256, lower-case hex, of the declared adapters in order and of every (adapter, prompt) that trains the gate.

    Of the JSON text of [names, [[adapter, prompt], …]]; `tui_gate.json` keeps it as `probes_sha256`.
    """
    names = list(document.adapter_names)
    pairs = [[probe.adapter, probe.prompt] for probe in gate_probes(document) if probe.adapter in names]
    return hashlib.sha256(json.dumps([names, pairs]).encode()).hexdigest()


def gate_mode(document: Document) -> Literal["trained", "uniform"]:
    """What training would give: `uniform` if any adapter has fewer probes than the cold-start floor."""
    return "trained" if document.adapter_names and not lacking_samples(document) else "uniform"


def _prompt(section: Section) -> str | None:
    try:
        if section.type == "instruction":
            return instruction_pairs(section)[0].question
        if section.type == "preference":
            return preference_triples(section)[0].prompt
    except BodyError:
        return None
    return section.content[:PROSE_PROBE_CHARS] if section.type == "prose" else None
