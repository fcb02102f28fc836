"""What an answer teaches: the section it becomes, with the line that says where it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dlm_tui.document.append import preview_section
from dlm_tui.document.document import parse_bytes
from dlm_tui.document.errors import BodyError
from dlm_tui.document.label import label_section
from dlm_tui.document.markers import harvest_marker, mined_marker
from dlm_tui.document.pairs import instruction_pairs, preference_content, preference_triples
from dlm_tui.errors import UsageError

JUDGE = "dlm-tui person"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A section to append: `texts` are what its body must read back as, question and answer or prompt, chosen and
    rejected."""

    type: str
    adapter: str | None
    content: str
    marker: str
    texts: tuple[str, ...]


def kept_answer(prompt: str, answer: str, adapter: str | None, source: str) -> Lesson:
    """An answer as an instruction; `source` says who gave it. Raises UsageError for an empty prompt or answer."""
    kind, content = label_section(prompt, answer)
    return Lesson(kind, adapter, content, harvest_marker(f"dlm-tui/{source}"), (prompt, answer))


def better_answer(
    prompt: str,
    chosen: str,
    rejected: str,
    adapter: str | None,
    source: str,
    at: datetime,
    run_id: int | None,
    *,
    note: str = "",
) -> Lesson:
    """One answer that is better than another, as a preference; `at` is UTC, `note` says how it was compared.

    It is marked as mined by a person after training run `run_id`; where nothing was trained yet, which the format has
    no such marker for, as taken over from `source`. Raises UsageError for an empty text and for two equal answers.
    """
    if not prompt.strip():
        raise UsageError("The prompt is empty.")
    if not chosen.strip() or not rejected.strip():
        raise UsageError("An empty answer cannot be compared.")
    if _read_as(chosen) == _read_as(rejected):
        raise UsageError("Both answers are the same, so neither is better.")
    marker = (
        harvest_marker(f"dlm-tui/{source}")
        if run_id is None or run_id < 1
        else mined_marker(f"{JUDGE} {note}".strip(), 1.0, 0.0, at, run_id)
    )
    content = preference_content(prompt, chosen, rejected)
    return Lesson("preference", adapter, content, marker, (prompt, chosen, rejected))


def preview_lesson(document: bytes, lesson: Lesson) -> str:
    """Exactly the text that appending the lesson adds. Raises what `append_section` raises, and UsageError for a text
    that would be read as another because it holds a header line."""
    groups: Sequence[tuple[str, ...]] = []
    with contextlib.suppress(BodyError):
        added = preview_section(
            document, type=lesson.type, adapter=lesson.adapter, content=lesson.content, marker=lesson.marker
        )
        section = parse_bytes(document + added.encode()).sections[-1]
        groups = instruction_pairs(section) if lesson.type == "instruction" else preference_triples(section)
    if len(groups) != 1 or tuple(groups[0]) != tuple(_read_as(text) for text in lesson.texts):
        raise UsageError(
            "The text holds a line such as ### A, which would be read as the next header; change that line."
        )
    return added


def _read_as(text: str) -> str:
    """A text as it is read back from a body: trimmed, every line end a line feed."""
    return "\n".join(text.strip().splitlines()).strip()
