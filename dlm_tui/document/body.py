"""The body of a document, line by line, into sections (formats.md section 7)."""

from __future__ import annotations

from pathlib import Path

from dlm_tui.document.errors import FenceError
from dlm_tui.document.fences import CODE_TOGGLE, BadLine, Fence, read_fence
from dlm_tui.document.markers import read_markers
from dlm_tui.document.sections import Section, section_id

_PROSE = Fence("prose")


def read_body(lines: list[str], first_line: int, path: Path | None = None) -> tuple[Section, ...]:
    """All sections in document order. Raises FenceError at the first problem in reading order.

    A fence line is checked before the section that it ends is finished.
    """
    sections: list[Section] = []
    fence, fence_line, opened = _PROSE, first_line, 0
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
                _finish(sections, fence, fence_line, lines[opened:index], first_line + opened, path)
                fence, fence_line, opened = found, first_line + index, index + 1
    if in_code:
        raise FenceError("unterminated code block at the end of this section", path=path, line=fence_line)
    _finish(sections, fence, fence_line, lines[opened:], first_line + opened, path)
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
