"""How much memory there is for a base, and how much it takes, before anything of that size is read. No torch."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.process_limits import memory_limits

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_LEAST = 350_000_000
"""Bytes of addresses that what loads a base takes beside the base: libraries, vocabulary, threads."""


class _Kind(NamedTuple):
    """What a kind of control group calls its files, and the line of its statistics for pages that can be given back."""

    limit: str
    used: str
    reclaimable: str


_FIRST = _Kind("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Kind("memory.max", "memory.current", "inactive_file")


def available_memory() -> int:
    """Bytes that can be taken without swapping: what the system says is free, within the limits of the groups that
    this process is in and of its own (`ulimit -v`, `ulimit -d`)."""
    own = [limit.limit - limit.taken for limit in memory_limits()]
    return max(0, min([int(psutil.virtual_memory().available), *_rooms_of_groups(), *own]))


def _rooms_of_groups() -> Iterator[int]:
    """What each group that limits memory leaves: that of the process, and those above it."""
    for folder, kind in _groups():
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"; a group above may not be shown
            limit = int((folder / kind.limit).read_text(encoding="ascii"))
            used = int((folder / kind.used).read_text(encoding="ascii"))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            reclaimable = dict(line.split() for line in lines).get(kind.reclaimable, "0")
            yield limit - used + int(reclaimable)


def _groups() -> Iterator[tuple[Path, _Kind]]:
    """The folders of the process's groups that may limit memory, by what /proc says; a container shows its own group as
    the topmost."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = ["0::/"]
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            roots, kind = [_GROUPS, _GROUPS / "unified"], _SECOND
        elif "memory" in controllers.split(","):
            roots, kind = [_GROUPS / "memory"], _FIRST
        else:
            continue
        parts = [part for part in place.split("/") if part not in ("", "..")]
        for root in roots:
            yield from ((root.joinpath(*parts[:depth]), kind) for depth in range(len(parts), -1, -1))


def refuse_narrow_limits(taken: int = 0, mapped: int = 0) -> None:
    """Raises BaseUnavailable where a limit of the shell leaves less than loading a base takes, `taken` bytes for its
    weights and `mapped` ones for its files, which are memory to `ulimit -v` alone.

    Without this, libraries that find no room fail in any way, or end the process.
    """
    for limit in memory_limits():
        needed = _LEAST + taken + (mapped if limit.is_of_addresses else 0)
        if limit.limit - limit.taken < needed:
            raise BaseUnavailable(
                f"there is not enough memory for {'this' if taken or mapped else 'any'} base: the process may take"
                f" {gigabytes(limit.limit)} ({limit.command}) and has {gigabytes(limit.taken)}; raise that limit to at"
                f" least {gigabytes(limit.taken + needed)}"
            )


def address_room(mapped: int) -> int:
    """Bytes that `ulimit -v` leaves where so many bytes of files are mapped; without such a limit all there may be."""
    rooms = [limit.limit - limit.taken - mapped - _LEAST for limit in memory_limits() if limit.is_of_addresses]
    return max(0, min(rooms, default=sys.maxsize))


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
