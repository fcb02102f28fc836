"""Which folders a new document learns from, and which adapter each of them trains."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.names import is_adapter_name
from dlm_tui.errors import UsageError

_MOST_ADAPTERS = 8
_MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class LearnedFolder:
    """A folder whose files train one adapter; `source` is the folder that the document names, it or one above it."""

    source: Path
    folder: Path
    adapter: str
    file_count: int


def folders_to_learn(given: Sequence[Path], adapters: Sequence[str] = ()) -> list[LearnedFolder]:
    """One entry per adapter that is learned from a folder.

    Several folders are one adapter each. One folder is divided into its sub-folders if it has two to eight of them with
    files and none beside them; otherwise it is one adapter. `adapters` names them in order. Raises UsageError for what
    is no folder, for names that cannot be adapters and for another number of names than folders.
    """
    for folder in given:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder")
    pairs = [(folder, folder) for folder in given]
    if len(given) == 1:
        inside = [(given[0], folder) for folder in _sub_folders(given[0])]
        if 2 <= len(inside) <= _MOST_ADAPTERS and len(adapters) in (0, len(inside)):
            pairs = inside
    if adapters and len(adapters) != len(pairs):
        shown = ", ".join(str(folder) for _, folder in pairs)
        raise UsageError(f"{len(adapters)} adapters were named for {len(pairs)} folders: {shown}")
    names = list(adapters) or _names([folder for _, folder in pairs])
    return [
        LearnedFolder(source, folder, name, _count(folder)) for (source, folder), name in zip(pairs, names, strict=True)
    ]


def _sub_folders(folder: Path) -> list[Path]:
    """The sub-folders with files, none if the folder has files of its own."""
    inside = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir(follow_symlinks=False):
                return []
            if _count(Path(entry.path), 1):
                inside.append(Path(entry.path))
    return inside


def _count(folder: Path, most: int = _MOST_COUNTED) -> int:
    count = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(not name.startswith(".") for name in names)
        if count >= most:
            return most
    return count


def _names(folders: Sequence[Path]) -> list[str]:
    """Adapter names after the folders' own, made different where they are equal."""
    names: list[str] = []
    for folder in folders:
        plain = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
        base = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")
        base = base if is_adapter_name(base[:24]) else f"notes_{base}".rstrip("_")
        name, number = base[:24], 1
        while name in names or name in _RESERVED:
            number += 1
            name = f"{base[:24]}_{number}"
        names.append(name)
    return names


# `versions` is a folder of the flat store layout; the others are words that YAML takes for something else.
_RESERVED = frozenset(("versions", "default", "on", "off", "yes", "no", "true", "false", "null", "y", "n"))
