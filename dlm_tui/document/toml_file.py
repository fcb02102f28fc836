"""Reading a TOML file that a person writes: whatever is wrong with it is one sentence with the file and the place."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from dlm_tui.document.errors import printable
from dlm_tui.errors import DlmTuiError
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

_MAX_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TomlFileError(DlmTuiError):
    """The file cannot be read as TOML; the sentence names it."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file of at most 1 MiB, with or without a byte-order mark.

    Raises FileNotFoundError or NotADirectoryError where there is none, TomlFileError for one that cannot be used.
    """
    return parse_toml(read_toml_text(path), path)


def read_toml_text(path: Path) -> str:
    """The text of the file, without a byte-order mark. Raises as `read_toml`, but for what is no TOML."""
    try:
        data = read_file(path, _MAX_BYTES).removeprefix(_BYTE_ORDER_MARK)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise TomlFileError(f"{_shown(path)} cannot be read: {cause(error)}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise TomlFileError(
            f"{_shown(path)}: the byte 0x{byte:02x} is not UTF-8 (at line {line}); save the file as UTF-8"
        ) from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """The tables in the text of the file at `path`. Raises TomlFileError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        wrong = f"{str(error).rstrip('.')}; mend it there"
    except RecursionError:
        wrong = "values are nested too deeply in it to be read; take some of the brackets out"
    except ValueError as error:  # of Python's own numbers, which tell neither the line nor the file
        wrong = _long_number(text) or f"{str(error).partition(';')[0]}; mend it there"
    raise TomlFileError(f"{_shown(path)}: {printable(wrong)}")


def _long_number(text: str) -> str | None:
    most = sys.get_int_max_str_digits()
    for match in re.finditer(r"[0-9][0-9_]*", text):
        if most and len(match[0].replace("_", "")) > most:
            return (
                f"a number of more than {most} digits (at line {text.count(chr(10), 0, match.start()) + 1}); shorten it"
            )
    return None


def _shown(path: Path) -> str:
    return printable(str(path))
