"""Giving way to the screen: what computes for seconds must not hold up a keystroke."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from dlm_tui.platform import be_nicer, leads_its_session

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
    be_nicer(niceness)
    now = be_nicer(0)
    if now is None or not leads_its_session():
        return
    with contextlib.suppress(OSError):
        for _ in range(_TRIES):
            try:
                _AUTOGROUP.write_text(str(now))
                return
            except BlockingIOError:  # the system takes ten of these a second from all its users together
                time.sleep(_PAUSE)
