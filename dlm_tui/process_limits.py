"""How much memory this process may take by the limits that a shell sets (`ulimit`), and has taken. No torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

if sys.platform == "linux":
    import resource  # now: under a limit there may be no room for it later

_STATM = Path("/proc/self/statm")


class MemoryLimit(NamedTuple):
    """Bytes that may be taken, and those that are, with the shell's command that sets the limit."""

    limit: int
    taken: int
    command: str

    @property
    def is_of_addresses(self) -> bool:
        """Whether mapped files count, too."""
        return self.command == "ulimit -v"


def memory_limits() -> list[MemoryLimit]:
    """Those of the address space, which mapped files take, too, and of the data; none where nothing is limited, or
    nothing is enforced (outside Linux)."""
    if sys.platform != "linux":
        return []
    try:
        pages = [int(count) for count in _STATM.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
    found = []
    for kind, field, command in ((resource.RLIMIT_AS, 0, "ulimit -v"), (resource.RLIMIT_DATA, 5, "ulimit -d")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(MemoryLimit(limit, pages[field] * resource.getpagesize(), command))
    return found


def narrow_limit() -> MemoryLimit | None:
    """The limit of which more than half is taken; None where no limit can have been in the way."""
    return next((limit for limit in memory_limits() if 2 * limit.taken > limit.limit), None)
