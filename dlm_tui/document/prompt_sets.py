"""The named sets of prompts that a person keeps beside a document, in `<document>.prompts.json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dlm_tui.document.errors import printable
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_atomic

_MAX_BYTES = 16 << 20


class PromptSetsError(DlmTuiError):
    """The file cannot be used; the sentence names it."""


class PromptSets:
    """The file: one JSON object, set name → list of prompts."""

    def __init__(self, document: Path) -> None:
        self.path = document.with_name(f"{document.stem}.prompts.json")

    def load(self) -> dict[str, list[str]]:
        """Name → prompts in order; a missing file has none. Raises PromptSetsError."""
        return _read_sets(self.path) or {}

    def save(self, sets: dict[str, list[str]]) -> None:
        """Write all sets. Raises OSError."""
        write_atomic(self.path, msgspec.json.format(msgspec.json.encode(sets), indent=2) + b"\n")

    def prompts(self) -> list[str]:
        """The prompts of all sets, each once, in order, empty ones left out. Raises PromptSetsError."""
        return _every_prompt(self.load())

    def usable_prompts(self) -> list[str]:
        """`prompts`, or none, which is logged, where the file cannot be used: it is never in the way of other work."""
        try:
            return self.prompts()
        except PromptSetsError as error:
            logging.getLogger(__name__).warning("the saved prompts are left out: %s", error)
            return []


def read_prompts(path: Path) -> list[str]:
    """The prompts of all sets in a file, each once, in order. Raises PromptSetsError, also where there is none."""
    sets = _read_sets(path)
    if sets is None:
        raise PromptSetsError(f"{printable(str(path))} does not exist.")
    if prompts := _every_prompt(sets):
        return prompts
    raise PromptSetsError(f"{printable(str(path))} holds no prompt.")


def _every_prompt(sets: Mapping[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(prompt for prompts in sets.values() for prompt in prompts if prompt))


def _read_sets(path: Path) -> dict[str, list[str]] | None:
    """The sets of a file, None where there is none. Raises PromptSetsError."""
    shown = printable(str(path))
    try:
        with path.open("rb") as handle:
            data = handle.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PromptSetsError(f"{shown} cannot be read: {error.strerror or error}.") from None
    if len(data) > _MAX_BYTES:
        raise PromptSetsError(f"{shown} is larger than {_MAX_BYTES >> 20} MiB, too large for sets of prompts.")
    try:
        return msgspec.json.decode(data, type=dict[str, list[str]])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise PromptSetsError(f"{shown} does not hold sets of prompts: {printable(str(error))}.") from None
