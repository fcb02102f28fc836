"""Who may use the screen in the browser: whoever has the address that was printed, from this machine, in no other page.

The address carries a secret. The first visit puts it into a cookie and leaves the address bar without it. Host and
Origin must be exactly this server's, so that no page elsewhere, nor one on another local port, can drive the screen.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

HOST = "127.0.0.1"
_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """The check in front of every request of a server on 127.0.0.1 at `port`."""

    def __init__(self, port: int, secret: str | None = None) -> None:
        self.authority = f"{HOST}:{port}"
        self.origin = f"http://{self.authority}"
        self._secret = secret or secrets.token_urlsafe(32)
        self._cookie = f"dlm_tui_{port}"  # browsers keep one jar for all ports of a machine

    @property
    def address(self) -> str:
        """The address to open, with the secret in it."""
        return f"{self.origin}/?token={self._secret}"

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """For `web.Application.middlewares`."""

        @web.middleware
        async def check(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self._refuse_foreign(request)
            if self._is_secret(request.query.get("token")) and request.method == hdrs.METH_GET and request.path == "/":
                return self._welcome()
            if not self._is_secret(request.cookies.get(self._cookie)):
                raise web.HTTPForbidden(text="Open the address that dlm-tui printed: it holds the key to this screen.")
            return await handler(request)

        return check

    async def on_prepare(self, _: web.Request, response: web.StreamResponse) -> None:
        """For `web.Application.on_response_prepare`: what every answer says, refusals included."""
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault(
            "Content-Security-Policy",
            "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
            "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
            f"connect-src 'self' ws://{self.authority}",
        )

    def _refuse_foreign(self, request: web.Request) -> None:
        origins = request.headers.getall(hdrs.ORIGIN, [])
        asks_for_socket = request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        if (
            request.headers.getall(hdrs.HOST, []) != [self.authority]
            or any(origin != self.origin for origin in origins)
            or (asks_for_socket and not origins)  # every browser sends one
        ):
            raise web.HTTPForbidden(text="This program answers only to its own page on this machine.")

    def _is_secret(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._secret.encode())

    def _welcome(self) -> web.Response:
        response = web.Response(status=303, headers={hdrs.LOCATION: "/"})
        response.set_cookie(self._cookie, self._secret, httponly=True, samesite="Strict", path="/")
        return response
