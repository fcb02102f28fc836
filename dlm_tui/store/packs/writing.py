"""Making a pack of a document and its store."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from dlm_tui import __version__
from dlm_tui.document import Document, parse_bytes, read_document_bytes
from dlm_tui.files import clear_scratch_of, scratch_sibling, temporary_folder
from dlm_tui.platform import on_read_only_medium, sync_directory
from dlm_tui.store.errors import ManifestError
from dlm_tui.store.examine import examine
from dlm_tui.store.journal import pending
from dlm_tui.store.layout import Store, utc_seconds
from dlm_tui.store.locks import store_lock
from dlm_tui.store.manifest import Manifest, read_lock_record, read_manifest
from dlm_tui.store.packs.layout import (
    CHECKSUMS,
    DOCUMENT_FOLDER,
    FORMAT_VERSION,
    HEADER,
    MANIFEST,
    MAX_PART_BYTES,
    STORE_FOLDER,
    SUFFIX,
    Header,
    PackError,
    PackLayoutError,
    PackManifest,
    checksums_bytes,
    companions,
    content_sha256,
    named,
    record_bytes,
    stays_behind,
    why_not_named,
)
from dlm_tui.store.packs.reading import OnProgress
from dlm_tui.store.sqlite import read_database
from dlm_tui.system_errors import database_reason, naming

_CHUNK = 1 << 20
_LEVEL = 10


@dataclass(frozen=True, slots=True)
class PackContents:
    """What goes into a pack besides the adapters, the gate, the metrics and the rest of the store."""

    exports: bool = False
    cache: bool = False
    logs: bool = False

    @property
    def content_type(self) -> str:
        """The other tool's word for it; logs do not count."""
        if self.exports:
            return "full" if self.cache else "no-base"
        return "no-exports" if self.cache else "minimal"


@dataclass(frozen=True, slots=True)
class Packed:
    """A written pack: its size and that of its contents in bytes, and how many files lost the right to be executed."""

    path: Path
    size: int
    content_bytes: int
    files: int
    executables: int


