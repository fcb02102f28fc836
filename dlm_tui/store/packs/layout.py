"""What a pack consists of: records, member names, limits."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dlm_tui.document.errors import printable, shortened
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.document.side_file import side_file_path
from dlm_tui.input import is_utf8
from dlm_tui.store.errors import StoreError

FORMAT_VERSION = 1
SUFFIX = ".pack"
HEADER, MANIFEST, CHECKSUMS, PROVENANCE = "PACK_HEADER.json", "manifest.json", "CHECKSUMS.sha256", "provenance.json"
DOCUMENT_FOLDER, STORE_FOLDER = "dlm", "store"
STORE_MANIFEST = "store/manifest.json"
# Whoever holds the store; never part of what it holds.
LOCK_NAMES = frozenset((".lock", ".lock.tui", ".journal.tui"))
# Of jobs that are not over: they go on where they were begun, and a stranger's are not run here.
JOB_NAMES = frozenset(("queue", "checkpoints", "checkpoints_over.json"))

MAX_WINDOW_BYTES = 512 << 20
MAX_MEMBER_BYTES = 16 << 30
MAX_TOTAL_BYTES = 64 << 30
MAX_RECORD_BYTES = 64 << 20
MAX_MEMBERS = 1_000_000
# What disks take: more of a name could be checked, and never be unpacked.
MAX_NAME_BYTES, MAX_PART_BYTES = 4000, 255

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"
_Record = TypeVar("_Record", bound=msgspec.Struct)
_checksum_line = re.compile(r"([0-9a-f]{64})  (.+)", re.DOTALL)


class PackError(StoreError):
    """A pack cannot be read or made."""


class PackLayoutError(PackError):
    """The pack's members are not those of a pack, or not safe to extract."""


class PackIntegrityError(PackError):
    """What the pack says of its contents is not so."""


class PackFormatVersionError(PackError):
    """The pack is of a format newer than this program knows."""


class Header(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`PACK_HEADER.json`; `created_at` is naive UTC in seconds."""

    pack_format_version: int
    created_at: str
    tool_version: str
    content_type: str
    platform_hint: str
    licensee_acceptance_url: str | None = None


class PackManifest(msgspec.Struct, kw_only=True):
    """`manifest.json`; `entries` gives the bytes of every member that has a checksum."""

    dlm_id: str
    base_model: str
    base_model_revision: str | None = None
    base_model_sha256: str | None = None
    adapter_version: int = 0
    entries: dict[str, int] = {}
    content_sha256: str = ""


def companions(document_name: str) -> tuple[str, str]:
    """The files beside a document that belong to it: what the schema has no key for, and named sets of prompts."""
    path = Path(document_name)
    return side_file_path(path).name, PromptSets(path).path.name


def stays_behind(inner: str) -> bool:
    """Whether a path below the store's folder is never packed or installed; in any case, as some disks ignore it."""
    return inner.partition("/")[0].casefold() in LOCK_NAMES | JOB_NAMES


def why_not_named(document: str) -> str | None:
    """Why a document of this name is not packed or unpacked, as the end of a sentence; None where it is."""
    if not is_utf8(document):
        return "is not UTF-8 text"
    for before, character, behind in zip(" " + document, document, document[1:] + " ", strict=False):
        # Two signs join letters of some scripts, and several emoji to one.
        joins = character in _JOINERS and not before.isascii() and not behind.isascii()
        if unicodedata.category(character) in _UNSEEN and not joins:
            return "holds characters that cannot be seen"
    return None


def named(name: str) -> str:
    """A member's name as it may stand in a message."""
    return repr(printable(shortened(name, 200)))


def record_bytes(record: msgspec.Struct) -> bytes:
    """Two-space indent, keys in the order of the record, a final line feed."""
    return (json.dumps(msgspec.to_builtins(record), indent=2, ensure_ascii=False) + "\n").encode()


def parse_header(data: bytes) -> Header:
    """Raises PackLayoutError, or PackFormatVersionError for a newer format."""
    value = _json(HEADER, data)
    version = value.get("pack_format_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise PackFormatVersionError(f"the pack has format version {version}, this program reads {FORMAT_VERSION}")
    header = _convert(HEADER, value, Header)
    if header.pack_format_version != FORMAT_VERSION:
        raise PackFormatVersionError(f"there is no pack format version {header.pack_format_version}")
    return header


def parse_manifest(data: bytes) -> PackManifest:
    """Raises PackLayoutError."""
    return _convert(MANIFEST, _json(MANIFEST, data), PackManifest)


def parse_checksums(data: bytes) -> dict[str, str]:
    """Member -> lower-case hex SHA-256. Raises PackLayoutError."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise PackLayoutError(f"{CHECKSUMS} is not UTF-8") from None
    if lines and lines[-1] == "":
        lines.pop()
    checksums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _checksum_line.fullmatch(line)
        if match is None:
            raise PackLayoutError(f"{CHECKSUMS}:{number} is not a hash, two blanks and a name")
        if match[2] in checksums:
            raise PackLayoutError(f"{CHECKSUMS}:{number} names {named(match[2])} a second time")
        checksums[match[2]] = match[1]
    return checksums


def checksums_bytes(checksums: Mapping[str, str]) -> bytes:
    """The list in the order of path components."""
    ordered = sorted(checksums, key=lambda name: name.split("/"))
    return "".join(f"{checksums[name]}  {name}\n" for name in ordered).encode()


def content_sha256(checksums: Mapping[str, str]) -> str:
    """The hash over all names and hashes but the header's, in string order of the names."""
    digest = hashlib.sha256()
    for name in sorted(checksums):
        if name != HEADER:
            digest.update(f"{name}\n{checksums[name]}\n".encode())
    return digest.hexdigest()


def _json(name: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise PackLayoutError(f"{name} is not JSON in UTF-8") from None


def _convert(name: str, value: Any, record: type[_Record]) -> _Record:
    try:
        return msgspec.convert(value, record)
    except msgspec.ValidationError as error:
        raise PackLayoutError(f"{name}: {printable(str(error))}") from None
