"""The system's pages under weight files: read in before they are needed, given back once they are not."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


_MADV_DONTNEED, _MADV_HUGEPAGE, _MADV_PAGEOUT, _MADV_POPULATE_READ = 4, 14, 21, 22
_AT_ONCE = 64 << 20
"""Bytes of a file that are mapped together while it is read ahead: a multiple of every size of page."""
_WEIGHTS = (".safetensors", ".gguf")


def read_ahead(files: Sequence[Path]) -> threading.Thread:
    """Read the files into the system's cache in a thread of their own, in huge pages where it has them for files.

    Whoever maps them afterwards gets those, and reads their weights up to a tenth faster; what is in the cache already
    stays as it is. Nothing of it stays in this process. Elsewhere than on Linux, and where it fails, nothing happens.
    """
    thread = threading.Thread(target=_read_in, args=(tuple(files),), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read_in(files: Sequence[Path]) -> None:
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):  # whoever needs the file says what it lacks
        libc = ctypes.CDLL(None)
        for file in files:
            with file.open("rb") as stream:
                size = stream.seek(0, 2)
                for start in range(0, size, _AT_ONCE):
                    length = min(_AT_ONCE, size - start)
                    with mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ, offset=start) as view:
                        place = ctypes.c_void_p(np.frombuffer(view, np.uint8).ctypes.data)
                        for advice in (_MADV_HUGEPAGE, _MADV_POPULATE_READ):
                            libc.madvise(place, ctypes.c_size_t(length), advice)


def give_back_freed() -> None:
    """Return what the process has freed to the system, after something that took a lot of memory for a moment."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def release_pages(tensor: Tensor) -> None:
    """Let the system drop the pages under `tensor`, which stays valid: what is read again comes from the file.

    Weight files are mapped as a whole, so a weight that is no longer used would otherwise stay resident as long as any
    other weight of its file is. Only whole pages inside the tensor are named; elsewhere than on Linux nothing happens.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)


def drop_weight_pages() -> None:
    """Take the pages of mapped weight files out of this process; they stay in the system's cache until they are read.

    Only mappings that nothing has written to: in others the written pages would be lost. Elsewhere than on Linux
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for start, end in _untouched(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _untouched(smaps: str) -> Iterator[tuple[int, int]]:
    """Address ranges of mapped weight files without a page of their own."""
    place: tuple[int, int] | None = None
    for line in smaps.splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            low, _, high = first.partition("-")
            place = (int(low, 16), int(high, 16)) if rest.lower().endswith(_WEIGHTS) else None
        elif place is not None and first == "Anonymous:" and rest.split()[0] == "0":
            yield place


class PageBudget:
    """Drops the pages of weight files whenever `every` bytes were read since: about so many stay in memory."""

    def __init__(self, every: int = 128 << 20) -> None:
        self._every, self._read = every, 0

    def read(self, nbytes: int) -> None:
        """So much was read."""
        self._read += nbytes
        if self._read >= self._every:
            self._read = 0
            drop_weight_pages()
