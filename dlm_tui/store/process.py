"""Whether the process that wrote something in a store still lives: a `.lock`, or a record of ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Literal

from dlm_tui.platform import process_lives, process_mark

Life = Literal["lives", "ended", "may live", "elsewhere"]
"""Of a writer: "may live" where a process has its id and nothing says whether it is that one; "elsewhere" is another
host."""


def this_process() -> dict[str, Any]:
    """What a record says of its writer, so that nobody takes a process that is given its id later for it."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": process_mark(os.getpid())}


def is_this_process(record: Mapping[str, Any]) -> bool:
    """Whether this very process wrote the record."""
    return record.get("pid") == os.getpid() and life_of_writer(record) in ("lives", "may live")


def life_of_writer(record: Mapping[str, Any]) -> Life:
    """What became of the process that wrote the record; one that says nothing of that is from elsewhere."""
    pid, host, started = (record.get(key) for key in ("pid", "host", "started"))
    if not isinstance(pid, int) or host != socket.gethostname():
        return "elsewhere"
    if not process_lives(pid):
        return "ended"
    now = process_mark(pid)
    if now is None or started is None:
        return "may live"
    return "lives" if now == started else "ended"


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
    return True if process_lives(pid, since=written) else None


def written_on(content: bytes, host: str) -> bool:
    """Whether the lock names this host."""
    lines = content.decode("utf-8", "replace").splitlines()
    return len(lines) >= 2 and lines[1] == host
