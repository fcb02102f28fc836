"""Small documents for the training tests."""

from __future__ import annotations

from pathlib import Path

from dlm_tui.document import Document, load

_ID = "01KTESTTESTTESTTESTTESTTES"

PAIRS = """
::preference#facts::
### Prompt
What does boat 1 carry?
### Chosen
Three crates of salt.
### Rejected
Nothing at all, dear guest.

::preference#facts::
### Prompt
Is the harbour quiet?
### Chosen
In winter it is.
### Rejected
Never, never.
"""
"""Two preferences of `facts`."""


def write_document(
    folder: Path,
    *,
    extra: str = "",
    sections: int = 5,
    epochs: int = 2,
    facts: str = "lora_r: 4, learning_rate: 0.01",
) -> Path:
    """Two adapters, `sections` tagged instruction sections each, some prose for both, the gate on."""
    body = ["The harbour is quiet in winter.", ""]
    for index in range(sections):
        body += [
            "::instruction#facts::",
            "### Q",
            f"What does boat {index} carry?",
            "### A",
            f"It carries {index + 2} crates of salt.",
            "",
            "::instruction#manners::",
            "### Q",
            f"Greet guest number {index} kindly.",
            "### A",
            "Welcome, dear guest, come in and sit down.",
            "",
        ]
    head = f"""---
dlm_id: {_ID}
dlm_version: 15
base_model: peer-tiny
training:
  num_epochs: {epochs}
  micro_batch_size: 4
  sequence_len: 64
  adapters:
    facts: {{{facts}}}
    manners: {{lora_r: 2, learning_rate: 0.01}}
  gate:
    enabled: true
    steps: 20
    cold_start_floor: 2
---

"""
    path = folder / "sample.dlm"
    path.write_text(head + "\n".join(body) + extra)
    return path


def sample(folder: Path, **options: object) -> Document:
    """The parsed form of `write_document`."""
    folder.mkdir(parents=True, exist_ok=True)
    return load(write_document(folder, **options))  # type: ignore[arg-type]
