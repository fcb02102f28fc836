"""Documents with trained adapters on tiny random bases, opened as the program opens them, for the export tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dlm_tui.document import load
from dlm_tui.export import ExportRequest, ExportResult, export_document
from dlm_tui.gate import Gate, GateNetwork, save_gate
from dlm_tui.model import Adapter, LowRank, save_peft_adapter
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import GateConfig, Store, commit_version, new_version
from tests.tiny_models import random_adapter, target_names, tiny_base

NAMES = ("tone", "facts", "style")
HEAD = """---
dlm_id: 01JEXPXRTTESTSEXPXRTTESTSE
dlm_version: 15
base_model: hf:test/{architecture}
system_prompt: {system}
training:
  sequence_len: {sequence_len}
  adapters:
    tone: {{}}
    facts: {{}}
    style: {{}}
  gate:
    enabled: true
    cold_start_floor: 1
export:
  default_temperature: 0.3
---

"""
SYSTEM = '|\n  You are "brief", and\n  """kind"""'
"""The document's system prompt as YAML."""
SECTION = "::instruction#{name}::\n### Q\n{question}\n\n### A\n{answer}\n\n"
QUESTIONS = {
    "tone": ("Say hello kindly.", "Cheer me up."),
    "facts": ("How deep is the harbour?", "When does the tide turn?"),
    "style": ("Write it as a poem.", "Shorten this text."),
}


def write_document(folder: Path, architecture: str, system: str = SYSTEM, sequence_len: int = 128) -> Path:
    """A document with three adapters and two questions each."""
    sections = [
        SECTION.format(name=name, question=question, answer="So be it.")
        for name, questions in QUESTIONS.items()
        for question in questions
    ]
    path = folder / "doc.dlm"
    head = HEAD.format(architecture=architecture, system=system, sequence_len=sequence_len)
    path.write_text(head + "".join(sections), encoding="utf-8")
    return path


def mixed_adapters(base: Any) -> dict[str, Adapter]:
    """Unequal ranks, unequal targets, unequal scales: what real documents grow into."""
    mlp = [*target_names(base), *target_names(base, "gate_proj", "up_proj", "down_proj")]
    tone = random_adapter(base, "tone", rank=4, seed=1, size=0.15)
    facts = random_adapter(base, "facts", rank=7, seed=2, targets=target_names(base, "q_proj", "v_proj"), size=0.15)
    style = random_adapter(base, "style", rank=3, seed=3, targets=mlp, size=0.15)
    # as rsLoRA and alpha patterns leave it: another scale in every layer
    scaled = {
        module: LowRank(pair.lora_A, pair.lora_B, 8 / pair.rank**0.5 * (1 + index % 3) / 3)
        for index, (module, pair) in enumerate(facts.modules.items())
    }
    return {"tone": tone, "facts": Adapter("facts", scaled), "style": style}


def fill_store(store: Store, adapters: Mapping[str, Adapter], base_id: str) -> None:
    """Commit every adapter as version 1."""
    store.create()
    for name, adapter in adapters.items():
        version = new_version(store, name)
        save_peft_adapter(adapter, version.path, base_id)
        commit_version(store, version)


def add_gate(store: Store, hidden_size: int, names: tuple[str, ...] = NAMES, seed: int = 5) -> None:
    """A trained gate with random weights."""
    torch.manual_seed(seed)
    config = GateConfig(
        adapter_names=names, entropy_lambda=0.01, hidden_proj_dim=8, input_dim=hidden_size, mode="trained"
    )
    network = GateNetwork(hidden_size, 8, len(names)).requires_grad_(False)
    save_gate(store, Gate(names, config, network, {}))


def open_tiny(
    folder: Path,
    architecture: str = "llama",
    *,
    gate: bool = True,
    seed: int = 0,
    adapters: Callable[[Any], dict[str, Adapter]] = mixed_adapters,
    system: str = SYSTEM,
    sequence_len: int = 128,
    **changes: Any,
) -> Session:
    """A session on a tiny base with three trained adapters and, unless told otherwise, a trained gate."""
    base = tiny_base(folder / "base", architecture, seed, **changes)
    path = write_document(folder, architecture, system, sequence_len)
    store = Store(folder / "home", load(path).dlm_id)
    fill_store(store, adapters(base), base.identity.id)
    if gate:
        add_gate(store, base.hidden_size)
    return run_to_end(Session.open(path, folder / "home", folder / "base"))


def export(session: Session, **request: Any) -> ExportResult:
    """The export with `request`, without drift unless asked for."""
    return run_to_end(export_document(ExportRequest(**{"drift": False, **request}), session))
