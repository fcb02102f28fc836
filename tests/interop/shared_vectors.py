"""Reference files: from the shared folder beside the repository if it is there, else from the packed copy."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

_DATA = Path(__file__).parent / "data"
_SHARED = Path(__file__).resolve().parents[3] / "shared"


@functools.cache
def packed(name: str) -> dict[str, bytes]:
    """File name -> bytes of the packed copy of a folder of references."""
    with tarfile.open(_DATA / f"{name}.tar.xz", "r:xz") as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
        return {name: handle.read() for name, handle in files.items() if handle is not None}


@functools.cache
def shared(name: str) -> dict[str, bytes]:
    """The same from the shared folder; empty where there is none."""
    return {path.name: path.read_bytes() for path in sorted((_SHARED / name).glob("*")) if path.is_file()}


def references(name: str) -> dict[str, bytes]:
    """All files of a folder of references, by name."""
    return dict(sorted((shared(name) or packed(name)).items()))
