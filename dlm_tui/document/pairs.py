"""Question-and-answer and preference bodies (formats.md section 10)."""

from __future__ import annotations

from typing import NamedTuple

from dlm_tui.document.errors import BodyError, InstructionParseError, PreferenceParseError
from dlm_tui.document.sections import Section

PROBE_HEADER = "### Q !probe"
QUESTION, ANSWER = "### Q", "### A"
PROMPT, CHOSEN, REJECTED = "### Prompt", "### Chosen", "### Rejected"


class Pair(NamedTuple):
    """One question and its answer, trimmed."""

    question: str
    answer: str


class Triple(NamedTuple):
    """One prompt with the answer that is wanted and the one that is not, trimmed."""

    prompt: str
    chosen: str
    rejected: str


def instruction_pairs(section: Section) -> list[Pair]:
    """The pairs of an instruction section, at least one; probe headers count as plain ones.

    Raises InstructionParseError.
    """
    lines = section.content.splitlines()
    if PROBE_HEADER in section.content:
        lines = [QUESTION if line.strip() == PROBE_HEADER else line for line in lines]
    groups = _read_groups(section, lines, (QUESTION, ANSWER), InstructionParseError)
    return [Pair(*group) for group in groups]


def preference_triples(section: Section) -> list[Triple]:
    """The triples of a preference section, at least one. Raises PreferenceParseError."""
    lines = section.content.splitlines()
    groups = _read_groups(section, lines, (PROMPT, CHOSEN, REJECTED), PreferenceParseError)
    return [Triple(*group) for group in groups]


def instruction_content(question: str, answer: str, *, probe: bool = False) -> str:
    """The body of an instruction section that parses to this one pair (both trimmed)."""
    return f"{PROBE_HEADER if probe else QUESTION}\n{question.strip()}\n{ANSWER}\n{answer.strip()}"


def preference_content(prompt: str, chosen: str, rejected: str) -> str:
    """The body of a preference section that parses to this one triple (all trimmed)."""
    bodies = zip((PROMPT, CHOSEN, REJECTED), (prompt, chosen, rejected), strict=True)
    return "\n".join(f"{header}\n{body.strip()}" for header, body in bodies)


def _read_groups(
    section: Section, lines: list[str], headers: tuple[str, ...], error: type[BodyError]
) -> list[list[str]]:
    """Groups of bodies, one body per header in their order; a body runs to the next header of any kind."""

    def fail(text: str) -> BodyError:
        return error(text, section_id=section.section_id, section_line=at + 1)

    groups: list[list[str]] = []
    at, end = 0, len(lines)
    while True:
        while at < end and not lines[at].strip():
            at += 1
        if at == end:
            break
        group: list[str] = []
        for header in headers:
            if at == end or lines[at].strip() != header:
                raise fail(f"expected the line {header!r}")
            at += 1
            start = at
            while at < end and lines[at].strip() not in headers:
                at += 1
            text = "\n".join(lines[start:at]).strip()
            if not text:
                raise fail(f"the text under {header!r} is empty")
            group.append(text)
        groups.append(group)
    if not groups:
        at = 0
        raise fail(f"no {headers[0]!r} in this section")
    return groups
