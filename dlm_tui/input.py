"""What a person gives, the same for every command: paths, and prompts as UTF-8 text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from dlm_tui.errors import UsageError
from dlm_tui.small_files import read_file_or_pipe
from dlm_tui.system_errors import cause

_MOST_BYTES = 16 << 20


def with_home(path: str | Path) -> Path:
    """`path` with `~` and `~user` as the folders they stand for. Raises UsageError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = str(path).partition("/")[0]
        raise UsageError(f"{path}: there is no user {name[1:]!r}; a folder of that name is ./{name}") from None


def read_prompt(given: str | None) -> str:
    """The prompt given as an argument, else the whole of standard input. Raises UsageError when it is empty."""
    prompt = checked_text(given, "the prompt") if given is not None else "\n".join(_lines()).strip()
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    return prompt


def read_prompts(given: str | None) -> Iterator[str]:
    """The one prompt given as an argument, else every line of standard input as it arrives."""
    return _lines() if given is None else iter([checked_text(given, "the prompt")])


def read_text_file(name: str) -> str:
    """The text of a file, without a byte-order mark. Raises UsageError when it cannot be read or is not UTF-8."""
    path = with_home(name)
    try:
        return read_file_or_pipe(path, _MOST_BYTES).removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {cause(error)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); convert it") from None


def checked_text(text: str, what: str) -> str:
    """`text`. Raises UsageError when it came from bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        shown = f"byte 0x{byte:02x}" if 0 <= byte <= 0xFF else "a lone surrogate"
        raise UsageError(f"{what} is not UTF-8 text ({shown} at character {error.start + 1}); convert it") from None
    return text


def is_utf8(text: str) -> bool:
    """Whether `text` came from UTF-8 bytes; a path need not have."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _lines() -> Iterator[str]:
    """Lines of standard input without their ends; a byte-order mark in front of the first is no part of it."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"line {number} of standard input is not UTF-8 text (byte 0x{line[error.start]:02x}"
                f" at {error.start + 1}); convert it, for example with iconv -f latin1 -t utf-8"
            ) from None
