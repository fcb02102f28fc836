"""Changing one section of a document: every byte outside it stays as it is, and every change can be taken back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dlm_tui.document.append import dominant_line_end
from dlm_tui.document.body import Piece, read_pieces
from dlm_tui.document.document import Document, parse_bytes, read_document_bytes
from dlm_tui.document.errors import DocumentError, FileChanged
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.replacing import save_document
from dlm_tui.document.sections import Section
from dlm_tui.document.text import decode, lf_only, split_frame
from dlm_tui.errors import UsageError

_line_end = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Edit:
    """What a change put in place of what, in bytes of the file; hashes are of the whole file.

    `line` is where the section is now, or was; `section_id` what it is now, None if it is gone.
    """

    offset: int
    removed: bytes
    added: bytes
    line: int
    section_id: str | None
    sha256: str
    previous_sha256: str


def edit_section(path: Path, expected_sha256: str, index: int, content: str) -> Edit:
    """Give the section at `index` another content; fence, markers and the blank lines around the text stay.

    A byte-order mark that the content begins with is no part of it.

    Raises FileChanged if the file is not the one with `expected_sha256`, UsageError or BodyError if the content would
    not read back as it was given, OSError if the disk refuses.
    """
    return _write(path, expected_sha256, index, *_content_change(content))


def check_edit(data: bytes, index: int, content: str) -> None:
    """Raises what `edit_section` would raise for the document that `data` is; nothing is written."""
    _compose(data, None, index, *_content_change(content))


def _content_change(content: str) -> tuple[_Change, _Check]:
    def change(place: _Place) -> tuple[int, int, bytes]:
        section = _text_section(place.section)
        if not content.strip():
            raise UsageError("the section would be empty; delete it instead")
        new = _within_margins(section.content, lf_only(content))
        # Without a final line end the frame would swallow the last blank line of the content.
        closing = "\n" if place.followed or place.ended or new.endswith("\n") else ""
        return place.content, place.end, (new + closing).replace("\n", place.line_end).encode()

    def check(section: Section, before: Section) -> None:
        if section.content != _within_margins(before.content, lf_only(content)):
            raise UsageError("the section would not read back as it was given: it starts with a marker or fence line")
        if section.type == "instruction":
            instruction_pairs(section)
        if section.type == "preference":
            preference_triples(section)

    return change, check


def retag_section(path: Path, expected_sha256: str, index: int, adapter: str | None) -> Edit:
    """Give the section at `index` to another adapter, or with None to all of them; only its fence line changes.

    Raises what `edit_section` raises, but for BodyError: a text that gives no rows yet keeps what it has.
    """

    def change(place: _Place) -> tuple[int, int, bytes]:
        section = _text_section(place.section)
        if adapter is not None:
            refuse_unknown_adapter(adapter, place.document.routing_names)
        fence = f"::{section.type}#{adapter}::" if adapter else f"::{section.type}::"
        if place.fenced:
            return place.start, place.start + place.fence_length, fence.encode()
        return place.start, place.start, (fence + place.line_end).encode()

    def check(section: Section, before: Section) -> None:
        if (section.adapter, section.content) != (adapter, before.content):
            raise UsageError("the section cannot be given to another adapter in place")

    return _write(path, expected_sha256, index, change, check)


def delete_section(path: Path, expected_sha256: str, index: int) -> Edit:
    """Take the section at `index` out, with its fence. Raises what `edit_section` raises."""
    return _write(path, expected_sha256, index, lambda place: (place.start, place.end, b""), None)


def undo_edit(path: Path, edit: Edit) -> str:
    """Put back what an edit replaced; returns the hash of the file, which is what it was before.

    Raises FileChanged if the file was edited in between, or if what is put back would not make it what it was.
    """
    data = read_document_bytes(path)
    if hashlib.sha256(data).hexdigest() != edit.sha256:
        raise FileChanged(f"{path} has changed since the section was changed; nothing was undone")
    before = data[: edit.offset] + edit.removed + data[edit.offset + len(edit.added) :]
    if hashlib.sha256(before).hexdigest() != edit.previous_sha256:
        raise FileChanged(f"what {path} held before is no longer kept as it was written; nothing was undone")
    save_document(path, data, before)
    return edit.previous_sha256


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a section is in the file: byte offsets of its fence (or first line), of its text, and behind it."""

    document: Document
    section: Section
    start: int
    content: int
    end: int
    fence_length: int
    fenced: bool
    followed: bool
    ended: bool
    line_end: str