@dataclass(frozen=True, slots=True)
class _File:
    """Where a member's bytes come from: a file, or bytes in memory."""

    source: Path | bytes
    executable: bool = False

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def write_pack(
    document_path: Path,
    store: Store,
    target: Path | None = None,
    contents: PackContents | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Packed:
    """Pack a document with its store, into `<document>.pack` unless `target` is another file.

    The store is held meanwhile, where anybody can write it. `on_progress` is called with the content bytes written so
    far and all of them. Raises PackError if the target exists, if the store was never trained or is damaged, or if a
    link leads out of it; LockHeld, LockStale; OSError if the disk refuses. The target then is what it was before.
    """
    if (why := why_not_named(document_path.name)) is not None:
        raise PackLayoutError(f"{document_path} cannot be packed: its name {why}; rename it")
    if target is None:
        target = document_path.with_name(document_path.name + SUFFIX)
        if len(os.fsencode(scratch_sibling(target).name)) > MAX_PART_BYTES:
            raise PackError(f"{document_path} has too long a name for {SUFFIX} behind it; name the pack with --out")
    if target.exists() and not overwrite:
        raise PackError(f"{target} exists already; nothing was overwritten")
    data = read_document_bytes(document_path)
    document = parse_bytes(data, document_path)
    if document.dlm_id != store.dlm_id:
        raise PackError(f"{document_path} has the id {document.dlm_id}, the store {store.dlm_id}")
    if not store.manifest_path.is_file():
        raise ManifestError(f"{store.manifest_path} does not exist: train {document_path} once before packing it.")
    with _held(store), temporary_folder("pack") as scratch:
        manifest = read_manifest(store)
        if manifest is None:
            raise ManifestError(f"{store.manifest_path} does not exist.")
        _refuse_damaged(store, document)
        name = document_path.name if document_path.name.endswith(".dlm") else f"{document_path.name}.dlm"
        files = {f"{DOCUMENT_FOLDER}/{name}": _File(data)}
        for own, packed in zip(companions(document_path.name), companions(name), strict=True):
            if (beside := document_path.with_name(own)).is_file():
                files[f"{DOCUMENT_FOLDER}/{packed}"] = _File(beside)
        folders: list[str] = [DOCUMENT_FOLDER, STORE_FOLDER]
        _add_store(store, contents or PackContents(), files, folders, scratch)
        header = _header(store, contents or PackContents())
        return _write(target, header, _manifest(document.dlm_id, manifest), files, folders, on_progress)


@contextmanager
def _held(store: Store) -> Iterator[None]:
    """Nobody changes the store meanwhile: it is held, or lies where nobody can write, and no lock can be made."""
    if not on_read_only_medium(store.root):
        with store_lock(store):
            yield
    elif pending(store):
        raise PackError(
            f"{store.root} is read-only, and a change of it was cut short; pack it where it can be finished"
        )
    else:
        yield


def _refuse_damaged(store: Store, document: Document) -> None:
    """A pack of a damaged store would be sound by its own lists, and could have the place of a good one."""
    for finding in examine(store, document.adapter_names, document.base_model, checkpoints=False):
        if finding.severity == "damage":
            raise PackError(f"nothing was packed: {finding.text} `dlm-tui doctor DOC` tells more.")


def _header(store: Store, contents: PackContents) -> Header:
    record = read_lock_record(store)
    backend = record.hardware_tier.partition("-")[0] if record is not None else "cpu"
    return Header(
        pack_format_version=FORMAT_VERSION,
        created_at=utc_seconds(),
        tool_version=f"dlm-tui {__version__}",
        content_type=contents.content_type,
        platform_hint=f"{sys.platform}-{backend}",
    )


def _manifest(dlm_id: str, stored: Manifest) -> PackManifest:
    return PackManifest(
        dlm_id=dlm_id,
        base_model=stored.base_model,
        base_model_revision=stored.base_model_revision,
        base_model_sha256=stored.base_model_sha256,
        adapter_version=stored.adapter_version,
    )


def _add_store(
    store: Store, contents: PackContents, files: dict[str, _File], folders: list[str], scratch: Path
) -> None:
    left_out = {
        name
        for name, wanted in (("exports", contents.exports), ("cache", contents.cache), ("logs", contents.logs))
        if not wanted
    }
    database = store.metrics_path.name
    left_out |= {f"{database}-wal", f"{database}-shm", f"{database}-journal"}
    root = os.path.realpath(store.root)
    pending = [("", root)]
    while pending:
        prefix, folder = pending.pop()
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if not prefix and (entry.name in left_out or stays_behind(entry.name)):
                continue
            member = f"{STORE_FOLDER}/{prefix}{entry.name}"
            # A line feed would end the line of its checksum.
            if not entry.name.isprintable():
                raise PackLayoutError(f"the store's file {named(prefix + entry.name)} cannot be packed under that name")
            real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if not real.startswith(root + os.sep):
                raise PackLayoutError(f"the link {named(prefix + entry.name)} leads out of the store")
            if entry.is_dir():
                if entry.is_symlink():
                    raise PackLayoutError(f"the store's {named(prefix + entry.name)} is a link to a folder")
                folders.append(member)
                pending.append((f"{prefix}{entry.name}/", entry.path))
            elif entry.is_file():
                files[member] = _File(Path(real), bool(entry.stat().st_mode & 0o111))
    if store.metrics_path.is_file():
        # One file that is complete by itself, whatever a reader or a crashed writer left beside it.
        files[f"{STORE_FOLDER}/{database}"] = _File(_copy_database(store.metrics_path, scratch / database))


def _copy_database(path: Path, copy: Path) -> Path:
    import sqlite3

    def backup(source: sqlite3.Connection) -> None:
        copy.unlink(missing_ok=True)
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            target.close()

    try:
        read_database(path, backup)
    except sqlite3.Error as error:
        raise PackError(f"{path} cannot be read: {database_reason(error, path)}") from error
    return copy


def _write(
    target: Path,
    header: Header,
    manifest: PackManifest,
    files: dict[str, _File],
    folders: list[str],
    on_progress: OnProgress | None,
) -> Packed:
    files = {HEADER: _File(record_bytes(header)), **files}
    checksums: dict[str, str] = {}
    for name, file in files.items():
        checksums[name], manifest.entries[name] = _hash(file)
    manifest.entries = {name: manifest.entries[name] for name in sorted(files, key=lambda name: name.split("/"))}
    manifest.content_sha256 = content_sha256(checksums)
    total = sum(manifest.entries.values())
    files[CHECKSUMS] = _File(checksums_bytes(checksums))
    files[MANIFEST] = _File(record_bytes(manifest))
    done = 0
    with (
        _new_file(target) as raw,
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False) as plain,
        tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted([*files, *folders], key=lambda name: name.split("/")):
            if name not in files:
                archive.addfile(_info(name, is_folder=True))
                continue
            size = manifest.entries.get(name)
            _add_file(archive, name, files[name], size, checksums.get(name))
            done += size or 0
            if on_progress is not None:
                on_progress(done, total)
    executables = sum(file.executable for file in files.values())
    return Packed(target, target.stat().st_size, total, len(files), executables)


def _info(name: str, *, is_folder: bool = False, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
    info.mode = 0o755 if is_folder else 0o644
    info.size = size
    return info


def _add_file(archive: tarfile.TarFile, name: str, file: _File, size: int | None, wanted: str | None) -> None:
    with file.open() as handle:
        if size is None:
            assert isinstance(file.source, bytes)
            size = len(file.source)
        reader = _Hashing(handle)
        try:
            archive.addfile(_info(name, size=size), reader)
        except OSError as error:
            if "unexpected end" not in str(error):
                raise
            raise PackError(f"{named(name)} became shorter while it was packed") from None
    if wanted is not None and reader.digest.hexdigest() != wanted:
        raise PackError(f"{named(name)} changed while it was packed")


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(size)
        self.digest.update(data)
        return data


def _hash(file: _File) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with file.open() as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


@contextmanager
def _new_file(target: Path) -> Iterator[IO[bytes]]:
    """A file beside `target` that takes its name once it is written and flushed, and vanishes otherwise."""
    clear_scratch_of(target)
    scratch = scratch_sibling(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(target), scratch.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)
