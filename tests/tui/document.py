"""A small document with three adapters."""

from __future__ import annotations

from pathlib import Path

HEAD = """---
dlm_id: 01HZ4X7TGZM3J1A2B3C4D5E6F7
dlm_version: 15
base_model: smollm2-135m
training:
  adapters:
    knowledge: {lora_r: 4}
    tone: {lora_r: 4}
    style: {lora_r: 4}
  gate:
    enabled: true
---
The harbour town keeps its tide table on the wall.

"""


def write_document(folder: Path, sections: int = 4) -> Path:
    """Write `harbour.dlm`: per adapter `sections` questions with answers."""
    parts = [HEAD]
    for name, question in (
        ("knowledge", "What is the tide at"),
        ("tone", "Please say"),
        ("style", "Rime me"),
    ):
        for index in range(sections):
            parts.append(f"::instruction#{name}::\n### Q\n{question} {index + 1}?\n\n### A\nAnswer {index + 1}.\n\n")
    path = folder / "harbour.dlm"
    path.write_text("".join(parts), encoding="utf-8")
    return path


MANY = ("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8", "i9", "j10", "k11", "l12")


def write_many(folder: Path) -> Path:
    """Write `harbour.dlm` with twelve adapters, a question each."""
    declared = "".join(f"    {name}: {{lora_r: 4}}\n" for name in MANY)
    head = HEAD.replace("".join(f"    {name}: {{lora_r: 4}}\n" for name in ("knowledge", "tone", "style")), declared)
    path = folder / "harbour.dlm"
    parts = [f"::instruction#{name}::\n### Q\nWhat does {name} know?\n\n### A\nThis.\n\n" for name in MANY]
    path.write_text("".join([head, *parts]), encoding="utf-8")
    return path
