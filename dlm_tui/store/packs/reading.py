"""Checking a pack from the first byte to the last without writing anything."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard

from dlm_tui.document import Document, is_dlm_id, parse_bytes
from dlm_tui.document.document import MAX_FILE_BYTES
from dlm_tui.document.errors import DocumentError
from dlm_tui.small_files import regular_file
from dlm_tui.store.errors import ManifestError
from dlm_tui.store.manifest import Manifest
from dlm_tui.store.manifest import parse_manifest as parse_store_manifest
from dlm_tui.store.packs.layout import (
    CHECKSUMS,
    DOCUMENT_FOLDER,
    HEADER,
    MANIFEST,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_NAME_BYTES,
    MAX_PART_BYTES,
    MAX_RECORD_BYTES,
    MAX_TOTAL_BYTES,
    MAX_WINDOW_BYTES,
    PROVENANCE,
    STORE_FOLDER,
    STORE_MANIFEST,
    Header,
    PackError,
    PackIntegrityError,
    PackLayoutError,
    PackManifest,
    companions,
    content_sha256,
    named,
    parse_checksums,
    parse_header,
    parse_manifest,
    why_not_named,
)
from dlm_tui.system_errors import cause

_CHUNK = 1 << 20
_MAX_NAME_RECORD = 1 << 20
# Honest stores compress a few times; from this size on, this much more than that is a trap.
_SUSPECT_BYTES, _SUSPECT_RATIO = 1 << 30, 1000
_NAME_RECORDS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CheckedPack:
    """A pack whose every byte agrees with what it says; `files` maps member names to bytes, without the lists."""

    path: Path
    header: Header
    manifest: PackManifest
    document_name: str
    document: Document
    store_manifest: Manifest
    checksums: dict[str, str]
    files: dict[str, int]
    folders: tuple[str, ...]

    @property
    def store_bytes(self) -> int:
        """Bytes of everything below `store/`."""
        return sum(size for name, size in self.files.items() if name.startswith(f"{STORE_FOLDER}/"))


def check_pack(path: Path, on_progress: OnProgress | None = None) -> CheckedPack:
    """Read the whole pack and compare it with its lists.

    `on_progress` is called with the bytes of the pack file read so far and its size. Raises PackLayoutError,
    PackIntegrityError, PackFormatVersionError, or PackError when the file cannot be read; nothing is written.
    """
    records: dict[str, bytes] = {}
    hashes: dict[str, str] = {}
    files: dict[str, int] = {}
    folders: list[str] = []
    for member in read_members(path, on_progress):
        if member.is_folder:
            folders.append(member.name)
            continue
        digest, kept = hashlib.sha256(), bytearray()
        keep = _is_record(member.name)
        for chunk in member.chunks():
            digest.update(chunk)
            if keep:
                kept += chunk
        hashes[member.name], files[member.name] = digest.hexdigest(), member.size
        if keep:
            records[member.name] = bytes(kept)
    for name in (HEADER, MANIFEST, CHECKSUMS, STORE_MANIFEST):
        if name not in records:
            raise PackLayoutError(f"the pack has no {name}")
    document_name = _document_name(records)
    manifest, checksums = parse_manifest(records[MANIFEST]), parse_checksums(records[CHECKSUMS])
    _compare_checksums(hashes, checksums)
    # A newer format may count its contents in another way, so that is asked for last.
    header = parse_header(records[HEADER])
    _compare_contents(hashes, files, checksums, manifest)
    document = _document(records[f"{DOCUMENT_FOLDER}/{document_name}"])
    store_manifest = _same_identity(records[STORE_MANIFEST], manifest, document)
    listed = {name: files[name] for name in checksums}
    return CheckedPack(
        path, header, manifest, document_name, document, store_manifest, checksums, listed, tuple(folders)
    )


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder of the pack at `pack`, with a safe name; `chunks` reads a file's bytes once, in order."""

    pack: Path
    name: str
    size: int
    is_folder: bool
    handle: IO[bytes] | None

    def chunks(self) -> Iterator[bytes]:
        """Pieces of at most one MiB. Raises PackLayoutError if the pack ends inside, PackError if it cannot be read."""
        left = self.size
        while left and self.handle is not None:
            with _told(self.pack, self.name):
                chunk = self.handle.read(min(_CHUNK, left))
                if not chunk:
                    raise EOFError
            left -= len(chunk)
            yield chunk


