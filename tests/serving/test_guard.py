"""Who is refused, and what cannot be held up: asked over bare sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.errors import UsageError
from dlm_tui.serving.native.backend import NativeBackend
from dlm_tui.serving.security import Policy
from dlm_tui.serving.server import PatientProtocol
from tests.serving.conftest import open_again
from tests.serving.running import Running, read_answer, serving, until

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


class Impatient(PatientProtocol):
    """The same with patience that a test can wait out, and little room in the kernel for what nobody reads."""

    header_seconds = 0.3
    unread_seconds = 0.5

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        super().connection_made(transport)


@pytest.fixture(scope="module")
def guarded(served_folder: Path) -> Iterator[Running]:
    """A server with a key, one web page that may ask, and little patience."""
    backend = NativeBackend(open_again(served_folder), queue=4)
    with serving(
        backend,
        protocol=Impatient,
        key="sesame",
        origins=("https://notes.example",),
        body_bytes=4096,
        body_seconds=0.4,
        connections=24,
    ) as found:
        yield found


def read_whole(connection: socket.socket) -> bytes:
    """An answer behind which the connection stays open; its body is a JSON object, or there is none."""
    answer = b""
    while not answer.endswith(b"}") and not (answer.startswith(b"HTTP/1.1 204") and answer.endswith(b"\r\n\r\n")):
        piece = connection.recv(1 << 16)
        assert piece, answer
        answer += piece
    return answer


LARGE = {"n": 8, "logprobs": True, "top_logprobs": 20}
KEY = {"Authorization": "Bearer sesame"}


def test_a_key_that_is_missing_or_wrong_is_refused_and_health_needs_none(guarded: Running) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer sesam"},
        {"Authorization": "sesame"},
        {"Authorization": "Basic sesame"},
    ):
        status, _, answer = guarded.post("/v1/chat/completions", CHAT, **headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert guarded.get("/metrics", **headers)[0] == 401
    assert guarded.post("/v1/chat/completions", CHAT, **KEY)[0] == 200
    assert guarded.get("/health")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost:PORT.evil", ""]
)
def test_a_name_that_is_not_this_server_is_refused(guarded: Running, host: str) -> None:
    status, _, answer = guarded.post("/v1/chat/completions", CHAT, **KEY, Host=host.replace("PORT", str(guarded.port)))
    assert status in (400, 403)
    if status == 403:
        assert answer["error"]["code"] == "host"


def test_localhost_is_this_server(guarded: Running) -> None:
    assert guarded.post("/v1/chat/completions", CHAT, **KEY, Host=f"localhost:{guarded.port}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://notes.example", "https://notes.example.evil"]
)
def test_no_web_page_may_ask_but_those_that_were_allowed(guarded: Running, origin: str) -> None:
    status, headers, answer = guarded.post("/v1/chat/completions", CHAT, **KEY, Origin=origin)
    assert (status, answer["error"]["code"]) == (403, "origin")
    assert not any(name.startswith("access-control") for name in headers)


def test_a_wrong_method_is_told_the_right_one(guarded: Running) -> None:
    for path, method, right in (("/v1/chat/completions", "GET", {"POST"}), ("/health", "DELETE", {"GET", "HEAD"})):
        head = f"{method} {path} HTTP/1.1\nHost: HOST\nAuthorization: Bearer sesame\nConnection: close\n\n"
        status, headers, _ = guarded.raw(head)
        assert (status, set(headers["allow"].split(", "))) == (405, right)


def test_an_allowed_page_may_ask_and_read_the_weights(guarded: Running) -> None:
    origin = {"Origin": "https://notes.example"}
    status, headers, _ = guarded.raw(
        "OPTIONS /v1/chat/completions HTTP/1.1\nHost: HOST\nOrigin: https://notes.example\nConnection: close\n\n"
    )
    assert (status, headers["access-control-allow-origin"]) == (204, "https://notes.example")
    assert not {"content-length", "content-type"} & headers.keys(), "RFC 9110 lets 204 say nothing of a content"
    status, headers, _ = guarded.post("/v1/chat/completions", CHAT, **KEY, **origin)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://notes.example")
    assert headers["access-control-expose-headers"] == "x-dlm-weights"
    large = {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}
    for body, sent, refusal in (
        (CHAT, {}, 401),
        (CHAT, {**KEY, "Content-Type": "text/plain"}, 415),
        (large, KEY, 413),
        ({**CHAT, "n": 99}, KEY, 400),
    ):
        status, headers, _ = guarded.post("/v1/chat/completions", body, **origin, **sent)
        assert (status, headers["access-control-allow-origin"]) == (refusal, "https://notes.example")


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("authorization,content-type,x-stainless-os", "authorization, content-type, x-stainless-os"),
        ("x-a, x b, é, X-C:1, x-d", "authorization, content-type, x-a, x-d"),
        (",".join(["x-a"] * 64 + ["x-late"]), "authorization, content-type, x-a"),
        ("", "authorization, content-type"),
    ],
)
def test_a_preflight_allows_the_headers_it_asks_for(guarded: Running, asked: str, allowed: str) -> None:
    head = "OPTIONS /v1/chat/completions HTTP/1.1\nHost: HOST\nConnection: close\n"
    for origin, found in (("https://notes.example", allowed), ("https://evil.example", None)):
        _, headers, _ = guarded.raw(f"{head}Origin: {origin}\nAccess-Control-Request-Headers: {asked}\n\n")
        assert headers.get("access-control-allow-headers") == found


def test_bodies_are_json_of_bounded_size_that_come_in_time(guarded: Running) -> None:
    assert guarded.post("/v1/chat/completions", CHAT, **KEY, **{"Content-Type": "text/plain"})[0] == 415
    large = {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}
    status, _, answer = guarded.post("/v1/chat/completions", large, **KEY)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    # a chunked body tells no size beforehand
    piece = b"400\r\n" + b"x" * 0x400 + b"\r\n"
    head = (
        "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nContent-Type: application/json\n"
        "Authorization: Bearer sesame\nTransfer-Encoding: chunked\nConnection: close\n\n"
    )
    assert guarded.raw(head, piece * 6 + b"0\r\n\r\n")[0] == 413
    began = time.monotonic()
    slow = head.replace("Transfer-Encoding: chunked", "Content-Length: 50")
    assert guarded.raw(slow, b'{"model"')[0] == 408
    assert time.monotonic() - began < 30


def test_half_open_connections_are_dropped(guarded: Running) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", guarded.port)) as silent:
        assert read_answer(silent) == (0, {}, b"")
    with socket.create_connection(("127.0.0.1", guarded.port)) as dripping:
        # a byte now and then does not renew the patience
        dripping.settimeout(5)
        with pytest.raises(OSError):
            for _ in range(200):
                dripping.sendall(b"G")
                time.sleep(0.02)
            raise AssertionError("still connected")
    assert time.monotonic() - began < 60
    until(lambda: not guarded.built.server_state.connections)


@pytest.mark.parametrize("rest", [b"", b"x", b"GET /health"])
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("GET /health HTTP/1.1\nContent-Length: 1000000", 200),
        ("GET /health HTTP/1.1\nTransfer-Encoding: chunked", 200),
        ("GET /health HTTP/1.1\nContent-Length: 1", 200),
        ("GET /nowhere HTTP/1.1\nAuthorization: Bearer sesame\nContent-Length: 1000000", 404),
        ("OPTIONS /health HTTP/1.1\nOrigin: https://notes.example\nContent-Length: 1000000", 204),
    ],
)
def test_what_is_sent_behind_an_answer_holds_no_connection(
    guarded: Running, asked: str, status: int, rest: bytes
) -> None:
    """A body that nobody waited for and that never ends, one that ends late, and half of a next request."""
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as held:
        head = asked.replace("\n", "\r\n")
        held.sendall(f"{head}\r\nHost: 127.0.0.1:{guarded.port}\r\n\r\n".encode())
        assert int(read_whole(held).split()[1]) == status
        if rest and "chunked" in asked:
            held.sendall(b"%x\r\n" % (len(rest) + 1))
        held.sendall(rest)
        assert read_answer(held) == (0, {}, b""), "closed by the server, and nothing more was said"
    until(lambda: not guarded.built.server_state.connections)


def test_half_a_request_behind_one_that_is_answered_is_dropped(guarded: Running) -> None:
    head = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{guarded.port}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as held:
        held.sendall(f"{head}GET /health".encode())
        status, _, body = read_answer(held)
        assert (status, json.loads(body)["status"]) == (200, "ok")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"max_tokens": 1900, "stream": True, "temperature": 1}, id="long"),
        pytest.param({"max_tokens": 2, "temperature": 0}, id="ended before it was read"),
    ],
)
@pytest.mark.parametrize("sips", [1, 0])
def test_a_client_that_hardly_reads_is_dropped_and_its_row_freed(
    guarded: Running, asked: dict[str, Any], sips: int
) -> None:
    answered = guarded.post("/v1/chat/completions", {**CHAT, **LARGE, "max_tokens": 2, "temperature": 0}, **KEY)[2]
    assert 20_000 < len(json.dumps(answered)) < 60_000, "more than the kernel takes, less than asyncio speaks of"
    until(lambda: not guarded.built.server_state.connections)
    body = json.dumps({**CHAT, **LARGE, **asked})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{guarded.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sesame\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", guarded.port))
        deaf.sendall(head.encode())
        until(lambda: guarded.backend.load.running > 0 or bool(guarded.built.server_state.connections))

        def dropped() -> bool:
            with contextlib.suppress(ConnectionError):
                deaf.recv(sips)  # a byte now and then
            return guarded.backend.load.running == 0 and not guarded.built.server_state.connections

        until(dropped)


@pytest.mark.parametrize(
    "head",
    [
        "GARBAGE\n\n",
        "GET /v1/models HTTP/1.1\n\n",
        "GET /v1/models HTTP/1.1\nHost: HOST\nHost: evil.example\n\n",
        "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nContent-Length: -5\n\n",
        "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Length: 6\n\n",
        "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nContent-Length: 5\nTransfer-Encoding: chunked\n\n",
        "GET /v1/models HTTP/1.1\nHost: HOST\nX-Long: " + "x" * 70000 + "\n\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(guarded: Running, head: str) -> None:
    status, _, _ = guarded.raw(head)
    assert status in (0, 400, 401, 403)
    assert guarded.get("/health")[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        "GARBAGE\n\n",
        "GET /health HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\n\nno chunk\n",
        "POST /v1/route HTTP/1.1\nHost: HOST\nAuthorization: Bearer sesame\nContent-Type: application/json\n"
        "Transfer-Encoding: chunked\n\nno chunk\n",
    ],
)
def test_what_is_no_http_is_told_in_the_form_of_every_error(
    guarded: Running, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, answer = guarded.raw(head)
    assert (status, json.loads(answer)["error"]["message"]) == (400, "this is no HTTP request")
    assert headers["content-type"] == "application/json"
    until(lambda: not guarded.built.server_state.connections and not guarded.built.server_state.tasks)
    assert [record.message for record in caplog.records] == []


def test_what_is_no_http_behind_an_answer_closes_without_a_word(
    guarded: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as connection:
        head = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{guarded.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        assert read_whole(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"no chunk\r\n")
        assert read_answer(connection) == (0, {}, b"")
    assert [record.message for record in caplog.records] == []


def test_more_connections_at_work_than_may_be_are_told_in_the_form_of_every_error(served_folder: Path) -> None:
    backend, page = NativeBackend(open_again(served_folder)), "https://notes.example"
    with serving(backend, connections=1, origins=(page,)) as running:
        long = {**CHAT, "max_tokens": 1900, "temperature": 0}
        with running.client().chat.completions.create(**long, stream=True) as stream:
            next(stream)
            status, headers, answer = running.get("/health", Origin=page)
            assert (status, json.loads(answer)["error"]["code"]) == (503, "too_many_connections")
            assert headers["access-control-allow-origin"] == page
        until(lambda: backend.load.running == 0)
        assert running.get("/health")[0] == 200


def test_idle_connections_give_way_to_one_that_asks(guarded: Running) -> None:
    until(lambda: not guarded.built.server_state.connections)
    idle: list[socket.socket] = []

    def ask(connection: socket.socket) -> None:
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{guarded.port}\r\n\r\n".encode())
        assert read_whole(connection).startswith(b"HTTP/1.1 200")

    with contextlib.ExitStack() as held:
        for _ in range(24):
            idle.append(held.enter_context(socket.create_connection(("127.0.0.1", guarded.port), timeout=10)))
            ask(idle[-1])
        ask(idle[0])  # so that the second is the one that is idle for longest
        assert guarded.get("/health")[0] == 200
        assert read_answer(idle[1]) == (0, {}, b"")
        for connection in (idle[0], *idle[2:]):
            ask(connection)


def test_settings_that_change_nothing_are_taken(guarded: Running) -> None:
    inert = {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "presence_penalty": 0, "tools": []}
    assert guarded.post("/v1/chat/completions", {**CHAT, **inert}, **KEY)[0] == 200


def test_what_the_http_library_has_to_say_is_not_printed(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert guarded.raw("GARBAGE\n\n")[0] == 400
    assert guarded.get("/health", Connection="upgrade", Upgrade="websocket")[0] == 200
    # without a handler, as in a server of its own, it would stand on stderr
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/../../etc/passwd",
        "/v1/models/../../../x",
        "/v1/files",
        "/v1/models/",
        "/v1/models/%20",
        "/%2e%2e/%2e%2e",
        "/docs",
    ],
)
def test_there_is_nothing_else_to_ask_for(guarded: Running, path: str) -> None:
    status, _, body = guarded.get(path, **KEY)
    assert status == 404
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 9}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_k": 40}, "top_k"),
        ({"min_p": 0.05}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"seed": 2**70}, "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_its_field(
    guarded: Running, change: dict[str, object], param: str | None
) -> None:
    status, _, answer = guarded.post("/v1/chat/completions", {**CHAT, **change}, **KEY)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nul", b'"x"', b"\xff\xfe", b"[" * 3000, b'{"messages": NaN}'])
def test_bodies_that_are_no_request_are_refused(guarded: Running, body: bytes) -> None:
    assert guarded.post("/v1/chat/completions", body, **KEY)[0] == 400


def test_a_prompt_beyond_the_context_is_refused(running: Running) -> None:
    status, _, answer = running.post("/v1/completions", {"model": "base", "prompt": "tide " * 3000})
    assert status == 400
    assert "2048 are read here at most" in answer["error"]["message"]


def test_any_other_address_needs_a_key() -> None:
    for host in ("0.0.0.0", "192.168.1.7", "::", "example.org"):
        with pytest.raises(UsageError, match="api-key"):
            Policy(host, 8321)
        assert Policy(host, 8321, key="k").knows_key("Bearer k")
    open_to_all = Policy("0.0.0.0", 8321, key="k", allow_hosts=("gpu.example",))
    assert open_to_all.knows_host("gpu.example:8321") and open_to_all.knows_host("10.0.0.7:8321")
    assert not open_to_all.knows_host("evil.example:8321")
    assert not Policy("127.0.0.1", 8321).knows_host("10.0.0.7:8321")


@pytest.mark.parametrize(
    ("allowed", "known", "unknown"),
    [
        ("box.lan", ["box.lan:8321", "BOX.lan:8321"], ["box.lan", "box.lan:443"]),
        ("Box.LAN:18322", ["box.lan:18322"], ["box.lan:8321", "box.lan:18322:8321"]),
        ("box.lan:443", ["box.lan", "box.lan:443"], ["box.lan:8321"]),
        ("box.lan:80", ["box.lan", "box.lan:80"], []),
        ("fd00::7", ["[fd00::7]:8321"], ["fd00::7:8321"]),
        ("[FD00::7]:99", ["[fd00::7]:99"], ["[fd00::7]:8321"]),
        ("10.0.0.7", ["10.0.0.7:8321"], ["10.0.0.7"]),
    ],
)
def test_another_name_of_the_server_with_and_without_a_port(allowed: str, known: list[str], unknown: list[str]) -> None:
    policy = Policy("127.0.0.1", 8321, allow_hosts=(allowed,))
    assert [host for host in known if not policy.knows_host(host)] == []
    assert [host for host in unknown if policy.knows_host(host)] == []


@pytest.mark.parametrize(
    "allowed", ["", "*", "https://box.lan", "box.lan/", "box.lan:", "box.lan:0", "box.lan:70000", "a b", "a,b", "[::1"]
)
def test_what_is_no_name_of_a_server_is_refused(allowed: str) -> None:
    with pytest.raises(UsageError, match=r"^--allow-host is NAME or NAME:PORT, as box\.lan or box\.lan:443 are, not "):
        Policy("127.0.0.1", 8321, allow_hosts=(allowed,))


@pytest.mark.parametrize(
    ("allowed", "kept"),
    [
        ("https://good.example/", "https://good.example"),
        ("HTTPS://Good.Example", "https://good.example"),
        ("https://good.example:443", "https://good.example"),
        ("http://good.example:80/", "http://good.example"),
        ("http://good.example:443", "http://good.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("app://obsidian.md", "app://obsidian.md"),
    ],
)
def test_an_allowed_page_is_kept_as_browsers_write_it(allowed: str, kept: str) -> None:
    assert Policy("127.0.0.1", 8321, origins=(allowed,)).origins == (kept,)


@pytest.mark.parametrize(
    "allowed",
    ["", "*", "null", "good.example", "good.example:443", "https://", "https://good.example/page", "https://*.example",
     "https://good.example?x", "https://me@good.example", "https://good.example:0", "https://good.example, https://b"],
)  # fmt: skip
def test_what_is_no_page_is_refused(allowed: str) -> None:
    with pytest.raises(UsageError, match=r"^--allow-origin is SCHEME://HOST or SCHEME://HOST:PORT, as .* is, not "):
        Policy("127.0.0.1", 8321, origins=(allowed,))
