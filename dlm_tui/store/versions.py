"""Adapter versions: numbered folders that never change, and the pointer that says which one is in use."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dlm_tui.files import remove, sync_tree
from dlm_tui.platform import sync_directory
from dlm_tui.small_files import read_head
from dlm_tui.store.errors import REMEDY, PointerError, StoreError
from dlm_tui.store.journal import Change, change, pending
from dlm_tui.store.layout import ADAPTER_NAME, FLAT, Store
from dlm_tui.store.locks import store_lock
from dlm_tui.store.settled import current_path
from dlm_tui.store.version_record import (
    RECORD_NAME,
    AdapterVersion,
    end_claim,
    read_record,
    seal_version,
)
from dlm_tui.system_errors import cause

_VERSION = re.compile(r"v([0-9]+)")
_POINTER_LIMIT = 4096
_LOCK_SECONDS = 60.0
_DISCARD_SECONDS = 5.0  # whoever stops a training waits for it; what stays is found by `doctor`
_TRIES = 100


def current_version(store: Store, name: str) -> AdapterVersion | None:
    """The version that `current.txt` names, or None when nothing was committed.

    Raises PointerError when the pointer leads out of the store (also through links), to a folder that
    does not exist, or to one that is no version of this adapter.
    """
    pointer = store.adapter_dir(name) / "current.txt"
    target = _read_pointer(current_path(store, pointer), pointer)
    if target is None:
        return None
    path = _inside(store, pointer, target)
    match = _VERSION.fullmatch(path.name)
    if match is None:
        raise PointerError(f"{pointer} names {target!r}, which is not a version folder.")
    if not path.is_dir():
        raise PointerError(f"{pointer} names {target!r}, which does not exist.")
    if path.parent != (store.adapter_dir(name) / "versions").resolve():
        raise PointerError(f"{pointer} names {target!r}, which is not a version of the adapter {name!r}.")
    return AdapterVersion(name, int(match.group(1)), path)


def adapter_versions(store: Store, names: Iterable[str]) -> dict[str, AdapterVersion]:
    """The current version of each name that has one, in the order given, all as of one moment.

    Raises PointerError as `current_version` does, and for a pointer that is empty or gone though versions of that
    adapter were put in force.
    """
    wanted = list(names)
    for _ in range(_TRIES):
        found = {name: current_version(store, name) for name in wanted}
        # Versions only go forward: what reads the same twice, with no change under way, was so at one moment.
        if not pending(store) and found == {name: current_version(store, name) for name in wanted}:
            break
    manifest = None
    for name, version in found.items():
        if version is None and latest_version(store, name) is None:
            continue  # never trained
        from dlm_tui.store.manifest import read_manifest  # needs pydantic; a store without versions has no use for it

        manifest = manifest or read_manifest(store)
        if manifest is not None:
            recorded = manifest.adapter_version if name == FLAT else manifest.adapter_versions.get(name, 0)
            _refuse_wrong_pointer(store, name, version, recorded)
    return {name: version for name, version in found.items() if version is not None}


def trained_without_manifest(store: Store) -> str | None:
    """A sentence where adapters are in force and the manifest that every training writes is gone."""
    if os.path.lexists(store.manifest_path) or pending(store):
        return None
    for name in (FLAT, *stored_adapters(store)):
        with contextlib.suppress(PointerError):
            if (version := current_version(store, name)) is not None:
                return f"{store.manifest_path} is missing, though version {version.version} of {name!r} is in force."
    return None


def _refuse_wrong_pointer(store: Store, name: str, version: AdapterVersion | None, recorded: int) -> None:
    """Pointer and manifest change together here; another tool's pointer may be ahead, none may fall back or vanish."""
    pointer = store.adapter_dir(name) / "current.txt"
    if version is None and recorded:
        problem = f"is empty or missing, though version {recorded} of {name!r} was put in force"
    elif version is not None and recorded and version.version != recorded:
        if version.version > recorded and read_record(version.path) is None:
            return
        problem = f"names version {version.version} of {name!r}, the manifest says {recorded}"
    else:
        return
    raise PointerError(f"{pointer} {problem}.{REMEDY}")


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


def all_versions(store: Store, name: str) -> list[AdapterVersion]:
    """Every version folder of the adapter that exists, oldest first."""
    versions = store.adapter_dir(name) / "versions"
    return [AdapterVersion(name, number, versions / f"v{number:04d}") for number in sorted(_existing(versions))]


def latest_version(store: Store, name: str) -> int | None:
    """The highest version folder that exists, also an abandoned one; None without any."""
    return max(_existing(store.adapter_dir(name) / "versions"), default=None)


def existing_versions(store: Store, name: str) -> list[int]:
    """Numbers of the version folders of an adapter, also unfinished ones, in no order."""
    return _existing(store.adapter_dir(name) / "versions")


def commit_version(store: Store, version: AdapterVersion) -> None:
    """Flush the folder to disk, then point `current.txt` at it, holding the store.

    Raises StoreError for a folder that is empty or not one of this adapter's versions, OSError when the
    disk fails; the old version then stays in use.
    """
    with store_lock(store, _LOCK_SECONDS), change(store) as together:
        put_in_force(store, version, together)


def put_in_force(store: Store, version: AdapterVersion, together: Change) -> None:
    """`commit_version` as a part of a change of several files; the caller holds the store."""
    expected = store.adapter_dir(version.name) / "versions" / f"v{version.version:04d}"
    if version.path != expected or not version.path.is_dir() or version.path.is_symlink():
        raise StoreError(f"{version.path} is not a version folder of the adapter {version.name!r}.")
    if not any(path.name != RECORD_NAME for path in version.path.iterdir()):
        raise StoreError(f"{version.path} is empty and was not committed.")
    seal_version(version)
    end_claim(version)
    sync_tree(version.path)
    sync_directory(version.path.parent)
    line = version.path.relative_to(store.root).as_posix() + "\n"
    together.write(store.adapter_dir(version.name) / "current.txt", line.encode())


def discard_version(store: Store, version: AdapterVersion) -> None:
    """Remove a version that was trained in vain; one that somebody has put in force meanwhile stays.

    Raises LockHeld when the store is in use, OSError.
    """
    with store_lock(store, _DISCARD_SECONDS):
        in_use = current_version(store, version.name)
        if in_use is None or in_use.version != version.version:
            remove(version.path)


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


def _read_pointer(path: Path, pointer: Path) -> str | None:
    """The line in the file at `path`, which is that of `pointer`."""
    if pointer.is_symlink():
        raise PointerError(f"{pointer} is a link; a pointer must be a plain file.")
    if not path.exists():
        return None
    if not path.is_file():
        raise PointerError(f"{pointer} is not a plain file.")
    try:
        data = read_head(path, _POINTER_LIMIT + 1)
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise PointerError(f"{pointer} is not UTF-8 text.") from error
    except OSError as error:
        raise PointerError(f"{pointer} cannot be read: {cause(error)}.") from error
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
