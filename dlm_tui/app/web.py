"""The workbench in a browser through textual-serve: loopback only, every asset from this machine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from importlib.resources import files
from pathlib import Path

from aiohttp import web
from textual_serve.server import Server

from dlm_tui.errors import DlmTuiError
from dlm_tui.output import say

HOST = "127.0.0.1"


class LocalServer(Server):  # type: ignore[misc]
    """textual-serve with our page, which asks no other host for anything; requests that name one are refused."""

    async def _make_app(self) -> web.Application:
        app: web.Application = await super()._make_app()
        app.middlewares.append(_only_local)
        return app


@web.middleware
async def _only_local(request: web.Request, handler: object) -> web.StreamResponse:
    """A page elsewhere must not be able to reach this server under a name of its own, nor open its web socket."""
    name = request.host.rsplit(":", 1)[0]
    origin = request.headers.get("Origin")
    allowed = {HOST, "localhost"}
    if name not in allowed or (origin is not None and origin.split("://", 1)[-1].rsplit(":", 1)[0] not in allowed):
        raise web.HTTPForbidden(text="This program answers only to this machine.")
    response: web.StreamResponse = await handler(request)  # type: ignore[operator]
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        f"img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws://{request.host}",
    )
    return response


def child_command(document: Path, home: Path, base: str | None) -> str:
    """The command that textual-serve starts for every browser session."""
    words = [sys.executable, "-m", "dlm_tui.app", str(document), "--home", str(home)]
    return shlex.join([*words, *(["--base", base] if base else [])])


def serve(document: Path, home: Path, base: str | None, port: int) -> int:
    """Serve until interrupted. Raises DlmTuiError when the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DlmTuiError(f"cannot listen on {HOST}:{port}: {error.strerror}") from None
    os.environ.pop("NO_COLOR", None)
    say(f"{document.name}: http://{HOST}:{port}  (Ctrl+C ends it)")
    server = LocalServer(
        child_command(document, home, base),
        host=HOST,
        port=port,
        title=f"{document.name} \u00b7 dlm-tui",
        templates_path=str(files("dlm_tui.app") / "templates"),
    )
    server.serve()
    return 0
