"""What a base is, byte for byte, so that a gate or an adapter can tell when the base under it has changed. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dlm_tui.files import sha256_file

WHOLE_FILE_LIMIT = 100 * 1024 * 1024
_BLOCK = 64 * 1024
_BLOCKS = 64
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


class BaseIdentity(msgspec.Struct, frozen=True):
    """`id` is the hub id, `pocket` or the folder's stand-in name; hashes are lower-case hex SHA-256."""

    id: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str


def weights_hash(files: Sequence[Path]) -> str:
    """One hash over the weight files.

    Files up to 100 MB are hashed whole; of larger ones the size, the header and 64 evenly spaced blocks of 64 KiB,
    which costs milliseconds and still changes whenever a training step has touched the weights.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        digest.update((sha256_file(file) if size <= WHOLE_FILE_LIMIT else _sampled(file, size)).encode())
    return digest.hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """One hash over the files that decide how text becomes tokens; those that are absent do not count."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0{sha256_file(folder / name)}\0".encode())
    return digest.hexdigest()


def _sampled(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
        digest.update(handle.read(min(header, 1 << 24)))
        for block in range(_BLOCKS):
            handle.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(handle.read(_BLOCK))
    return digest.hexdigest()
