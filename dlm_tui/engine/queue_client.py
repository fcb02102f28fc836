"""Starting a runner for a line of jobs, and reading what its jobs say. No torch here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

from dlm_tui.child import module_words
from dlm_tui.engine.protocol import Event, decode_event
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.platform import OWN_GROUP
from dlm_tui.small_files import regular_file


def start_runner(queue: QueueFile, *, stays: bool = False) -> subprocess.Popen[bytes]:
    """A process that works off the line. Without `stays` it stops when this process ends, unless the line then says so.

    Raises StoreError, OSError.
    """
    with queue.change() as line:
        line.stays = stays
    words = module_words("dlm_tui.engine.queue_runner", str(queue.store.home), queue.store.dlm_id)
    with queue.path.with_name("runner.log").open("wb") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**CHILD_ENVIRONMENT, **os.environ},
            **OWN_GROUP,
        )
    if stays and process.stdin is not None:
        process.stdin.close()
    return process


class EventLog:
    """Reads the events of one try of a job, as far as they are written."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def more(self) -> list[Event]:
        """What was written since the last call; whole lines only. A file that is not there yet has none."""
        try:
            with regular_file(self._path) as (handle, _):
                handle.seek(self._at)
                data = handle.readall()
        except OSError:
            return []
        whole, _, _ = data.rpartition(b"\n")
        if not whole:
            return []
        self._at += len(whole) + 1
        found = []
        for line in whole.split(b"\n"):
            try:
                found.append(decode_event(line))
            except msgspec.DecodeError:
                continue  # of another version of this program, or cut by a full disk
        return found
