"""Prompt embeddings kept between runs, found by what they were computed from."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from dlm_tui.files import write_atomic
from dlm_tui.small_files import require_regular

MAX_BYTES = 128 << 20
MAX_SHARDS = 12
_FOLDER = "tui_gate_embeddings"
_KEY = 16


def text_key(prompt: str) -> bytes:
    """The first 16 bytes of the SHA-256 of the text; lone surrogates are kept apart."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:_KEY]


class EmbeddingCache:
    """Embeddings of one base (weights, tokenizer and settings), one folder of immutable shards in the store's cache.

    A shard is a safetensors file: `keys` [n, 16] bytes, `rows` [n, H] float32, `sums` [n] CRC-32 of each row. A shard
    that cannot be read is dropped, a row whose sum is wrong is not found: the prompt is embedded again. Without write
    access the cache only remembers what it was given in this process.
    """

    def __init__(self, folder: Path, fingerprint: str, hidden_size: int, max_bytes: int = MAX_BYTES) -> None:
        """`folder` is the store's cache_dir, `fingerprint` is the base's key."""
        name = hashlib.sha256(f"{fingerprint}\n{hidden_size}".encode()).hexdigest()[:24]
        self.folder = folder / _FOLDER / name
        self.hidden_size = hidden_size
        self.max_bytes = max_bytes
        self._places: dict[bytes, tuple[int, int]] = {}
        self._rows: list[numpy.ndarray] = []
        self._sums: list[numpy.ndarray] = []
        self._loaded = False

    def find(self, prompts: Sequence[str]) -> list[Tensor | None]:
        """The stored float32 [H] embedding of each prompt, or None."""
        self._load()
        found: list[Tensor | None] = []
        for prompt in prompts:
            place = self._places.get(text_key(prompt))
            found.append(self._read(*place) if place else None)
        return found

    def add(self, prompts: Sequence[str], embeddings: Tensor) -> None:
        """Keep float32 [n, H] embeddings of the prompts; a disk that refuses them is no error."""
        if not prompts:
            return
        self._load()
        keys = numpy.frombuffer(b"".join(text_key(prompt) for prompt in prompts), dtype=numpy.uint8)
        rows = numpy.ascontiguousarray(embeddings.detach().float().numpy())
        sums = numpy.array([zlib.crc32(row.tobytes()) for row in rows], dtype=numpy.int64)
        self._remember(keys.reshape(-1, _KEY), rows, sums)
        try:
            self._write(keys.reshape(-1, _KEY), rows, sums)
            self._tidy()
        except OSError:
            return

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for path in self._shards():
            shard = _read_shard(path, self.hidden_size)
            if shard is not None:
                self._remember(*shard)

    def _remember(self, keys: numpy.ndarray, rows: numpy.ndarray, sums: numpy.ndarray) -> None:
        number = len(self._rows)
        self._rows.append(rows)
        self._sums.append(sums)
        data = keys.tobytes()
        for row in range(len(rows)):
            self._places[data[row * _KEY : (row + 1) * _KEY]] = (number, row)

    def _read(self, shard: int, row: int) -> Tensor | None:
        values = self._rows[shard][row]
        if zlib.crc32(values) != int(self._sums[shard][row]):
            return None
        return torch.from_numpy(values.copy())

    def _shards(self) -> list[Path]:
        """Oldest first: names are numbers."""
        try:
            return sorted(path for path in self.folder.glob("*.safetensors") if path.stem.isdigit())
        except OSError:
            return []

    def _write(self, keys: numpy.ndarray, rows: numpy.ndarray, sums: numpy.ndarray) -> None:
        shards = self._shards()
        number = int(shards[-1].stem) + 1 if shards else 1
        write_atomic(self.folder / f"{number:08d}.safetensors", save({"keys": keys, "rows": rows, "sums": sums}))

    def _tidy(self) -> None:
        """Join many small shards into one; over the bound the oldest entries go."""
        shards = self._shards()
        total = sum(path.stat().st_size for path in shards)
        if len(shards) <= MAX_SHARDS and total <= self.max_bytes:
            return
        limit = max(1, self.max_bytes // (self.hidden_size * 4 + _KEY + 8))
        newest_first: dict[bytes, tuple[numpy.ndarray, int]] = {}
        for path in reversed(shards):
            shard = _read_shard(path, self.hidden_size)
            for row in range(len(shard[1]) - 1, -1, -1) if shard else ():
                if shard and len(newest_first) < limit:
                    newest_first.setdefault(shard[0][row].tobytes(), (shard[1][row], int(shard[2][row])))
        kept = list(reversed(newest_first.items()))
        if kept:
            keys = numpy.frombuffer(b"".join(key for key, _ in kept), dtype=numpy.uint8).reshape(-1, _KEY)
            rows = numpy.stack([value for _, (value, _) in kept])
            self._write(keys, rows, numpy.array([total for _, (_, total) in kept], dtype=numpy.int64))
        for path in shards:
            path.unlink(missing_ok=True)


def _read_shard(path: Path, hidden_size: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray] | None:
    """Keys, rows and sums of a shard, or None when it is not one of ours."""
    try:
        require_regular(path)
        with safe_open(path, framework="numpy") as handle:
            keys, rows, sums = (handle.get_tensor(name) for name in ("keys", "rows", "sums"))
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    fits = keys.dtype == numpy.uint8 and rows.dtype == numpy.float32 and sums.dtype == numpy.int64
    count = len(sums) if sums.ndim == 1 else -1
    if not fits or keys.shape != (count, _KEY) or rows.shape != (count, hidden_size):
        return None
    return keys, numpy.ascontiguousarray(rows), sums
