"""Whether the process that wrote a `.lock` still lives."""

from __future__ import annotations

from dlm_tui.platform import process_lives, process_started

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
    if not process_lives(pid):
        return False
    started = process_started(pid)
    return None if started is not None and started > written + _CLOCK_SLACK_SECONDS else True


def written_on(content: bytes, host: str) -> bool:
    """Whether the lock names this host."""
    lines = content.decode("utf-8", "replace").splitlines()
    return len(lines) >= 2 and lines[1] == host