def read_members(path: Path, on_progress: OnProgress | None = None) -> Iterator[Member]:
    """The members in their order; each must be read before the next is asked for.

    Raises PackLayoutError for anything that is not a file or folder with a safe name of its own, for limits that are
    exceeded and for data that is not a pack, PackError when the file cannot be read.
    """
    with _told(path):
        if path.exists() and not path.is_file():  # opening a pipe may wait for ever, and it is read only once
            raise PackError(f"{path} is not a file: a pack is read twice, so save what comes through a pipe first")
    with _told(path), regular_file(path) as (raw, info):
        size = info.st_size
        if not size:
            raise PackLayoutError(f"{path} is an empty file")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        with (
            decompressor.stream_reader(raw, read_across_frames=True) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_BoundedInfo) as archive,
        ):
            guard = _Guard(size)
            for inside in archive:
                guard.admit(inside)
                handle = None if inside.isdir() else archive.extractfile(inside)
                size_inside = 0 if inside.isdir() else inside.size
                yield Member(path, inside.name.rstrip("/"), size_inside, inside.isdir(), handle)
                if on_progress is not None:
                    on_progress(raw.tell(), size)
            # The end of the frame carries its checksum, and a pack that was cut there is not whole.
            rest = cast("IO[bytes]", archive.fileobj)
            while chunk := rest.read(_CHUNK):
                if chunk.strip(b"\0"):
                    raise PackLayoutError(f"{path} holds something behind the end of its members")
        if guard.members == 0:
            raise PackLayoutError(f"{path} holds nothing")


@contextmanager
def _told(path: Path, inside: str | None = None) -> Iterator[None]:
    """What the libraries raise, as one sentence each; `inside` is the member whose bytes are read."""
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        what = f"it ends inside {named(inside)}" if inside else str(error) or "it ends too early"
        if what == "empty file":  # tarfile's words for a beginning that yields not one header
            what = "it ends before its first member"
        raise PackLayoutError(f"{path} is not a whole pack: {what}") from None
    except ValueError:  # of a number that is none, in a header of an old form
        raise PackLayoutError(f"{path} is not a whole pack: a header of it cannot be read") from None
    except zstandard.ZstdError as error:
        raise PackLayoutError(f"{path} is not a pack: {error}") from None
    except OSError as error:
        raise PackError(f"cannot read {path}: {cause(error)}") from None


