"""The labelled prompts that the gate is trained on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm_tui.document import Document


@dataclass(frozen=True)
class GateProbe:
    """A training prompt: its adapter, that adapter's index, the prompt and the line its section starts at."""

    adapter: str
    label: int
    prompt: str
    line: int


def trained_probes(document: Document) -> list[GateProbe]:
    """The document's probes of declared adapters, in document order."""
    from dlm_tui.document import gate_probes

    order = {name: index for index, name in enumerate(document.adapter_names)}
    return [
        GateProbe(probe.adapter, order[probe.adapter], probe.prompt, probe.section.start_line)
        for probe in gate_probes(document)
        if probe.adapter in order
    ]
