"""Unpacking: a checked pack becomes a document and a store, and nothing that is there is overwritten."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.files import clear_scratch_of, put_in_place, scratch_sibling, sha256_file, sync_tree, write_atomic
from dlm_tui.store.examine import examine
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import store_lock
from dlm_tui.store.manifest import manifest_bytes
from dlm_tui.store.packs.layout import (
    DOCUMENT_FOLDER,
    LOCK_NAMES,
    STORE_FOLDER,
    STORE_MANIFEST,
    PackError,
    PackIntegrityError,
    named,
    stays_behind,
)
from dlm_tui.store.packs.reading import CheckedPack, OnProgress, check_pack, read_members
from dlm_tui.store.shared_files import share_versions
from dlm_tui.system_errors import naming

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Where a pack went; `left_out` are files of jobs and locks, which belong where they were made. `damage` is what
    was wrong with the store when it was packed, a sentence each."""

    document: Path
    store: Store
    pack: CheckedPack
    left_out: int
    damage: tuple[str, ...]


def unpack(
    path: Path, home: Path, folder: Path | None = None, *, force: bool = False, on_progress: OnProgress | None = None
) -> Unpacked:
    """Check the pack, then put its document into `folder` (default: the pack's) and its store into `home`.

    The store then belongs to the document's new path. Jobs in line and checkpoints are left out: they name documents,
    homes and places to write to, and would run as soon as the document is opened. A document of the same name with
    other contents is never overwritten; a store of the same id only with `force`. Raises PackError for either and for
    everything `check_pack` raises, LockHeld, LockStale; OSError if the disk refuses. In all these cases nothing is left
    behind.
    """
    pack = check_pack(path, on_progress)
    folder = (folder or path.parent).absolute()
    store = Store(home, pack.manifest.dlm_id)
    exists = _is_taken(store.root)
    if exists and not force:
        raise PackError(f"{store.root} exists already; --force replaces it with the store of the pack")
    wanted = {
        folder / name.removeprefix(f"{DOCUMENT_FOLDER}/"): digest
        for name, digest in pack.checksums.items()
        if name.startswith(f"{DOCUMENT_FOLDER}/")
    }
    for target, digest in wanted.items():
        if os.path.lexists(target) and _digest(target) != digest:
            raise PackError(f"{target} exists already and is another file; name another folder with --out")
    _check_space(home, pack)
    store.root.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch_of(store.root)
    scratch = scratch_sibling(store.root)
    scratch.mkdir()
    created: list[Path] = []
    try:
        with naming(scratch):
            small = _extract(pack, scratch)
        share_versions(scratch / "adapter")
        pack.store_manifest.source_path = str(folder / pack.document_name)
        (scratch / "manifest.json").write_bytes(manifest_bytes(pack.store_manifest))
        sync_tree(scratch)
        for target in wanted:
            if not target.exists():
                created.append(target)
                write_atomic(target, small[target.name])
        if store.root.is_dir():
            with store_lock(store):
                put_in_place(scratch, store.root)
        else:
            put_in_place(scratch, store.root)
    except BaseException:
        for target in created:
            target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    left_out = sum(stays_behind(name.removeprefix(f"{STORE_FOLDER}/")) for name in pack.checksums)
    findings = examine(store, pack.document.adapter_names, pack.document.base_model)
    damage = tuple(finding.text for finding in findings if finding.severity == "damage")
    return Unpacked(folder / pack.document_name, store, pack, left_out, damage)


def _is_taken(root: Path) -> bool:
    """Whether anything has the place of a store, a link to nothing too; a folder with nothing but locks has not."""
    if not root.is_dir():
        return os.path.lexists(root)
    return any(entry.name not in LOCK_NAMES for entry in root.iterdir())


def _extract(pack: CheckedPack, scratch: Path) -> dict[str, bytes]:
    """Write the store below `scratch`; returns what belongs beside the document, by file name.

    The file may have been replaced since it was checked, so every byte is compared again.
    """
    beside: dict[str, bytes] = {}
    written: set[str] = set()
    for member in read_members(pack.path):
        top, _, inner = member.name.partition("/")
        if member.name not in pack.checksums and not member.is_folder:
            continue
        target = scratch / inner
        digest = hashlib.sha256()
        if top == STORE_FOLDER and inner and not stays_behind(inner):
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as handle:
                for chunk in member.chunks():
                    digest.update(chunk)
                    handle.write(chunk)
        elif not member.is_folder:
            kept = bytearray()
            for chunk in member.chunks():
                digest.update(chunk)
                if top == DOCUMENT_FOLDER:
                    kept += chunk
            if top == DOCUMENT_FOLDER:
                beside[inner] = bytes(kept)
        else:
            continue
        if digest.hexdigest() != pack.checksums[member.name]:
            raise PackIntegrityError(f"{named(member.name)} changed while the pack was unpacked")
        written.add(member.name)
    if STORE_MANIFEST not in written or written != set(pack.checksums):
        raise PackIntegrityError(f"{pack.path} changed while it was unpacked")
    return beside


def _digest(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None


def _check_space(home: Path, pack: CheckedPack) -> None:
    there = home
    while not there.exists():
        there = there.parent
    needed = pack.store_bytes + _SPARE_BYTES
    if shutil.disk_usage(there).free < needed:
        raise PackError(f"{home} has too little room: the pack needs {needed >> 20} MiB")
