"""`tui_version.json` in a version folder: who is filling it, and what its files were when it was finished.

An addition of this program: versions without it are as valid as before, only nothing can be checked on them.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_tui.files import json_bytes, sha256_file, write_atomic
from dlm_tui.platform import process_lives
from dlm_tui.store.errors import VersionDamaged
from dlm_tui.store.layout import FLAT, Store

RECORD_NAME = "tui_version.json"
FORMAT = 1
# What an adapter is made of when it is applied; a tokenizer beside it is for other tools.
_APPLIED = ("adapter_model.safetensors", "adapter_config.json")
_LIMIT = 1 << 20


@dataclass(frozen=True)
class AdapterVersion:
    """One folder `versions/vNNNN` of one adapter."""

    name: str
    version: int
    path: Path


def begin_record(version: AdapterVersion) -> None:
    """Mark a new folder as being filled by this process. Raises OSError."""
    _write(version, "filling", {})


def seal_version(version: AdapterVersion) -> None:
    """Write down the hash and size of every file of a folder that was being filled. Raises OSError."""
    record = read_record(version.path)
    if record is not None and record["state"] == "filling":
        _write(version, "trained", _files(version.path))


def mark_kept(version: AdapterVersion, kept: bool = True) -> None:
    """Say that this version was trained, is not in force, and is only a person's to remove. Raises OSError."""
    _write(version, "kept" if kept else "trained", _files(version.path))


def is_kept(folder: Path) -> bool:
    """Whether `mark_kept` marked the folder."""
    record = read_record(folder)
    return record is not None and record["state"] == "kept"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a version folder with at least `state`, or None: other tools write none."""
    path = folder / RECORD_NAME
    try:
        if path.is_symlink() or path.stat().st_size > _LIMIT:
            return None
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and isinstance(raw.get("state"), str) else None


def writer_is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that made the folder ran on this host and has ended."""
    pid, host = record.get("pid"), record.get("host")
    return isinstance(pid, int) and host == socket.gethostname() and not process_lives(pid)


def filled_by_others(record: dict[str, Any] | None) -> bool:
    """Whether another process, which may have ended, began to fill the folder and has not finished it."""
    return record is not None and record["state"] == "filling" and record.get("pid") != os.getpid()


def held_by_others(record: dict[str, Any] | None) -> bool:
    """Whether another process of this host that made the folder still runs."""
    if record is None or record.get("host") != socket.gethostname() or record.get("pid") == os.getpid():
        return False
    return isinstance(record.get("pid"), int) and process_lives(record["pid"])


def damaged_files(version: AdapterVersion, *, all_files: bool = False) -> list[str]:
    """Names of files that are not what the record says; [] for a version without a record."""
    record = read_record(version.path)
    if record is None:
        # A record that is there and cannot be read says nothing about the files, but it is damaged itself.
        return [RECORD_NAME] if os.path.lexists(version.path / RECORD_NAME) else []
    files = record.get("files")
    if not isinstance(files, dict):
        return [RECORD_NAME]
    names = [name for name in files if all_files or name in _APPLIED]
    return [name for name in names if not _matches(version.path / name, files[name])]


def verify_version(store: Store, version: AdapterVersion) -> None:
    """Raises VersionDamaged naming the file, and the newest older version that is sound."""
    damaged = damaged_files(version)
    if not damaged:
        return
    good = last_good_version(store, version.name, below=version.version)
    adapter = "the adapter" if version.name == FLAT else f"the adapter {version.name!r}"
    remedy = (
        f"the last good version of {adapter} is {good}: `dlm-tui adapter use DOC {version.name} --version {good}`."
        if good is not None
        else f"no older version of {adapter} is sound: train it again."
    )
    raise VersionDamaged(f"{version.path / damaged[0]} is not the file that was written (its hash differs); {remedy}")


def last_good_version(store: Store, name: str, *, below: int | None = None) -> int | None:
    """The newest finished version whose files are what they were, below a number if one is given."""
    versions = store.adapter_dir(name) / "versions"
    numbers = sorted(
        (int(path.name[1:]) for path in versions.glob("v*") if path.name[1:].isdecimal() and path.is_dir()),
        reverse=True,
    )
    for number in numbers:
        version = AdapterVersion(name, number, versions / f"v{number:04d}")
        record = read_record(version.path)
        finished = record is None or record["state"] != "filling"
        older = below is None or number < below
        if older and finished and (version.path / _APPLIED[1]).is_file() and not damaged_files(version):
            return number
    return None


def _matches(path: Path, wanted: Any) -> bool:
    try:
        return (
            isinstance(wanted, dict)
            and path.stat().st_size == wanted.get("size")
            and sha256_file(path) == wanted.get("sha256")
        )
    except OSError:
        return False


def _files(folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != RECORD_NAME
    }


def _write(version: AdapterVersion, state: str, files: dict[str, Any]) -> None:
    value = {
        "format": FORMAT,
        "adapter": version.name,
        "version": version.version,
        "state": state,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "files": files,
    }
    write_atomic(version.path / RECORD_NAME, json_bytes(value))
