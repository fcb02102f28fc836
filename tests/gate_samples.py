"""Documents with named adapters for the gate's tests, and what runs their generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlm_tui.document import Document, load
from dlm_tui.model import MixedModel
from tests.tiny_models import random_adapter, tiny_base

DLM_ID = "01KGATEGATEGATEGATEGATEGAT"
PROMPTS: dict[str, list[str]] = {
    "sea": [f"The boat number {n} left the harbour with the tide." for n in range(6)],
    "bread": [f"How do I bake {n} loaves of rye bread?" for n in range(6)],
    "letters": [f"Dear neighbour, thank you for ladder {n}!" for n in range(6)],
}


def document_text(prompts: Mapping[str, Sequence[str]], gate: str = "", seed: int = 7) -> str:
    """A document with one instruction section per prompt, adapters taking turns."""
    adapters = "".join(f"    {name}: {{}}\n" for name in prompts)
    settings = "".join(f"    {line}\n" for line in gate.splitlines())
    head = (
        f"---\ndlm_id: {DLM_ID}\ndlm_version: 15\nbase_model: hf:test/llama\ntraining:\n  seed: {seed}\n"
        f"  adapters:\n{adapters}  gate:\n    enabled: true\n{settings}---\n"
    )
    longest = max(len(rows) for rows in prompts.values())
    sections = [
        f"\n::instruction#{name}::\n### Q\n{rows[turn]}\n### A\nYes, number {turn}.\n"
        for turn in range(longest)
        for name, rows in prompts.items()
        if turn < len(rows)
    ]
    return head + "".join(sections)


def write_document(
    path: Path, prompts: Mapping[str, Sequence[str]] | None = None, gate: str = "", seed: int = 7
) -> Document:
    """The document written to `path` and read back."""
    path.write_text(document_text(PROMPTS if prompts is None else prompts, gate, seed), encoding="utf-8")
    return load(path)


def tiny_model(folder: Path, adapters: Sequence[str] = ()) -> MixedModel:
    """A tiny random Llama with one random adapter per name."""
    base = tiny_base(folder)
    return MixedModel(base, {name: random_adapter(base, name, seed=n) for n, name in enumerate(adapters)})
