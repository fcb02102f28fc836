"""What is wrong in a document that parses: bodies that give no rows, fences that are almost fences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dlm_tui.document.document import Document
from dlm_tui.document.errors import BodyError
from dlm_tui.document.fences import CODE_TOGGLE
from dlm_tui.document.names import SECTION_TYPES
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.sections import Section
from dlm_tui.meant import meant

_near_fence = re.compile(rf"::\s*(?:{'|'.join(SECTION_TYPES)})\b[^\n]*", re.IGNORECASE).fullmatch


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A place in the file, counted from 1, and what is wrong there; errors stop training, warnings do not."""

    line: int
    col: int
    message: str
    severity: Literal["error", "warning"]


def body_problems(document: Document) -> list[Problem]:
    """All problems of the body, by line."""
    problems: list[Problem] = []
    names = document.routing_names
    for section in document.sections:
        if section.adapter is not None and section.adapter not in names:
            text = f"the adapter {section.adapter!r} is not declared; the document has {', '.join(names)}"
            text += meant(section.adapter, names)
            problems.append(Problem(section.start_line, 1, text, "error"))
        if section.is_media:
            text = f"this {section.type} section is shown but cannot be trained here"
            problems.append(Problem(section.start_line, 1, text, "error"))
        problems += _bad_body(section)
        problems += _near_fences(section)
    return sorted(problems)


def _bad_body(section: Section) -> list[Problem]:
    try:
        if section.type == "instruction":
            instruction_pairs(section)
        elif section.type == "preference":
            preference_triples(section)
    except BodyError as error:
        # The body counts lines at every Unicode line boundary, the file at LF only.
        before = section.content.splitlines(keepends=True)[: error.section_line - 1]
        breaks = min(sum(part.endswith("\n") for part in before), section.content.count("\n"))
        line = section.content_line + breaks if section.content else section.start_line
        return [Problem(line, 1, error.text, "error")]
    return []


def _near_fences(section: Section) -> list[Problem]:
    problems: list[Problem] = []
    if "::" not in section.content:
        return problems
    in_code = False
    for offset, line in enumerate(section.content.split("\n")):
        if line.startswith(CODE_TOGGLE):
            in_code = not in_code
        stripped = line.strip()
        if not in_code and stripped.startswith("::") and stripped.endswith("::") and _near_fence(stripped):
            col = len(line) - len(line.lstrip()) + 1
            text = "this looks like a fence but is read as text; a fence is a whole line with nothing around it"
            problems.append(Problem(section.content_line + offset, col, text, "warning"))
    return problems
