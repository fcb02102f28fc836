"""The conformance vectors: from the shared folder beside the repository if it is there, else from the packed copy."""

from __future__ import annotations

import functools
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

PACKED = Path(__file__).parent / "data" / "conformance.tar.xz"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
TABLE_NAMES = (
    "adapter-mix",
    "adapter-name",
    "dlm-id",
    "gate-config",
    "section-id",
    "split-assignment",
)


class Vector(NamedTuple):
    """One document and what reading it must give."""

    name: str
    data: bytes
    expected: dict[str, Any]


@functools.cache
def packed_files() -> dict[str, bytes]:
    """Relative name -> bytes of everything in the packed copy."""
    with tarfile.open(PACKED, "r:xz") as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
        return {name: handle.read() for name, handle in files.items() if handle is not None}


@functools.cache
def shared_files() -> dict[str, bytes]:
    """The same from the shared folder; empty where there is none."""
    paths = [*SHARED.glob("*.dlm"), *SHARED.glob("[0-9]*.json"), *SHARED.glob("tables/*.json")]
    return {path.relative_to(SHARED).as_posix(): path.read_bytes() for path in paths}


@functools.cache
def vectors() -> tuple[Vector, ...]:
    """All vectors by number."""
    files = shared_files() or packed_files()
    stems = sorted(name.removesuffix(".dlm") for name in files if name.endswith(".dlm"))
    return tuple(Vector(stem, files[f"{stem}.dlm"], json.loads(files[f"{stem}.json"])) for stem in stems)


@functools.cache
def table(name: str) -> tuple[dict[str, Any], ...]:
    """The cases of one table."""
    files = shared_files() or packed_files()
    return tuple(json.loads(files[f"tables/{name}.json"]))
