"""What is known of every tensor of a safetensors file: its hash, and a few of its values. No torch."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from dlm_tui.model.memory import gigabytes

WHOLE_TENSOR_LIMIT = 16 * 1024 * 1024
_PIECE = 4 * 1024 * 1024
_THREADS = 2
_BLOCK = 64 * 1024
_BLOCKS = 64
_HEADER_LIMIT = 100_000_000
_PATIENCE = 1.0
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class TensorFacts(msgspec.Struct, frozen=True):
    """A stored tensor: its type as safetensors names it, its shape, the hash of its bytes, and eight of its values.

    `bfloat16_sha256` is the hash of the same numbers as bfloat16, None where that would round any of them.
    `sampled_sha256` is what was recorded as its hash before: of tensors above 16 MB over 64 blocks of 64 KiB only.
    """

    dtype: str
    shape: list[int]
    sha256: str
    values: list[float]
    sampled_sha256: str
    bfloat16_sha256: str | None


class Hashing:
    """How far the hashing of `files` is, for whoever waits for it."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._total = sum(file.stat().st_size for file in files)
        self._done, self._lock, self._since = 0, threading.Lock(), time.monotonic()

    def add(self, count: int) -> None:
        """So many bytes more are hashed; from any thread."""
        with self._lock:
            self._done += count

    @property
    def text(self) -> str:
        """What is being done; with the bytes once it takes longer than a second."""
        waiting = self._done and time.monotonic() - self._since > _PATIENCE
        return f"hashing the base{f', {gigabytes(self._done)} of {gigabytes(self._total)}' if waiting else ''}"


def tensor_facts(file: Path, hashing: Hashing | None = None) -> dict[str, TensorFacts]:
    """The facts of every tensor of a safetensors file, whose header has been read before.

    Every byte is hashed, once per state of a file: a second per GB by the two threads that work at it (1.3 by one
    alone, which is what a file with one large tensor takes), with 4 MiB of memory each.
    """
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(min(length, _HEADER_LIMIT)))
    places: dict[str, tuple[str, list[int], int, int]] = {
        name: (entry["dtype"], entry["shape"], *(8 + length + at for at in entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }
    largest_first = sorted(places, key=lambda name: places[name][2] - places[name][3])
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(
            zip(
                largest_first,
                threads.map(lambda name: _facts(file, *places[name], hashing), largest_first),
                strict=True,
            )
        )
    return {name: found[name] for name in places}


def _facts(file: Path, dtype: str, shape: list[int], start: int, end: int, hashing: Hashing | None) -> TensorFacts:
    # read, not mapped: pages that the weights are mapped from anyway would count twice
    with file.open("rb", buffering=0) as handle:
        whole = _whole(handle, start, end, hashing)
        sampled = whole if end - start <= WHOLE_TENSOR_LIMIT else _sampled(handle, start, end)
        narrow = whole if dtype == "BF16" else _as_bfloat16(dtype, handle, start, end)
        return TensorFacts(dtype, shape, whole, _values(dtype, handle, start, end), sampled, narrow)


def _whole(handle: BinaryIO, start: int, end: int, hashing: Hashing | None) -> str:
    """The hash of all bytes; neither reading nor hashing a piece holds the other thread up."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(_PIECE, end - start)))
    handle.seek(start)
    while start < end:
        count = handle.readinto(piece[: end - start])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{handle.name} became shorter while it was read")
        digest.update(piece[:count])
        start += count
        if hashing is not None:
            hashing.add(count)
    return digest.hexdigest()


def _sampled(handle: BinaryIO, start: int, end: int) -> str:
    digest = hashlib.sha256()
    for block in range(_BLOCKS):
        handle.seek(start + (end - start - _BLOCK) * block // (_BLOCKS - 1))
        digest.update(handle.read(_BLOCK))
    return digest.hexdigest()


def _as_bfloat16(dtype: str, handle: BinaryIO, start: int, end: int) -> str | None:
    """The hash of the tensor's numbers as bfloat16; None for other than floats, and at the first that is none: most
    tensors have one in the first thousand."""
    if dtype not in _FLOATS:
        return None
    kind, digest, piece = np.dtype(_FLOATS[dtype]), hashlib.sha256(), _BLOCK
    handle.seek(start)
    while start < end:
        read = handle.read(min(piece, end - start))
        whole = len(read) - len(read) % kind.itemsize
        if not whole:
            raise EOFError(f"{handle.name} became shorter while it was read")
        numbers = np.frombuffer(read, kind, whole // kind.itemsize)
        with np.errstate(over="ignore"):  # of float64
            wide = numbers.astype(np.float32)
        bits = wide.view(np.uint32)
        if (bits & 0xFFFF).any() or not np.array_equal(wide, numbers):
            return None
        digest.update((bits >> 16).astype("<u2").tobytes())
        start, piece = start + whole, _PIECE
        handle.seek(start)
    return digest.hexdigest()


def _values(dtype: str, handle: BinaryIO, start: int, end: int) -> list[float]:
    if dtype not in _FLOATS:
        return []
    kind = np.dtype(_FLOATS[dtype])
    count = (end - start) // kind.itemsize
    read = bytearray()
    for part in range(8 if count else 0):
        handle.seek(start + count * part // 8 * kind.itemsize)
        read += handle.read(kind.itemsize)
    numbers = np.frombuffer(read, dtype=kind)
    if dtype == "BF16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    values = [float(number) for number in numbers]
    return values if np.isfinite(values).all() else []
