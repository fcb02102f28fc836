"""The program in a real browser: headless Chromium opens it, types, and never asks another host for anything."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.app.state import StateFile
from tests.free_port import free_port
from tests.tui.document import write_document

aiohttp = pytest.importorskip("aiohttp", reason="the web extra is not installed")
pytest.importorskip("textual_serve", reason="the web extra is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.asynccontextmanager
async def running(*command: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **env},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def devtools_address(browser: asyncio.subprocess.Process) -> str:
    """Where the browser says it can be driven."""
    assert browser.stderr is not None
    async for line in browser.stderr:
        if found := re.search(rb"DevTools listening on ws://([^/]+)/", line):
            return f"http://{found[1].decode()}"
    raise AssertionError("the browser ended before it listened")


async def wait_for(condition: Any, what: str, seconds: float = 180.0) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    while not (result := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.05)
    return result


class Page:
    """A browser tab over the DevTools protocol: what it asked for, what came over its web sockets."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._next = socket, 0
        self.urls: list[str] = []
        self.terminal = ""

    async def send(self, method: str, **params: Any) -> None:
        self._next += 1
        await self._socket.send_json({"id": self._next, "method": method, "params": params})

    async def type(self, text: str) -> None:
        """Click into the page and give it keys."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=60, y=45, button="left", clickCount=1)
        for char in text:
            await self.send("Input.dispatchKeyEvent", type="keyDown", text=char, key=char)
            await self.send("Input.dispatchKeyEvent", type="keyUp", key=char)

    async def listen(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            params = event.get("params", {})
            match event.get("method"):
                case "Network.requestWillBeSent":
                    self.urls.append(params["request"]["url"])
                case "Network.webSocketCreated":
                    self.urls.append(params["url"])
                case "Network.webSocketFrameReceived":
                    frame = params["response"]
                    if frame["opcode"] == 2:
                        self.terminal += base64.b64decode(frame["payloadData"]).decode(errors="replace")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
async def test_in_a_browser(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    port = free_port()
    serve = (sys.executable, "-m", "dlm_tui", "web", str(path), "--port", str(port), "--home", str(tmp_path))
    chromium = (str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'browser'}", "--no-first-run",
                "about:blank")  # fmt: skip
    async with running(*serve) as server, running(*chromium) as browser, aiohttp.ClientSession() as http:
        assert server.stderr is not None
        said = (await asyncio.wait_for(server.stderr.readline(), 180)).decode()
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", said)
        assert address is not None, said
        devtools = await asyncio.wait_for(devtools_address(browser), 180)
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"}) as refused:
                    assert refused.status == 403
                    break
            await asyncio.sleep(0.1)
        async with http.put(f"{devtools}/json/new?about:blank") as answer:
            tab = await answer.json()
        async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as tab_socket:
            page = Page(tab_socket)
            listening = asyncio.create_task(page.listen())
            await page.send("Network.enable")
            await page.send("Page.navigate", url=address[0])
            await wait_for(lambda: "harbour.dlm" in page.terminal and "Prompt" in page.terminal, "the first screen")
            await page.send("Page.bringToFront")
            await page.send("Emulation.setFocusEmulationEnabled", enabled=True)
            state = StateFile(path)
            for patience in (15.0, 30.0, 60.0, 180.0):
                await page.type("what is the tide")
                # what is typed before the page has the focus goes nowhere
                with contextlib.suppress(AssertionError):
                    await wait_for(lambda: "what is the tide" in state.load().prompt, "typed", patience)
                    break
            else:
                pytest.fail("nothing typed in the browser arrives")
            listening.cancel()
        foreign = [
            url for url in page.urls if f"127.0.0.1:{port}" not in url and not url.startswith(("data:", "about:"))
        ]
        assert foreign == []
        assert any(url.endswith("RobotoMono-VariableFont_wght.ttf") or "textual.js" in url for url in page.urls)


PROGRAM = "import sys; print('__GANGLION__', flush=True); sys.stdin.buffer.read(1)"
"""Begins as the screen in a browser does, and ends with the first thing it is told."""


@pytest.mark.parametrize("sent", ["{", "[]", "7", '{"resize": 1}', '["stdin", 7]', '["resize", []]', '["resize"]'])
async def test_what_no_page_sends_is_one_line_and_ends_the_session(sent: str, caplog: pytest.LogCaptureFixture) -> None:
    from dlm_tui.app.web import LocalServer
    from dlm_tui.app.web_guard import HOST, Guard

    port = free_port()
    guard = Guard(port)
    server = LocalServer(shlex.join([sys.executable, "-c", PROGRAM]), guard, port=port, title="harbour.dlm")
    runner = aiohttp.web.AppRunner(await server._make_app())
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, HOST, port).start()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            await (await client.get(guard.address)).read()
            async with client.ws_connect(f"{guard.origin}/ws", headers={"Origin": guard.origin}) as socket:
                await socket.send_str(sent)
                async with asyncio.timeout(60):
                    while (await socket.receive()).type != aiohttp.WSMsgType.CLOSE:
                        pass
                assert socket.close_code == aiohttp.WSCloseCode.INVALID_TEXT
    finally:
        await runner.cleanup()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (line,) = [record for record in warnings if record.name != "asyncio"]  # textual-serve leaves its children to that
    assert "it sent what cannot be read" in line.getMessage() and line.exc_info is None


async def test_only_the_address_is_said_and_no_request_is_logged(tmp_path: Path) -> None:
    """What textual-serve prints by itself is an address without the secret, and log lines with it."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dlm_tui", "web", str(write_document(tmp_path)), "--home", str(tmp_path / "home")),
        *("--port", str(port)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        said = (await process.stderr.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=(\S+)", said)
        assert found is not None, said
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            for _ in range(400):
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with client.get(found[0]) as answer:
                        assert answer.status == 200
                        break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("the server never listened")
    finally:
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert out == b""
    assert found[1].encode() not in err and b"Serving" not in err