class _BoundedInfo(tarfile.TarInfo):
    """Refuses name records that would be read into memory whole however long they claim to be."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.HeaderError("a member claims less than no bytes")
        if self.type in _NAME_RECORDS and self.size > _MAX_NAME_RECORD:
            raise tarfile.HeaderError("a name record is too long")
        result: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return result


class _Guard:
    """Admits one member after the other, or says why not."""

    def __init__(self, packed_bytes: int) -> None:
        self.members = 0
        self._allowed = min(MAX_TOTAL_BYTES, max(_SUSPECT_BYTES, packed_bytes * _SUSPECT_RATIO))
        self._total = 0
        self._seen: set[str] = set()
        self._files: set[str] = set()
        self._parents: set[str] = set()

    def admit(self, info: tarfile.TarInfo) -> None:
        """Raises PackLayoutError."""
        shown = named(info.name)
        name = info.name.rstrip("/") if info.isdir() else info.name
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise PackLayoutError(f"the pack has more than {MAX_MEMBERS} members")
        parts = name.split("/")
        elsewhere = name.startswith("\\") or (os.sep != "/" and os.sep in name)
        if not name or elsewhere or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise PackLayoutError(f"the member name {shown} is not a path below the pack")
        try:
            longest = max(len(part.encode()) for part in parts)
        except UnicodeEncodeError:
            raise PackLayoutError(f"the member name {shown} is not UTF-8") from None
        if longest > MAX_PART_BYTES or len(name.encode()) > MAX_NAME_BYTES:
            raise PackLayoutError(f"the member name {shown} is too long for a disk")
        if parts[0] == STORE_FOLDER and not name.isprintable():
            raise PackLayoutError(f"the member name {shown} holds characters that cannot be seen")
        if parts[0] == DOCUMENT_FOLDER and (why := why_not_named("/".join(parts[1:]))) is not None:
            raise PackLayoutError(f"the member name {shown} {why}")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
            raise PackLayoutError(f"the member {shown} is neither a file nor a folder")
        if name in self._seen or (name in self._parents and info.isfile()):
            raise PackLayoutError(f"the member {shown} is there twice")
        parents = {"/".join(parts[:count]) for count in range(1, len(parts))}
        if parents & self._files:
            raise PackLayoutError(f"the member {shown} lies below a file")
        self._place(name, parts, is_folder=info.isdir())
        self._parents |= parents
        self._seen.add(name)
        if info.isfile():
            self._files.add(name)
        self._total += info.size
        if info.size < 0:  # an extended header says so
            raise PackLayoutError(f"the member {shown} claims less than no bytes")
        if info.size > MAX_MEMBER_BYTES or self._total > self._allowed:
            raise PackLayoutError(f"the pack holds far more than its size allows, at {shown}")
        if _is_record(name) and info.size > (MAX_FILE_BYTES if parts[0] == DOCUMENT_FOLDER else MAX_RECORD_BYTES):
            raise PackLayoutError(f"the member {shown} is too large")

    @staticmethod
    def _place(name: str, parts: list[str], *, is_folder: bool) -> None:
        if parts[0] == STORE_FOLDER and (is_folder or len(parts) > 1):
            return
        if parts[0] == DOCUMENT_FOLDER and len(parts) == (1 if is_folder else 2):
            return
        if not is_folder and name in (HEADER, MANIFEST, CHECKSUMS, PROVENANCE):
            return
        raise PackLayoutError(f"the member {named(name)} does not belong into a pack")


def _is_record(name: str) -> bool:
    """Members that are small and looked into."""
    return name in (HEADER, MANIFEST, CHECKSUMS, STORE_MANIFEST) or name.startswith(f"{DOCUMENT_FOLDER}/")


def _compare_checksums(hashes: dict[str, str], checksums: dict[str, str]) -> None:
    for name, wanted in checksums.items():
        if name not in hashes:
            raise PackIntegrityError(f"{named(name)} has a checksum but is not in the pack")
        if hashes[name] != wanted:
            raise PackIntegrityError(f"{named(name)} is not what its checksum says")


def _compare_contents(
    hashes: dict[str, str], files: dict[str, int], checksums: dict[str, str], manifest: PackManifest
) -> None:
    for name in hashes:
        if name not in checksums and name not in (CHECKSUMS, MANIFEST, PROVENANCE):
            raise PackIntegrityError(f"{named(name)} is in the pack but has no checksum")
    if manifest.entries != {name: files[name] for name in checksums}:
        raise PackIntegrityError(f"the entries of {MANIFEST} are not the members of the pack")
    if manifest.content_sha256 != content_sha256(checksums):
        raise PackIntegrityError(f"the content hash of {MANIFEST} is not that of the contents")


def _document_name(records: dict[str, bytes]) -> str:
    inside = [name.removeprefix(f"{DOCUMENT_FOLDER}/") for name in records if name.startswith(f"{DOCUMENT_FOLDER}/")]
    documents = [name for name in inside if name.endswith(".dlm")]
    if len(documents) != 1:
        raise PackLayoutError(f"the pack holds {len(documents) or 'no'} documents instead of one")
    name = documents[0]
    strangers = set(inside) - {name, *companions(name)}
    if strangers:
        raise PackLayoutError(f"{named(sorted(strangers)[0])} does not belong beside the document")
    return name


def _document(data: bytes) -> Document:
    try:
        return parse_bytes(data)
    except DocumentError as error:
        raise PackIntegrityError(f"the document of the pack does not parse: {error.text}") from None


def _same_identity(store_manifest: bytes, manifest: PackManifest, document: Document) -> Manifest:
    if not is_dlm_id(manifest.dlm_id):
        raise PackLayoutError(f"{MANIFEST}: {named(manifest.dlm_id)} is not a document id")
    try:
        stored = parse_store_manifest(store_manifest, STORE_MANIFEST)
    except ManifestError as error:
        raise PackIntegrityError(str(error)) from None
    for where, found in (("the document", document.dlm_id), (STORE_MANIFEST, stored.dlm_id)):
        if found != manifest.dlm_id:
            raise PackIntegrityError(f"{MANIFEST} is about {manifest.dlm_id}, {where} about {named(found)}")
    for field in ("base_model", "base_model_revision", "base_model_sha256", "adapter_version"):
        here, there = getattr(manifest, field), getattr(stored, field)
        if here != there:
            raise PackIntegrityError(
                f"{MANIFEST} has the {field} {named(str(here))} and {STORE_MANIFEST} {named(str(there))}"
            )
    return stored
