"""The templates by name, and their texts."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

# Name -> what it is for; the first is what a new document is made of unless something else is asked for.
TEMPLATES = {
    "assistant": "your facts, and a voice to tell them in",
    "notes": "a folder of notes, and a voice to speak about them",
    "support": "a support desk: product, steps, tone",
    "steering": "two adapters that pull an answer in two directions",
}
NOTES = "notes"
# Adapters of the templates that sections train, which stay when a folder brings adapters of its own.
VOICE = "voice"


def template_text(name: str) -> str:
    """The text of a template with its places to fill: {{dlm_id}}, {{base_model}}, {{epochs}}, {{rate}}, {{sources}}."""
    return _folder().joinpath(f"{name}.dlm").read_text(encoding="utf-8")


def sample_notes() -> dict[str, bytes]:
    """File name -> bytes of the notes that come with the template for a folder of notes."""
    found = [entry for entry in _folder().joinpath(NOTES).iterdir() if entry.name.endswith(".md")]
    return {entry.name: entry.read_bytes() for entry in sorted(found, key=lambda entry: entry.name)}


def _folder() -> Traversable:
    return files("dlm_tui.document.templates")
