"""Where headless commands write: data to stdout, narration to stderr."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
from typing import Any

from dlm_tui.finite import finite


def emit(value: Any) -> None:
    """One JSON value on one line of stdout, in ASCII: no line separator and no terminal control passes unescaped."""
    sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def _spelled_out(error: UnicodeError) -> tuple[bytes, int]:
    """What an encoding has no place for: bytes of a path as they came in, other characters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelled = bytearray()
    for character in error.object[error.start : error.end]:
        byte = ord(character) - 0xDC00  # where the system's names keep what is not text
        spelled += bytes([byte]) if 0x80 <= byte <= 0xFF else character.encode("ascii", "backslashreplace")
    return bytes(spelled), error.end


codecs.register_error("spelled_out", _spelled_out)


STANDARD_OUTPUT = "standard output"


class _StandardOutput(io.FileIO):
    """Stdout whose errors name it, as those of files name theirs."""

    def write(self, data: Any, /) -> Any:
        """As FileIO; raises OSError with `STANDARD_OUTPUT` as the file's name."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from None


def _named(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, with errors that name it."""
    stream.flush()
    raw = _StandardOutput(stream.fileno(), "wb", closefd=False)
    by_line = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=by_line)


def streams_are_there() -> bool:
    """Whether stdout is open. A closed stdin or stderr is replaced by the null device.

    Otherwise the next file that is opened would take its number, and narration would be written into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        return False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="spelled_out")
        if sys.stdout is sys.__stdout__:
            sys.stdout = _named(sys.stdout)
    return True


_line_is_open = False
"""Whether narration stands on the terminal's current line without its end."""


class NarrationHandler(logging.Handler):
    """What a library part has to say (a damaged file set aside) goes where narration goes."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line of narration."""
        say(self.format(record))


def say(text: str) -> None:
    """One line of narration on stderr; control characters in it are shown, never sent to the terminal."""
    global _line_is_open
    sys.stderr.write(("\n" if _line_is_open else "") + shown(text) + "\n")
    _line_is_open = False
    sys.stderr.flush()


def say_in_place(text: str, *, done: bool) -> None:
    """Narration on a terminal's current line, over what is there; `done` leaves it standing."""
    global _line_is_open
    sys.stderr.write("\r" + shown(text) + "\033[K" + ("\n" if done else ""))
    _line_is_open = not done
    sys.stderr.flush()


def put(text: str, *, end: str = "\n") -> None:
    """Data on stdout that holds foreign text: on a terminal control characters are shown, elsewhere it is as it is."""
    sys.stdout.write((shown(text, keep="\t\n") if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def shown(text: str, keep: str = "\t") -> str:
    """The text with control, direction and other invisible characters (but those in `keep`) spelled out."""
    return "".join(c if c in keep or c.isprintable() else repr(c)[1:-1] for c in text)
