"""Bytes to text, and text to frontmatter and body lines (formats.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.errors import DlmEncodingError, FrontmatterError

DELIMITER = "---"


@dataclass(frozen=True, slots=True)
class Frame:
    """A document cut in two: YAML text, and the lines of the body with the line number of the first."""

    frontmatter: str
    body_lines: list[str]
    body_start: int


def decode(data: bytes, path: Path | None = None) -> str:
    """Strict UTF-8, one leading BOM dropped, every line end turned into LF.

    Raises DlmEncodingError with the offset of the first bad byte.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DlmEncodingError(
            f"not UTF-8: {error.reason} at byte {error.start}", byte_offset=error.start, path=path
        ) from None
    return lf_only(text)


def lf_only(text: str) -> str:
    """`text` without one leading BOM and with every line end turned into LF."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def split_frame(text: str, path: Path | None = None) -> Frame:
    """Frontmatter between the first line and the next line that are exactly `---`, and the body after it.

    One LF at each end of the body belongs to the frame. Raises FrontmatterError at 1:1.
    """
    lines = text.split("\n")
    if lines[0] != DELIMITER:
        raise FrontmatterError("the first line must be exactly ---", path=path, line=1, col=1)
    try:
        closer = lines.index(DELIMITER, 1)
    except ValueError:
        raise FrontmatterError("the closing --- of the frontmatter is missing", path=path, line=1, col=1) from None
    body = lines[closer + 1 :]
    start = closer + 2
    if len(body) > 1 and body[0] == "":
        del body[0]
        start += 1
    if len(body) > 1 and body[-1] == "":
        del body[-1]
    if body == [""]:
        body = []
    return Frame("\n".join(lines[1:closer]), body, start)
