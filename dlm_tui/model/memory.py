"""How much memory there is for a base, and how much it takes, before anything of that size is read. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be taken without swapping: what the system says is free, within the limit of a container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        reclaimable = dict(
            line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        ).get("inactive_file", "0")
        return min(free, int(limit) - used + int(reclaimable)) if limit.isdigit() else free
    except (OSError, ValueError):
        return free


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def gigabytes(count: float) -> str:
    """Bytes as a person reads them: two digits that count."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size / 10:
            return f"{count / size:.{1 if unit == 'GB' or count < 10 * size else 0}f} {unit}"
    return f"{count:.0f} bytes"


def weights_text(count: int) -> str:
    """How many weights, with two digits that count: 1.2 billion, 270 million, 42 thousand."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{word} weights"
    return f"{count} weights"
