"""A port for a server that has to be told one before it begins."""

from __future__ import annotations

import random
import socket

_BELOW = 32_000
"""Systems give out ports above this one by themselves, to any process at any moment."""


def free_port() -> int:
    """A free port of the loopback address that no connection is given by chance; another server may still take it."""
    for port in random.Random().sample(range(24_000, _BELOW), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("none of a hundred ports is free")
