"""Adapter versions: numbered folders that never change, and the pointer that says which one is in use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.files import sync_directory, sync_tree, write_atomic
from dlm_tui.store.errors import PointerError, StoreError
from dlm_tui.store.layout import ADAPTER_NAME, FLAT, Store

_VERSION = re.compile(r"v([0-9]+)")
_POINTER_LIMIT = 4096


@dataclass(frozen=True)
class AdapterVersion:
    """One folder `versions/vNNNN` of one adapter."""

    name: str
    version: int
    path: Path


def current_version(store: Store, name: str) -> AdapterVersion | None:
    """The version that `current.txt` names, or None when nothing was committed.

    Raises PointerError when the pointer leads out of the store (also through links), to a folder that
    does not exist, or to one that is no version.
    """
    pointer = store.adapter_dir(name) / "current.txt"
    target = _read_pointer(pointer)
    if target is None:
        return None
    path = _inside(store, pointer, target)
    match = _VERSION.fullmatch(path.name)
    if match is None:
        raise PointerError(f"{pointer} names {target!r}, which is not a version folder.")
    if not path.is_dir():
        raise PointerError(f"{pointer} names {target!r}, which does not exist.")
    return AdapterVersion(name, int(match.group(1)), path)


def adapter_versions(store: Store, names: Iterable[str]) -> dict[str, AdapterVersion]:
    """The current version of each name that has one, in the order given."""
    found = {name: current_version(store, name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def stored_adapters(store: Store) -> list[str]:
    """Names of the named adapters that have a folder, alphabetical; the flat layout is not one of them."""
    if not store.adapters_dir.is_dir():
        return []
    names = []
    for path in store.adapters_dir.iterdir():
        # `adapter/versions/` is the flat layout's; an adapter of that name has its own folders inside it.
        own = path.name != "versions" or (path / "versions").is_dir() or (path / "current.txt").is_file()
        if own and ADAPTER_NAME.fullmatch(path.name) and path.name != FLAT and path.is_dir():
            names.append(path.name)
    return sorted(names)


def latest_version(store: Store, name: str) -> int | None:
    """The highest version folder that exists, also an abandoned one; None without any."""
    return max(_existing(store.adapter_dir(name) / "versions"), default=None)


def existing_versions(store: Store, name: str) -> list[int]:
    """Numbers of the version folders of an adapter, also unfinished ones, in no order."""
    return _existing(store.adapter_dir(name) / "versions")


def new_version(store: Store, name: str) -> AdapterVersion:
    """Create the next empty version folder; it is in use only after `commit_version`."""
    versions = store.adapter_dir(name) / "versions"
    try:
        versions.mkdir(parents=True, exist_ok=True)
        number = max(_existing(versions), default=0) + 1
        while True:
            path = versions / f"v{number:04d}"
            try:
                path.mkdir()
                return AdapterVersion(name, number, path)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise StoreError(f"A new version cannot be created in {versions}: {error.strerror}.") from error


def commit_version(store: Store, version: AdapterVersion) -> None:
    """Flush the folder to disk, then point `current.txt` at it.

    Raises StoreError for a folder that is empty or not one of this adapter's versions, OSError when the
    disk fails; the old version then stays in use.
    """
    expected = store.adapter_dir(version.name) / "versions" / f"v{version.version:04d}"
    if version.path != expected or not version.path.is_dir() or version.path.is_symlink():
        raise StoreError(f"{version.path} is not a version folder of the adapter {version.name!r}.")
    if not any(version.path.iterdir()):
        raise StoreError(f"{version.path} is empty and was not committed.")
    sync_tree(version.path)
    sync_directory(version.path.parent)
    line = version.path.relative_to(store.root).as_posix() + "\n"
    write_atomic(store.adapter_dir(version.name) / "current.txt", line.encode())


def reject_version(store: Store, version: AdapterVersion) -> Path:
    """Rename a bad folder to `vNNNN-rejected` (`-rejected-1`, …) and return the new path; the pointer stays.

    Raises StoreError when the version is the one in use.
    """
    in_use = current_version(store, version.name)
    if in_use is not None and in_use.path.resolve() == version.path.resolve():
        raise StoreError(f"{version.path} is in use and cannot be rejected.")
    number = 0
    while True:
        suffix = f"-{number}" if number else ""
        target = version.path.with_name(f"{version.path.name}-rejected{suffix}")
        if not os.path.lexists(target):
            version.path.rename(target)
            sync_directory(target.parent)
            return target
        number += 1


def _existing(versions: Path) -> list[int]:
    if not versions.is_dir():
        return []
    matches = ((_VERSION.fullmatch(path.name), path) for path in versions.iterdir())
    return [int(match.group(1)) for match, path in matches if match is not None and path.is_dir()]


def _read_pointer(pointer: Path) -> str | None:
    if pointer.is_symlink():
        raise PointerError(f"{pointer} is a link; a pointer must be a plain file.")
    if not pointer.exists():
        return None
    if not pointer.is_file():
        raise PointerError(f"{pointer} is not a plain file.")
    try:
        with pointer.open("rb") as handle:
            data = handle.read(_POINTER_LIMIT + 1)
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise PointerError(f"{pointer} is not UTF-8 text.") from error
    except OSError as error:
        raise PointerError(f"{pointer} cannot be read: {error.strerror}.") from error
    if len(data) > _POINTER_LIMIT or "\n" in text or "\r" in text or "\0" in text:
        raise PointerError(f"{pointer} does not hold one line with one path.")
    return text or None


def _inside(store: Store, pointer: Path, target: str) -> Path:
    relative = Path(target)
    try:
        root = store.root.resolve()
        resolved = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise PointerError(f"{pointer} names a path that cannot be followed.") from error
    if relative.is_absolute() or ".." in relative.parts or not resolved.is_relative_to(root) or resolved == root:
        raise PointerError(f"{pointer} names {target!r}, which is outside the store.")
    return resolved
