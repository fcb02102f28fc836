"""Giving memory back to the system once their content has been copied."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

from torch import Tensor

_MADV_PAGEOUT = 21


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
