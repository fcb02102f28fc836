"""How much memory there is for a base, and how much it takes, before anything of that size is read. No torch."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.process_limits import MemoryLimit, memory_limits

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_LEAST = 450_000_000
"""Bytes of addresses that loading and asking a base takes beside it: libraries, vocabulary, threads, compiling."""
_TORCH_ADDRESSES, _TORCH_DATA = 660_000_000, 230_000_000
"""Bytes that torch takes with what is loaded before a base is looked for, where it is not there yet."""


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


def refuse_narrow_limits(taken: int = 0, mapped: int = 0, less: str = "") -> None:
    """Raises BaseUnavailable where a limit of the shell leaves less than loading a base takes, `taken` bytes for its
    weights and `mapped` ones for the maps of its files, which are memory to `ulimit -v` alone; without both it is what
    any base takes beside itself. `less` is what takes less memory.

    Without this, libraries that find no room fail in any way, or end the process: also while they are loaded, before
    which a command calls it.
    """
    for limit in memory_limits():
        room = _room(limit, mapped)
        if room >= taken:
            continue
        least = at_least(limit.limit - room + taken)
        known = taken or mapped
        remedy = f"to at least {least}" if known else f"to {least} and what the base itself takes"
        raise BaseUnavailable(
            f"there is not enough memory for {'this' if known else 'any'} base: the process may take"
            f" {at_most(limit.limit)} ({limit.command}) and has {gigabytes(limit.taken)}; raise that limit"
            f" {remedy}{f', {less}' if less else ''}"
        )


def limits_room(mapped: int) -> int:
    """Bytes that limits of the shell leave for weights whose maps take `mapped` bytes, beside what loading any takes;
    without a limit all there may be."""
    return max(0, min((_room(limit, mapped) for limit in memory_limits()), default=sys.maxsize))


def _room(limit: MemoryLimit, mapped: int) -> int:
    """Bytes that a limit leaves for weights, negative where loading any takes more than there is."""
    least = _LEAST
    if "torch" not in sys.modules:
        least += _TORCH_ADDRESSES if limit.is_of_addresses else _TORCH_DATA
    return limit.limit - limit.taken - least - (mapped if limit.is_of_addresses else 0)


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def gigabytes(count: float) -> str:
    """Bytes as a person reads them: two digits that count."""
    return _in_words(count, round)


def at_least(count: float) -> str:
    """Bytes that are needed: not less by rounding. Never what `at_most` calls a smaller number."""
    return _in_words(count, math.ceil)


def at_most(count: float) -> str:
    """Bytes that there are: not more by rounding."""
    return _in_words(count, math.floor)


def _in_words(count: float, rounded: Callable[[float], int]) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size / 10:
            tens = 10 if unit == "GB" or count < 10 * size else 1
            return f"{rounded(count * tens / size) / tens:.{1 if tens == 10 else 0}f} {unit}"
    return f"{count:.0f} bytes"


def weights_text(count: int) -> str:
    """How many weights, with two digits that count: 1.2 billion, 270 million, 42 thousand."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{word} weights"
    return f"{count} weights"
