"""The workbench in a browser through textual-serve: loopback only, every asset from this machine."""

from __future__ import annotations

import logging
import os
import shlex
import socket
from importlib.resources import files
from pathlib import Path

from aiohttp import WSCloseCode, web
from textual_serve.app_service import AppService
from textual_serve.server import Server

from dlm_tui.app.web_guard import HOST, Guard
from dlm_tui.child import module_words
from dlm_tui.errors import DlmTuiError
from dlm_tui.output import say

_log = logging.getLogger(__name__)


class LocalServer(Server):  # type: ignore[misc]
    """textual-serve with our page, which asks no other host for anything, behind a guard."""

    def __init__(self, command: str, guard: Guard, *, port: int, title: str) -> None:
        super().__init__(
            command, host=HOST, port=port, title=title, templates_path=str(files("dlm_tui.app") / "templates")
        )
        self._guard = guard

    async def _make_app(self) -> web.Application:
        app: web.Application = await super()._make_app()
        app.middlewares.append(self._guard.middleware)
        app.on_response_prepare.append(self._guard.on_prepare)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Nothing is printed: the address that textual-serve would show lacks the secret and opens nothing."""

    async def _process_messages(self, websocket: web.WebSocketResponse, app_service: AppService) -> None:
        """What the page sends goes to the program; what no page of ours sends ends the session with one line."""
        try:
            await super()._process_messages(websocket, app_service)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            _log.warning("A session in the browser ends: it sent what cannot be read (%s).", type(error).__name__)
            await websocket.close(code=WSCloseCode.INVALID_TEXT)

    def initialize_logging(self) -> None:
        """Warnings on stderr, and no line per request: the address in it holds the secret."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s")


def child_command(document: Path, home: Path, base: str | None) -> str:
    """The command that textual-serve starts for every browser session."""
    words = module_words("dlm_tui.app", str(document), "--home", str(home))
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
    guard = Guard(port)
    say(f"{document.name}: {guard.address}  (Ctrl+C ends it)")
    LocalServer(child_command(document, home, base), guard, port=port, title=f"{document.name} \u00b7 dlm-tui").serve()
    return 0
