"""A child process that ends, or finds its disk full, at one file-system step of what it does.

Steps are what Python announces to its audit hooks before it does them (opening for writing, renaming, removing, making
folders and links), every flush to disk, and the swap of two names, which is counted before and after.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
KILLED = 137


@dataclass(frozen=True)
class Ended:
    """How a child ended: `code` 0, KILLED, or what it raised in `error`; what it acknowledged; its steps; seconds."""

    code: int
    acknowledged: list[str]
    error: str
    steps: int
    seconds: float


def run_child(
    work: Callable[[Callable[[str], None]], None],
    *,
    kill_at: int | None = None,
    full_at: int | None = None,
    kill_after: float | None = None,
    patience: float = 30.0,
) -> Ended:
    """Run `work` in a forked child; it calls its argument with what it has done for good.

    The child dies at step `kill_at`, has no space from step `full_at` on, or is killed after `kill_after` seconds.
    """
    child = Child(work, kill_at=kill_at, full_at=full_at)
    if kill_after is not None:
        time.sleep(kill_after)
        child.kill()
    return child.wait(patience)


class Child:
    """A forked process doing `work`."""

    def __init__(
        self,
        work: Callable[[Callable[[str], None]], None],
        *,
        kill_at: int | None = None,
        full_at: int | None = None,
    ) -> None:
        self._began = time.monotonic()
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _child(work, writer, kill_at, full_at)
        os.close(writer)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, patience: float) -> Ended:
        """Wait for its end; killed after `patience` seconds, which `seconds` then shows."""
        deadline = self._began + patience
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.kill()
                _, status = os.waitpid(self.pid, 0)
                break
            time.sleep(0.002)
        seconds = time.monotonic() - self._began
        with os.fdopen(self._reader, "r", encoding="utf-8", errors="replace") as handle:
            lines = handle.read().splitlines()
        code = KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        told = {mark: [line[1:] for line in lines if line[:1] == mark] for mark in "+!#"}
        return Ended(code, told["+"], "\n".join(told["!"]), int(told["#"][-1]) if told["#"] else 0, seconds)


def _child(
    work: Callable[[Callable[[str], None]], None], writer: int, kill_at: int | None, full_at: int | None
) -> None:
    code = 0
    counter = _Steps(kill_at, full_at)
    try:
        counter.install()
        work(lambda text: _tell(writer, "+", text))
    except BaseException as error:
        counter.stop()
        code = 1
        _tell(writer, "!", f"{type(error).__module__}.{type(error).__name__}: {error}")
    counter.stop()
    _tell(writer, "#", str(counter.count))
    os._exit(code)


def _tell(writer: int, mark: str, text: str) -> None:
    os.write(writer, f"{mark}{' '.join(text.split())}\n".encode("utf-8", "replace"))


class _Steps:
    def __init__(self, kill_at: int | None, full_at: int | None) -> None:
        self.count, self._kill_at, self._full_at, self._live = 0, kill_at, full_at, True

    def install(self) -> None:
        sys.addaudithook(self._heard)
        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            self.step(grows=True)
            real_fsync(descriptor)

        os.fsync = fsync
        from dlm_tui import files, platform
        from dlm_tui.document import replacing

        real_exchange = platform.exchange_names

        def exchange(one: Any, other: Any) -> bool:
            self.step()
            swapped = real_exchange(one, other)
            self.step()
            return swapped

        files.exchange_names = replacing.exchange_names = exchange

    def stop(self) -> None:
        self._live = False

    def step(self, grows: bool = False) -> None:
        if not self._live:
            return
        self.count += 1
        if self.count == self._kill_at:
            os._exit(KILLED)
        if grows and self._full_at is not None and self.count >= self._full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.step(grows=bool(flags & os.O_CREAT))
        elif event in _EVENTS:
            self.step(grows=event == "os.mkdir")
