"""The named sets of prompts that a person keeps beside `notes.dlm`, in `notes.prompts.json`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from dlm_tui.document.errors import printable
from dlm_tui.document.expectations import Expectation, read_expectation
from dlm_tui.document.json_file import decode_whole
from dlm_tui.document.replacing import update_beside
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_through_links
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

_MAX_BYTES = 16 << 20
# What a file raises that holds something else: no JSON, other types, a name twice, no UTF-8, nested too deeply, no
# expectation.
_DAMAGE = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError, DlmTuiError)


class PromptSetsError(DlmTuiError):
    """The file cannot be used; the sentence names it."""


@dataclass(frozen=True, slots=True)
class PromptCase:
    """A prompt of a set, with what is expected of its answer."""

    prompt: str
    expect: tuple[Expectation, ...] = ()


Sets: TypeAlias = dict[str, list[PromptCase]]


class _Written(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    prompt: str
    expect: list[str] = []


class PromptSets:
    """The file: one JSON object, set name → list of prompts.

    A prompt is a string, or an object with `prompt` and `expect`, a list such as `["contains: key", "adapter: tone"]`.
    """

    def __init__(self, document: Path) -> None:
        self._document, self.path = document, document.with_name(f"{document.stem}.prompts.json")

    def cases(self) -> dict[str, list[PromptCase]]:
        """Name → prompts in order with what is expected; a missing file has none. Raises PromptSetsError."""
        return _read_sets(self.path) or {}

    def load(self) -> dict[str, list[str]]:
        """Name → prompts in order, without what is expected. Raises PromptSetsError."""
        return {name: [case.prompt for case in cases] for name, cases in self.cases().items()}

    def save(self, sets: Mapping[str, Sequence[PromptCase | str]]) -> None:
        """Write all sets; prompts of which nothing is expected as strings, as ever. Raises OSError."""
        written = {name: [_entry(case) for case in cases] for name, cases in sets.items()}
        write_through_links(self.path, msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")

    def update(self, change: Callable[[Sets], object], tell_aside: Callable[[Path], object] | None = None) -> Sets:
        """Change the sets as they are in the file now; returns them. With `tell_aside` a file that cannot be read is
        set aside (`update_beside`). Raises PromptSetsError, NotSetAside, DocumentBusy, OSError."""
        return update_beside(self._document, self.path, self.cases, change, self.save, tell_aside)

    def prompts(self) -> list[str]:
        """The prompts of all sets, each once, in order, empty ones left out. Raises PromptSetsError."""
        return _every_prompt(self.cases())

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


def _every_prompt(sets: Mapping[str, Sequence[PromptCase]]) -> list[str]:
    return list(dict.fromkeys(case.prompt for cases in sets.values() for case in cases if case.prompt))


def _read_sets(path: Path) -> dict[str, list[PromptCase]] | None:
    """The sets of a file, None where there is none. Raises PromptSetsError."""
    shown = printable(str(path))
    try:
        data = read_file(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PromptSetsError(f"{shown} cannot be read: {cause(error)}.") from None
    try:
        written = decode_whole(data, dict[str, list[str | _Written]])
        return {name: [_case(entry) for entry in entries] for name, entries in written.items()}
    except _DAMAGE as error:
        text = printable(str(error)).rstrip(".")
        raise PromptSetsError(f"{shown} does not hold sets of prompts: {text}.") from None


def _case(entry: str | _Written) -> PromptCase:
    if isinstance(entry, str):
        return PromptCase(entry)
    return PromptCase(entry.prompt, tuple(read_expectation(text) for text in entry.expect))


def _entry(case: PromptCase | str) -> str | _Written:
    if isinstance(case, str):
        return case
    return _Written(case.prompt, [str(item) for item in case.expect]) if case.expect else case.prompt