_Change = Callable[[_Place], tuple[int, int, bytes]]
_Check = Callable[[Section, Section], None]


def _write(path: Path, expected_sha256: str, index: int, change: _Change, check: _Check | None) -> Edit:
    data = read_document_bytes(path)
    if hashlib.sha256(data).hexdigest() != expected_sha256:
        raise FileChanged(f"{path} has changed since it was read; nothing was written")
    edit = _compose(data, path, index, change, check)
    save_document(path, data, data[: edit.offset] + edit.added + data[edit.offset + len(edit.removed) :])
    return edit


def _compose(data: bytes, path: Path | None, index: int, change: _Change, check: _Check | None) -> Edit:
    """The edit; without a `check` of the section that stays it takes the section out."""
    place = _find(data, path, index)
    try:
        start, end, added = change(place)
        after = parse_bytes(data[:start] + added + data[end:], path)
    except UnicodeEncodeError:
        raise UsageError("the section holds a character that UTF-8 cannot carry") from None
    except DocumentError as error:
        raise UsageError(f"the change would break the document: {error.text}") from None
    _check_others(place.document, after, index, gone=check is None)
    section = None
    if check is not None:
        section = after.sections[index]
        check(section, place.section)
    return Edit(
        offset=start,
        removed=data[start:end],
        added=added,
        line=section.start_line if section is not None else place.section.start_line,
        section_id=section.section_id if section is not None else None,
        sha256=after.sha256,
        previous_sha256=place.document.sha256,
    )


def _find(data: bytes, path: Path | None, index: int) -> _Place:
    document = parse_bytes(data, path)
    if not 0 <= index < len(document.sections):
        raise UsageError(f"the document has no section {index}")
    section = document.sections[index]
    frame = split_frame(decode(data, path), path)
    piece = _piece_of(section, list(read_pieces(frame.body_lines, frame.body_start, path)), frame.body_start)
    starts = _line_starts(data)

    def at(line: int) -> int:
        """The byte where a line of the file begins, counted from 1."""
        return starts[line - 1] if line <= len(starts) else len(data)

    fenced = piece.opened > piece.start
    start = at(frame.body_start + piece.start)
    followed = piece.end < len(frame.body_lines)
    end = at(frame.body_start + piece.end) if followed else len(data)
    fence_length = len(frame.body_lines[piece.start].encode()) if fenced else 0
    ended = data.endswith((b"\n", b"\r"))
    content = at(section.content_line) if section.content_line <= frame.body_start + piece.end else end
    line_end = dominant_line_end(data)
    return _Place(document, section, start, content, end, fence_length, fenced, followed, ended, line_end)


def _piece_of(section: Section, pieces: list[Piece], first_line: int) -> Piece:
    return next(piece for piece in pieces if first_line + piece.start == section.start_line)


def _line_starts(data: bytes) -> list[int]:
    """The byte offset of every line, a byte order mark not counted."""
    return [len(_BOM) if data.startswith(_BOM) else 0, *(match.end() for match in _line_end.finditer(data))]


def _text_section(section: Section) -> Section:
    if section.is_media:
        raise UsageError(f"{section.type} sections can be deleted here, not changed")
    return section


def _within_margins(old: str, new: str) -> str:
    """`new` between the blank lines that stand before and after `old`."""
    if not old.strip("\n"):
        return new
    before = old[: len(old) - len(old.lstrip("\n"))]
    after = old[len(old.rstrip("\n")) :]
    return before + new.strip("\n") + after


def _check_others(before: Document, after: Document, index: int, *, gone: bool) -> None:
    """The other sections, and what stands above them, are what they were."""
    old = [_placeless(section) for position, section in enumerate(before.sections) if position != index]
    new = [_placeless(section) for position, section in enumerate(after.sections) if gone or position != index]
    count = len(before.sections) - gone
    if before.frontmatter != after.frontmatter or len(after.sections) != count or old != new:
        raise UsageError("the section would be read as several, or change another one: it holds a fence line")


def _placeless(section: Section) -> Section:
    return replace(section, start_line=0, content_line=0)
