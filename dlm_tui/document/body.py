"""The body of a document, line by line, into sections (formats.md section 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.errors import FenceError
from dlm_tui.document.fences import CODE_TOGGLE, BadLine, Fence, read_fence
from dlm_tui.document.markers import read_markers
from dlm_tui.document.sections import Section, section_id

_PROSE = Fence("prose")


@dataclass(frozen=True, slots=True)
class Piece:
    """A fence with the lines below it, up to the next one.

    Indices count from 0 in the body's lines: the fence is at `start` (opening prose has none), its text from `opened`
    to before `end`.
    """

    fence: Fence
    start: int
    opened: int
    end: int


def read_pieces(lines: list[str], first_line: int, path: Path | None = None) -> Iterator[Piece]:
    """The body cut at its fences; no piece stands for opening prose without a line.

    Raises FenceError at the first problem in reading order.
    """
    fence, start, opened = _PROSE, 0, 0
    in_code = False
    for index, line in enumerate(lines):
        if line.startswith(CODE_TOGGLE):
            in_code = not in_code
        elif not in_code and line.startswith("::"):
            try:
                found = read_fence(line)
            except BadLine as error:
                raise FenceError(str(error), path=path, line=first_line + index, col=1) from None
            if found is not None:
                if index:
                    yield Piece(fence, start, opened, index)
                fence, start, opened = found, index, index + 1
    if in_code:
        raise FenceError("unterminated code block at the end of this section", path=path, line=first_line + start)
    yield Piece(fence, start, opened, len(lines))


def read_body(lines: list[str], first_line: int, path: Path | None = None) -> tuple[Section, ...]:
    """All sections in document order. Raises FenceError at the first problem in reading order.

    A fence line is checked before the section that it ends is finished.
    """
    sections: list[Section] = []
    for piece in read_pieces(lines, first_line, path):
        text = lines[piece.opened : piece.end]
        _finish(sections, piece.fence, first_line + piece.start, text, first_line + piece.opened, path)
    return tuple(sections)


def _finish(
    sections: list[Section],
    fence: Fence,
    fence_line: int,
    lines: list[str],
    content_line: int,
    path: Path | None,
) -> None:
    try:
        marker_fields, count = read_markers(fence.type, lines)
    except BadLine as error:
        raise FenceError(str(error), path=path, line=fence_line, col=1) from None
    content = "\n".join(lines[count:] if count else lines)
    if fence.type == "prose" and not content.strip():
        return
    media_path = fence.attributes.get("path")
    sections.append(
        Section(
            type=fence.type,
            content=content,
            start_line=fence_line,
            content_line=content_line + count,
            section_id=section_id(fence.type, content, media_path=media_path),
            adapter=fence.adapter,
            media_path=media_path,
            media_alt=fence.attributes.get("alt"),
            media_transcript=fence.attributes.get("transcript"),
            **marker_fields,
        )
    )
