"""Adding a section at the end of a document without touching any other byte, and without losing anybody's save.

Blank lines around fences are the document's habit, which a new section keeps. Those above its fence belong, by the
format, to the section before it: that one then has another id, as when a person leaves a blank line there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlm_tui.document.document import Document, parse_bytes, read_document_bytes
from dlm_tui.document.errors import DocumentError, FileChanged
from dlm_tui.document.names import MEDIA_TYPES, SECTION_TYPES, refuse_unknown_adapter
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.replacing import document_lock, refuse_unwritable, replace_seen
from dlm_tui.document.sections import Section, section_id
from dlm_tui.document.text import lf_only
from dlm_tui.errors import UsageError

_TRIES = 100
_line_end = re.compile(b"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What was added, with what a change of the document is remembered by.

    `line` is the line of the new fence, `offset` the byte where `added_text` starts; hashes are of the whole file.
    """

    added_text: str
    line: int
    section_id: str
    offset: int
    sha256: str
    previous_sha256: str


def append_section(
    path: Path, expected_sha256: str, *, type: str, adapter: str | None, content: str, marker: str = ""
) -> AppendResult:
    """Put a section behind the last line of a document, in the line-end style of the file, atomically.

    All other sections keep their text, and but for the last one their id; the file keeps having or lacking a final line
    end. The content gets the blank lines that the document's other sections begin with.
    `marker` is a line of provenance below the fence. A byte-order mark that the content begins with is no part of it.
    `expected_sha256` is the file that the caller saw: where somebody saved since, the section is added to what is there
    now, and `previous_sha256` of the result says so. Raises UsageError or BodyError if the content would not read back
    as it was given, DocumentError if the document does not parse, ReadOnlyDocument, OSError if the disk refuses.
    """
    target = path.resolve()
    refuse_unwritable(path, target)
    data = read_document_bytes(path)
    _compose(data, path, type, adapter, content, marker)  # what cannot be added is refused before anything is made
    with document_lock(target):
        base = held = read_document_bytes(path)  # what to build on, and what the file holds
        for _ in range(_TRIES):
            try:
                added, document = _compose(base, path, type, adapter, content, marker)
            except BaseException:
                if held != base:
                    replace_seen(target, held, base)  # somebody's save that nothing can be added to goes back
                raise
            grown = base + added.encode()
            other = replace_seen(target, held, grown)
            if other is None:
                section = document.sections[-1]
                before = hashlib.sha256(base).hexdigest()
                return AppendResult(added, section.start_line, section.section_id, len(base), document.sha256, before)
            base, held = other.data, grown if other.displaced else other.data
        if held != base:
            replace_seen(target, held, base)
    raise FileChanged(f"{path} is being written all the time; nothing was added")


def preview_section(document_bytes: bytes, *, type: str, adapter: str | None, content: str, marker: str = "") -> str:
    """Exactly the text that `append_section` would add. Raises what it would raise."""
    return _compose(document_bytes, None, type, adapter, content, marker)[0]


def _compose(
    data: bytes, path: Path | None, section_type: str, adapter: str | None, content: str, marker: str
) -> tuple[str, Document]:
    """The text to add, and the document that the file then is."""
    before = parse_bytes(data, path)
    if section_type not in SECTION_TYPES or section_type in MEDIA_TYPES:
        raise UsageError(f"only prose, instruction and preference sections can be added, not {section_type!r}")
    if adapter is not None:
        refuse_unknown_adapter(adapter, before.routing_names)
    content = lf_only(content)
    line_end = dominant_line_end(data)
    ended = data.endswith((b"\n", b"\r"))
    fence = f"::{section_type}#{adapter}::" if adapter else f"::{section_type}::"
    gap, lead = _missing_gap(before), _lead(before)
    if content.strip("\n") and not content.startswith("\n"):
        content = "\n" * lead + content
    head = f"{fence}\n{marker}" if marker else fence
    text = "\n" * gap + (f"{head}\n{content}" if content else head)
    # Without a final line end the frame would swallow the last blank line of the content.
    if ended or content.endswith("\n"):
        text += "\n"
    added = text.replace("\n", line_end)
    if not ended:
        added = line_end + added
    try:
        after = parse_bytes(data + added.encode(), path)
    except UnicodeEncodeError:
        raise UsageError("the new section holds a character that UTF-8 cannot carry") from None
    except DocumentError as error:
        raise UsageError(f"the new section would break the document: {error.text}") from None
    _check_read_back(before, after, section_type, adapter, content, gap)
    return added, after


def _missing_gap(document: Document) -> int:
    """Blank lines to add behind the last section, so that a fence below it stands as far off as the others do."""
    ends = [_blank_at_end(section.content) for section in document.sections]
    return max(0, _usual(ends[:-1]) - ends[-1]) if ends else 0


def _lead(document: Document) -> int:
    """Blank lines between fences and texts; one section is no habit yet."""
    fenced = [section.content for section in document.sections if section.content_line > section.start_line]
    return _usual([len(content) - len(content.lstrip("\n")) for content in fenced]) if len(fenced) > 1 else 0


def _usual(counts: Sequence[int]) -> int:
    """The most frequent count, the smallest of equally frequent ones; 0 where there is none."""
    return min(counts, key=lambda count: (-counts.count(count), count), default=0)


def _blank_at_end(content: str) -> int:
    return len(content) - len(content.rstrip("\n"))


def _check_read_back(
    before: Document, after: Document, section_type: str, adapter: str | None, content: str, gap: int
) -> None:
    if not content.strip() and section_type == "prose":
        raise UsageError("the new section is empty")
    expected = [*before.sections[:-1], *(_grown(section, gap) for section in before.sections[-1:])]
    if len(after.sections) != len(before.sections) + 1 or list(after.sections[:-1]) != expected:
        raise UsageError("the new section would be read as several: it holds a fence line")
    section = after.sections[-1]
    if (section.type, section.adapter, section.content) != (section_type, adapter, content):
        raise UsageError("the new section would not read back as it was given: it starts with a marker line")
    if section_type == "instruction":
        instruction_pairs(section)
    if section_type == "preference":
        preference_triples(section)


def _grown(section: Section, gap: int) -> Section:
    """The section with that many blank lines more behind its text."""
    if not gap:
        return section
    content = section.content + "\n" * gap
    if section.is_media:
        return replace(section, content=content)
    return replace(section, content=content, section_id=section_id(section.type, content))


def dominant_line_end(data: bytes) -> str:
    """The most frequent line end of the file; LF where there is none."""
    counts: dict[bytes, int] = {}
    for match in _line_end.finditer(data):
        counts[match[0]] = counts.get(match[0], 0) + 1
    return max(counts, key=lambda end: counts[end]).decode() if counts else "\n"
