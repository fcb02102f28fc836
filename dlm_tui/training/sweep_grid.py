"""Which settings a sweep tries: every combination of the given values, as documents. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlm_tui.document import Document, parse_bytes, setting_paths, with_settings
from dlm_tui.document.errors import SchemaValidationError
from dlm_tui.errors import UsageError

MAX_TRIALS = 1000


@dataclass(frozen=True)
class Setting:
    """A path below `training` and the values to try, as they would be written into the document."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One combination: what was asked for, what it means for the document, and the document with it."""

    settings: dict[str, str]
    written: dict[str, str]
    document: Document


def parse_grid(texts: Sequence[str]) -> tuple[Setting, ...]:
    """`["learning_rate=1e-4,3e-4", …]` as settings. Raises UsageError."""
    found: dict[str, Setting] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        path = path.strip().removeprefix("training.")
        listed = tuple(dict.fromkeys(part.strip() for part in values.split(",")))
        if not equals or not path or not all(listed):
            raise UsageError(f"--set {text!r} is not PATH=VALUE,VALUE, such as learning_rate=1e-4,3e-4")
        if path in found:
            raise UsageError(f"--set {path} is given twice")
        found[path] = Setting(path, listed)
    if not found:
        raise UsageError("give at least one --set PATH=VALUE,VALUE")
    return tuple(found.values())


def trials_of(document: Document, data: bytes, grid: Sequence[Setting]) -> list[Trial]:
    """Every combination over `document`, whose bytes are `data`; the sections of its sources stay.

    Raises UsageError for a path that means nothing, a value that the schema refuses or more than 1000 combinations,
    DlmTuiError where the frontmatter has no place for a setting.
    """
    count = 1
    for setting in grid:
        count *= len(setting.values)
    if count > MAX_TRIALS:
        raise UsageError(f"{count} combinations are more than {MAX_TRIALS}: try fewer values at once")
    found = []
    for values in itertools.product(*(setting.values for setting in grid)):
        settings = {setting.path: value for setting, value in zip(grid, values, strict=True)}
        written: dict[str, str] = {}
        # A setting of one adapter comes before the same of all.
        for path in sorted(settings, key=lambda path: path.startswith("adapters.")):
            written.update(dict.fromkeys(setting_paths(document, path), settings[path]))
        try:
            changed = parse_bytes(with_settings(data, written, document.path), document.path)
        except SchemaValidationError as error:
            tried = ", ".join(f"{path}={value}" for path, value in settings.items())
            raise UsageError(f"--set {tried} makes no valid document: {error.text}") from None
        found.append(Trial(settings, written, replace(changed, sections=document.sections)))
    return found


def only_gate(grid: Sequence[Setting]) -> bool:
    """Whether nothing but the gate is tried, so that no adapter has to be trained."""
    return all(setting.path.startswith("gate.") for setting in grid)
