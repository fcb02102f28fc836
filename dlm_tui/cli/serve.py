"""`dlm-tui serve DOC`: an OpenAI-compatible server that routes every request through the gate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.output import emit, say

if TYPE_CHECKING:
    from dlm_tui.serving.backend import Backend

KEY_VARIABLE = "DLM_TUI_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, who may ask, and what answers."""
    parser.epilog = "The workbench in a browser, which had this name before, is `dlm-tui web`."
    parser.add_argument("--host", default="127.0.0.1", help="any address but the loopback needs a key")
    parser.add_argument("--port", type=int, default=8321, help="0 chooses a free one (default 8321)")
    parser.add_argument("--backend", choices=("native", "llama.cpp"), default="native", help="what decodes the answers")
    parser.add_argument("--api-key", metavar="KEY", help=f"what clients must send (default: ${KEY_VARIABLE})")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this server")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a web page that may ask")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="answers decoded together (default 8)")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (default 64)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="what answers read the weights as"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises DlmTuiError when an extra is missing or the address is taken."""
    try:
        from dlm_tui.serving.security import Policy
        from dlm_tui.serving.server import address, listen, serve, server
    except ModuleNotFoundError as error:
        raise DlmTuiError(f"serving needs the extra package {error.name}: pip install 'dlm-tui[serve]'") from None
    if args.rows < 1 or args.queue < 1:
        raise UsageError("--rows and --queue are at least 1")
    key = args.api_key or os.environ.get(KEY_VARIABLE) or None
    Policy(args.host, args.port, key)  # refuses before anything is loaded
    bound = listen(args.host, args.port)
    try:
        policy = Policy(
            args.host,
            bound.getsockname()[1],
            key,
            allow_hosts=tuple(args.allow_host),
            origins=tuple(args.allow_origin),
        )
        backend = _native(args)
        url = address(args.host, bound)

        def ready() -> None:
            say(f"{Path(args.document).name}: {url}/v1  (Ctrl+C ends it)")
            if args.json:
                emit({"address": url, "backend": backend.model.backend, "adapters": list(backend.adapters)})

        serve(server(backend, policy), bound, backend, ready)
    finally:
        bound.close()
    return 0


def _native(args: argparse.Namespace) -> Backend:
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.engine.warmup import warm_up
    from dlm_tui.progress import run_to_end
    from dlm_tui.serving.native.backend import NativeBackend

    session = open_session(args)
    run_to_end(warm_up(session, choose_threads="OMP_NUM_THREADS" not in os.environ))
    return NativeBackend(session, rows=args.rows, queue=args.queue)
