"""What every way to start a server has in common: options, the socket, telling the address, serving. No torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.output import say
from dlm_tui.serving.views import Mixes, no_mixes

if TYPE_CHECKING:
    from dlm_tui.serving.backend import Backend
    from dlm_tui.serving.traffic import TrafficLog

KEY_VARIABLE = "DLM_TUI_API_KEY"
QUEUE = 64


def add_arguments(parser: argparse.ArgumentParser, *, rows: int) -> None:
    """Where to listen, who may ask, how much at once."""
    parser.add_argument("--host", default="127.0.0.1", help="any address but the loopback needs a key")
    parser.add_argument("--port", type=int, default=8321, help="0 chooses a free one (default 8321)")
    parser.add_argument("--api-key", metavar="KEY", help=f"what clients must send (default: ${KEY_VARIABLE})")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME[:PORT]", help="another name of this server"
    )
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a web page that may ask")
    parser.add_argument("--rows", type=int, default=rows, metavar="N", help=f"answers at once (default {rows})")
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="prompt and answer together (default: what the base reads, bounded)",
    )
    parser.add_argument("--queue", type=int, default=QUEUE, metavar="N", help=f"may wait (default {QUEUE})")


def run(
    args: argparse.Namespace,
    name: str,
    open_backend: Callable[[], Backend],
    open_recorder: Callable[[], TrafficLog] | None = None,
    mixes: Callable[[], Mixes] = no_mixes,
) -> None:
    """Serve until interrupted. The address is taken, and the options are checked, before the backend is opened.

    Raises DlmTuiError when a package is missing or the address is taken, UsageError for options that make no sense.
    """
    try:
        from dlm_tui.serving.security import Policy
        from dlm_tui.serving.server import address, listen, serve, server
    except ModuleNotFoundError as error:
        raise missing(error) from None
    if args.rows < 1 or args.queue < 1 or (args.context is not None and args.context < 1):
        raise UsageError("--rows, --queue and --context are at least 1")
    host, key = _host(args.host), _key(args.api_key)
    hosts, origins = tuple(args.allow_host), tuple(args.allow_origin)
    Policy(host, args.port, key, hosts, origins)  # what it refuses is refused before it is listened on
    with listen(host, args.port) as bound:
        policy = Policy(host, bound.getsockname()[1], key, hosts, origins)
        backend = open_backend()
        url = address(host, bound)

        async def ready() -> None:
            for note in await backend.notes():
                say(note)
            say(f"{name}: {url}/v1  (Ctrl+C ends it)")
            if args.json:
                model = backend.model
                facts = {"address": url, "backend": model.backend, "adapters": list(backend.adapters)}
                facts["warnings"] = list(model.warnings)
                sys.stdout.write(json.dumps(facts) + "\n")
                sys.stdout.flush()

        recorder = open_recorder() if open_recorder is not None else None
        try:
            serve(server(backend, policy, recorder=recorder, mixes=mixes), bound, backend, ready)
        finally:
            if recorder is not None:
                recorder.close()


def _host(given: str) -> str:
    """Where to listen, without the brackets that an address of IPv6 has in a URL. Raises UsageError for nothing, which
    the system would take for every address."""
    host = given.strip()
    if not host:
        raise UsageError("--host is empty; it is 127.0.0.1 where it is not given, and 0.0.0.0 is every address")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _key(given: str | None) -> str | None:
    """The key that clients must send; None where none was given. Raises UsageError for one that no client can send."""
    place, key = ("--api-key", given) if given is not None else (KEY_VARIABLE, os.environ.get(KEY_VARIABLE))
    if key is None:
        return None
    if not key or key != key.strip() or not (key.isascii() and key.isprintable()):
        raise UsageError(f"{place} must be printable ASCII without blanks around it, and not empty")
    return key


def missing(error: ModuleNotFoundError, extra: str = "serve") -> DlmTuiError:
    """One sentence with the remedy for a package that is not installed."""
    return DlmTuiError(f"serving needs the package {error.name}: pip install 'dlm-tui[{extra}]'")
