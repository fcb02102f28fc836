"""Putting a finished export in its place: beside it first, swapped in whole, never over somebody else's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlm_tui.export.requests import ExportRefused
from dlm_tui.files import left_scratch, put_in_place, scratch_sibling, sync_tree
from dlm_tui.input import is_utf8
from dlm_tui.model.memory import gigabytes
from dlm_tui.small_files import read_file

MANIFEST = "export_manifest.json"
CREATOR = "dlm-tui-"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an export that this program wrote, or None."""
    try:
        manifest = json.loads(read_file(folder / MANIFEST))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not str(manifest.get("created_by", "")).startswith(CREATOR):
        return None
    return manifest


def check_destination(target: Path) -> None:
    """Raises ExportRefused unless `target` is absent, an empty folder, or an export of this program."""
    if not is_utf8(str(target)):
        raise ExportRefused(f"{target} is not UTF-8 text, which writing there needs; choose another folder")
    if not target.exists() and not target.is_symlink():
        above = next(part for part in target.absolute().parents if os.path.lexists(part))
        if not above.is_dir():
            raise ExportRefused(f"{target} cannot be written: {above} is not a folder; choose another folder")
        return
    if not target.is_dir():
        raise ExportRefused(f"{target} exists and is not a folder; choose another folder")
    if not any(target.iterdir()):
        return
    manifest = read_manifest(target)
    if manifest is None:
        raise ExportRefused(
            f"{target} is not empty and holds no export of this program, so nothing there is replaced; "
            "choose another folder"
        )
    strange = _not_exported(target, manifest)
    if strange:
        raise ExportRefused(
            f"{target} also holds {strange[0]}, which no export wrote and which would be lost; "
            "move it, or choose another folder"
        )


def _not_exported(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files below `folder` that its manifest does not name: somebody put them there."""
    named = {str(item.get("path")) for item in manifest.get("artifacts", []) if isinstance(item, dict)}
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [name for name in found if name not in named | {MANIFEST}]


def check_space(target: Path, needed: int, spare: int) -> None:
    """Raises ExportRefused when the file system of `target` has fewer than `needed` bytes left, and `spare` for what is
    small or in passing."""
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    total, _, free = shutil.disk_usage(existing)
    if total > 0 and free < needed + spare:  # a file system without a size cannot say: writing will
        room = f", and {gigabytes(spare)} have to stay free" if free >= needed else ""
        raise ExportRefused(
            f"the disk of {target} is too full: the export takes about {gigabytes(needed)}, {gigabytes(free)} are "
            f"free{room}"
        )


def recover(target: Path) -> None:
    """Clear up after an export to `target` that was killed: a swap cut in half is undone, half-written folders go."""
    if not target.parent.is_dir():
        return
    left = [path for path in left_scratch(target.parent) if path.name.startswith(f"{target.name}.tmp.")]
    if not target.exists():
        whole = [path for path in left if read_manifest(path) is not None]
        if whole:
            kept = max(whole, key=lambda path: path.stat().st_mtime)
            kept.replace(target)
            left.remove(kept)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`; when the block ends well it takes the place of `target`, else it is removed.

    Where the system can exchange two names at once (Linux, macOS) there is no moment without a complete export at
    `target`; elsewhere the old one is moved aside for the swap, and `recover` finds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    scratch = scratch_sibling(target)
    scratch.mkdir()
    try:
        yield scratch
        sync_tree(scratch)
        check_destination(target)  # somebody may have come meanwhile
        put_in_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
