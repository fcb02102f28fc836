"""Which sections train which adapter, their rows, and the side a row falls on (formats.md section 10)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dlm_tui.document.document import Document
from dlm_tui.document.errors import MediaTrainingError, UnknownAdapterError
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.sections import Section


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    `text` rows carry `text`; `messages` rows (role, text) turns; `preference` rows prompt, chosen, rejected.
    `sub_index` counts the rows of equal section id, as the split needs it.
    """

    kind: Literal["text", "messages", "preference"]
    section_index: int
    section_id: str
    sub_index: int
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""


def route_sections(document: Document) -> dict[str, list[int]]:
    """Adapter name -> indices of the sections that train it, every name present.

    Untagged prose goes to every adapter, any other untagged section to the first. Raises UnknownAdapterError.
    """
    names = document.routing_names
    routes: dict[str, list[int]] = {name: [] for name in names}
    for index, section in enumerate(document.sections):
        if section.adapter is not None:
            if section.adapter not in routes:
                raise UnknownAdapterError(
                    f"the section at line {section.start_line} is for the adapter {section.adapter!r}, "
                    f"but the document has {', '.join(names)}",
                    adapter=section.adapter,
                    line=section.start_line,
                )
            routes[section.adapter].append(index)
        elif section.type == "prose":
            for name in names:
                routes[name].append(index)
        else:
            routes[names[0]].append(index)
    return routes


def training_rows(document: Document, indices: Iterable[int] | None = None) -> list[Row]:
    """The rows of all sections, or of those with the given indices, in document order.

    Raises InstructionParseError, PreferenceParseError for a malformed body, MediaTrainingError for image
    and audio.
    """
    chosen = range(len(document.sections)) if indices is None else sorted(set(indices))
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for index in chosen:
        section = document.sections[index]
        for row in _section_rows(section, index, seen.get(section.section_id, 0)):
            rows.append(row)
            seen[section.section_id] = row.sub_index + 1
    return rows


def split_side(seed: int, section_id: str, sub_index: int, val_frac: float = 0.1) -> Literal["train", "val"]:
    """The side of the split a row falls on: by the first 8 bytes of SHA-256 over seed, section id and
    index.
    """
    digest = hashlib.sha256(f"{seed}\0{section_id}\0{sub_index}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < int(val_frac * 2**64) else "train"


def _section_rows(section: Section, index: int, first: int) -> list[Row]:
    identity = section.section_id
    if section.type == "prose":
        text = section.content.strip()
        return [Row("text", index, identity, first, text=text)] if text else []
    if section.type == "instruction":
        return [
            Row(
                "messages",
                index,
                identity,
                first + k,
                messages=(("user", pair.question), ("assistant", pair.answer)),
            )
            for k, pair in enumerate(instruction_pairs(section))
        ]
    if section.type == "preference":
        return [
            Row(
                "preference",
                index,
                identity,
                first + k,
                prompt=t.prompt,
                chosen=t.chosen,
                rejected=t.rejected,
            )
            for k, t in enumerate(preference_triples(section))
        ]
    raise MediaTrainingError(
        f"the {section.type} section at line {section.start_line} cannot be trained here: only text can",
        line=section.start_line,
    )
