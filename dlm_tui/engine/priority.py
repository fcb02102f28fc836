"""Giving way to the screen: what computes for seconds must not hold up a keystroke."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ENGINE = 5
"""Niceness of the engine child below the screen's: it answers keystrokes, but the screen paints them first."""
JOB = 10
"""Niceness of a job child."""

_TRIES, _PAUSE = 3, 0.1
_AUTOGROUP = Path("/proc/self/autogroup")


def give_way(niceness: int) -> None:
    """Be nicer by `niceness` than the parent; to be called before any thread is started.

    Between sessions Linux weighs whole groups and not niceness, so a session's leader also makes its group as nice.
    Where neither is permitted, nothing happens.
    """
    with contextlib.suppress(OSError):
        os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return
    with contextlib.suppress(OSError):
        for _ in range(_TRIES):
            try:
                _AUTOGROUP.write_text(str(os.nice(0)))
                return
            except BlockingIOError:  # the system takes ten of these a second from all its users together
                time.sleep(_PAUSE)
