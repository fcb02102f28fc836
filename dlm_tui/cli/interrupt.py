"""Ctrl+C, and SIGTERM, which is taken alike: the command ends with one line and exit code 130."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 130
LINE = "dlm-tui: cancelled"
_IMPORTING = "<frozen importlib._bootstrap>"
"""The file of Python's own frames below the code of every module that is being imported."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt, and end the process at once where a module is being imported.

    Libraries take an interrupt of their import for a part that is not installed and go on without it, or leave C code
    half set up in which the end of the interpreter hangs. An import clears nothing up; what goes on around one survives
    being killed, too.
    """
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell starts what it puts into the background
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_interrupts_to_the_screen() -> None:
    """Ctrl+C as Python handles it: asyncio then asks its main task to end, which gives the terminal back."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        raise KeyboardInterrupt
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # it may be in the middle of writing just now
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_CODE)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
