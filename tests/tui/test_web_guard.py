"""The browser screen: nobody without the printed address, no other page, exactly this host and port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp", reason="the web extra is not installed")
from aiohttp import ClientSession, CookieJar, WSServerHandshakeError, web

from dlm_tui.app.web_guard import HOST, Guard
from tests.free_port import free_port


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    port = free_port()
    guarded = Guard(port)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="the screen")

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        await answer.send_str("hello")
        await answer.close()
        return answer

    app = web.Application(middlewares=[guarded.middleware])
    app.on_response_prepare.append(guarded.on_prepare)
    app.add_routes([web.get("/", page), web.get("/ws", socket), web.get("/static/a", page)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    yield guarded
    await runner.cleanup()


async def status(guard: Guard, path: str, http: ClientSession, **headers: str) -> int:
    async with http.get(guard.origin + path, headers=headers, allow_redirects=False) as answer:
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status


async def test_the_printed_address_is_the_only_way_in(guard: Guard) -> None:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as http:
        for path in (
            "/",
            "/ws",
            "/static/a",
            "/?token=",
            "/?token=wrong",
            "/static/a" + guard.address.partition("/?")[2],
        ):
            assert await status(guard, path, http) in (403, 404), path
        assert await status(guard, "/static/a?" + urlsplit(guard.address).query, http) == 403
        async with http.get(guard.address) as answer:
            assert (answer.status, await answer.text(), answer.url.query_string) == (200, "the screen", "")
        cookie = next(iter(http.cookie_jar))
        assert cookie["httponly"] and cookie["samesite"] == "Strict"
        assert await status(guard, "/static/a", http) == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost", f"{HOST}", f"{HOST}:1", "127.0.0.2"])
async def test_no_other_name(guard: Guard, host: str) -> None:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as http:
        await (await http.get(guard.address)).read()
        assert await status(guard, "/", http, Host=host) == 403
        assert await status(guard, "/", http) == 200


async def test_no_other_page_opens_the_socket(guard: Guard) -> None:
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as http:
        await (await http.get(guard.address)).read()
        async with http.ws_connect(f"{guard.origin}/ws", headers={"Origin": guard.origin}) as socket:
            assert await socket.receive_str() == "hello"
        origins = (
            "http://localhost:3000",
            f"http://{HOST}:3000",
            f"https://{guard.authority}",
            f"http://{HOST}",
            "null",
        )
        for origin in origins:
            with pytest.raises(WSServerHandshakeError, match="403"):
                await http.ws_connect(f"{guard.origin}/ws", headers={"Origin": origin})
        with pytest.raises(WSServerHandshakeError, match="403"):
            await http.ws_connect(f"{guard.origin}/ws")


async def test_the_real_server_stands_behind_it() -> None:
    pytest.importorskip("textual_serve", reason="the web extra is not installed")
    from dlm_tui.app.web import LocalServer

    port = free_port()
    real = Guard(port)
    runner = web.AppRunner(await LocalServer("true", real, port=port, title='<b>"x"</b>{{ 1 + 1 }}')._make_app())
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    try:
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as http:
            for path in ("/", "/ws", "/static/js/textual.js", "/download/x"):
                assert await status(real, path, http) == 403, path
            async with http.get(real.address) as answer:
                page = await answer.text()
            assert "&lt;b&gt;&#34;x&#34;&lt;/b&gt;{{ 1 + 1 }}" in page and "<b>" not in page
            assert f"ws://{HOST}:{port}/ws" in page and "token" not in page
            assert await status(real, "/static/js/textual.js", http) == 200
    finally:
        await runner.cleanup()


def test_every_start_has_a_secret_of_its_own() -> None:
    assert Guard(8000).address != Guard(8000).address
    assert len(Guard(8000).address.partition("token=")[2]) >= 40
