"""A child's end of the wire: requests from stdin by a reader thread, events to the real stdout, one line each."""

from __future__ import annotations

import os
import queue
import sys
import threading
from importlib.metadata import PackageNotFoundError, version

import msgspec

from dlm_tui.engine.protocol import Event, Request, decode_request, encode

_PACKAGES = ("dlm-tui", "torch", "transformers", "peft", "safetensors", "numpy", "gguf")


class StdioTransport:
    """Owns the protocol's file descriptors.

    Descriptor 1 is duplicated for the protocol and then pointed at stderr, so that no library's print can break a line.
    `inbox` receives every request, and None once stdin is closed.
    """

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="requests", daemon=True)

    def listen(self) -> None:
        """Start reading requests."""
        self._reader.start()

    def send(self, event: Event) -> None:
        """Write one event. When nobody reads any more the process has no reason to go on."""
        view = memoryview(encode(event))
        with self._lock:
            try:
                while view:
                    view = view[os.write(self._out, view) :]
            except BrokenPipeError:
                os._exit(0)

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            try:
                self.inbox.put(decode_request(line))
            except msgspec.DecodeError as error:
                print(f"unreadable request: {error}", file=sys.stderr, flush=True)
        self.inbox.put(None)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what numbers come out."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
