"""Who may ask, checked before anything is read: Host, Origin, key, and the size and pace of bodies. No torch."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm_tui.errors import UsageError
from dlm_tui.serving import responses

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0
ASKED_HEADERS = 64
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@]+)/?")
_SCHEME_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Policy:
    """Who may ask. `key` None: nobody is asked for one. `hosts` are the names (with port) that this server answers
    to, of `allow_hosts` NAME at its own port and NAME:PORT as it is; `origins` the web pages that may read it, none
    unless asked for, kept as browsers write them."""

    host: str
    port: int
    key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = BODY_BYTES
    body_seconds: float = BODY_SECONDS
    hosts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Raises UsageError for an address beyond this machine without a key, and for what no client would send."""
        if not is_loopback(self.host) and not self.key:
            raise UsageError(
                f"{self.host} can be reached from other machines: set a key with --api-key or DLM_TUI_API_KEY"
            )
        names = {"127.0.0.1", "localhost", "[::1]", _bracketed(self.host).lower()}
        if not is_loopback(self.host):
            names.add(socket.gethostname().lower())
        places = {(name, self.port) for name in names} | {_allowed_host(text, self.port) for text in self.allow_hosts}
        # a client leaves out the port only where it is the scheme's own
        bare = {name for name, port in places if port in _SCHEME_PORTS.values()}
        object.__setattr__(self, "hosts", frozenset({f"{name}:{port}" for name, port in places} | bare))
        object.__setattr__(self, "origins", tuple(_allowed_origin(text) for text in self.origins))

    def knows_host(self, host: str) -> bool:
        """Whether the Host header names this server. A page that points a name of its own at this address (DNS
        rebinding) does not; a bare address cannot be rebound, so behind a key any will do."""
        if host.lower() in self.hosts:
            return True
        name, _, port = host.rpartition(":")
        return not is_loopback(self.host) and port == str(self.port) and _is_address(name)

    def knows_key(self, authorization: str) -> bool:
        """Whether the Authorization header carries the key; takes as long for any wrong one."""
        if self.key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        # digests have one length, so nothing is told by how long the comparison takes
        wanted, found = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (self.key, given.strip()))
        return hmac.compare_digest(wanted, found) and scheme.lower() == "bearer"


class Guard:
    """The outermost layer: refuses before any route sees the request, and bounds what a client may send or hold up."""

    def __init__(self, app: App, policy: Policy, crowded: Callable[[], bool] = lambda: False) -> None:
        """`crowded`: whether more connections are at work than may be."""
        self._app, self._policy, self._crowded = app, policy, crowded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        policy = self._policy
        headers = _headers(scope)
        origin = headers.get("origin")
        # an allowed page may also read why it is refused
        cors = _cors(origin, headers) if origin is not None and origin in policy.origins else []
        if refusal := self._refusal(policy, scope, headers):
            await _answer(send, *refusal, cors)
            return
        if cors and scope["method"] == "OPTIONS":
            await _answer(send, 204, b"", cors)
            return
        sender = _with_headers(send, cors) if cors else send
        await self._app(scope, _bounded(receive, policy, headers), sender)

    def _refusal(self, policy: Policy, scope: Scope, headers: dict[str, str]) -> tuple[int, bytes] | None:
        if self._crowded():
            return 503, responses.error(
                "too many connections are at work; try again in a moment", "server_error", code="too_many_connections"
            )
        if not policy.knows_host(headers.get("host", "")):
            return 403, responses.error("this server does not answer to that name", "permission_error", code="host")
        origin = headers.get("origin")
        if origin is not None and origin not in policy.origins:
            return 403, responses.error("no web page may ask this server", "permission_error", code="origin")
        if origin is not None and scope["method"] == "OPTIONS":
            return None  # a preflight carries no key
        if scope["path"] != "/health" and not policy.knows_key(headers.get("authorization", "")):
            return 401, responses.error(
                "the API key is missing or wrong", "authentication_error", code="invalid_api_key"
            )
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, responses.error("the body must be application/json", "invalid_request_error")
            size = headers.get("content-length", "0")
            if not size.isdecimal() or int(size) > policy.body_bytes:
                return 413, _too_large(policy)
        return None


class BodyRefused(Exception):
    """A body that is too long or too slow: the status and the answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _allowed_host(text: str, port: int) -> tuple[str, int]:
    """Name and port of `--allow-host`, `port` where it names none. Raises UsageError."""
    found = _PLACE.fullmatch(_bracketed(text) if _is_address(text) else text)
    if found is None or not _is_port(found[2]):
        raise UsageError(f"--allow-host is NAME or NAME:PORT, as box.lan or box.lan:443 are, not {text!r}")
    return found[1].lower(), int(found[2] or port)


def _allowed_origin(text: str) -> str:
    """The origin of `--allow-origin` as a browser writes it: lower case, without its scheme's own port, no slash at
    the end. Raises UsageError for what is none."""
    found = _ORIGIN.fullmatch(text)
    place = _PLACE.fullmatch(found[2]) if found else None
    if found is None or place is None or not _is_port(place[2]):
        raise UsageError(
            f"--allow-origin is SCHEME://HOST or SCHEME://HOST:PORT, as https://notes.example is, not {text!r}"
        )
    scheme, port = found[1].lower(), place[2]
    return f"{scheme}://{place[1].lower()}" + (
        f":{int(port)}" if port and int(port) != _SCHEME_PORTS.get(scheme) else ""
    )


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65536


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _headers(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of repeated ones all values, so that none of them can pass for another."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _too_large(policy: Policy) -> bytes:
    return responses.error(
        f"the body is longer than {policy.body_bytes} bytes", "invalid_request_error", code="too_large"
    )


def _bounded(receive: Receive, policy: Policy, headers: dict[str, str]) -> Receive:
    """`receive` that ends a body which grows too long or comes too slowly."""
    seen, deadline, whole = 0, asyncio.get_running_loop().time() + policy.body_seconds, False

    async def bounded() -> Message:
        nonlocal seen, whole
        if whole:
            return await receive()
        left = deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            slow = responses.error("the body came too slowly", "invalid_request_error", code="timeout")
            raise BodyRefused(408, slow) from None
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > policy.body_bytes:
                raise BodyRefused(413, _too_large(policy))
        return message

    return bounded


def _with_headers(send: Send, extra: Sequence[tuple[bytes, bytes]]) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sender


def _cors(origin: str, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """What an allowed page is told; it may send the headers that it asks for, none of which lets anybody in."""
    asked = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in asked.split(",")[:ASKED_HEADERS]]
    allowed = dict.fromkeys(["authorization", "content-type", *(name for name in names if _TOKEN.fullmatch(name))])
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-headers", ", ".join(allowed).encode("ascii")),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-expose-headers", responses.WEIGHTS_HEADER.lower().encode()),
        (b"vary", b"origin"),
    ]


async def _answer(send: Send, status: int, body: bytes, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """A refusal closes the connection: what the client may still be sending is not read."""
    headers = list(extra)
    if status != 204:  # which has no content, and by RFC 9110 no word about its length
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
