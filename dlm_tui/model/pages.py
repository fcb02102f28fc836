"""Giving memory back to the system once their content has been copied."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


_MADV_DONTNEED, _MADV_PAGEOUT = 4, 21
_WEIGHTS = (".safetensors", ".gguf")


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
