"""Whether the process that wrote a `.lock` still lives."""

from __future__ import annotations

import os
from pathlib import Path

_CLOCK_SLACK_SECONDS = 5.0


def holder_lives(content: bytes, this_host: str) -> bool | None:
    """True, False, or None when it cannot be told.

    `content` is the three lines of formats §13.3. Not to be told: unreadable, written on another host, or the
    process is younger than the lock (its id was given away again, or the clock was set). A process that ended
    but was not yet collected is dead.
    """
    lines = content.decode("utf-8", "replace").splitlines()
    try:
        pid, host, written = int(lines[0]), lines[1], float(lines[2])
    except (IndexError, ValueError):
        return None
    if host != this_host or pid <= 0:
        return None
    if not _signal_reaches(pid):
        return False
    started = _start_time(pid)
    if started is not None and started > written + _CLOCK_SLACK_SECONDS:
        return None
    return not _ended(pid)


def written_on(content: bytes, host: str) -> bool:
    """Whether the lock names this host."""
    lines = content.decode("utf-8", "replace").splitlines()
    return len(lines) >= 2 and lines[1] == host


def _signal_reaches(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _ended(pid: int) -> bool:
    fields = _stat_fields(pid)
    return fields is not None and fields[:1] in (["Z"], ["X"])


def _start_time(pid: int) -> float | None:
    """Seconds since the epoch at which the process started; None where the system does not say."""
    fields = _stat_fields(pid)
    try:
        boot = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text(encoding="ascii", errors="replace").splitlines()
            if line.startswith("btime ")
        )
        return boot + float(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None
    except (OSError, StopIteration, ValueError, IndexError):
        return None
