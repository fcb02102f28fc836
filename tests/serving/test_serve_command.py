"""`dlm-tui serve` as a process: the address it tells, what it refuses, how it ends, and that it comes back."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dlm_tui.app.server_process import ServerProcess, server_words
from dlm_tui.cli.main import main
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.errors import DlmTuiError
from dlm_tui.serving.llama import options
from dlm_tui.serving.server import listen
from tests.serving.running import read_answer, until

ASKED: dict[str, Any] = {
    "model": "gated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0
}  # fmt: skip


HASTY = """
from dlm_tui.app.server_process import ServerProcess, server_words
from dlm_tui.cli.main import main
from dlm_tui.serving import server
server.GRACE_SECONDS = server.LAST_SECONDS = 0.4
raise SystemExit(main())
"""


@contextlib.contextmanager
def process(folder: Path, *options: str, hasty: bool = False) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address; killed at the end if it still runs. `hasty`: it has little time for an end."""
    start = ("-c", HASTY) if hasty else ("-m", "dlm_tui")
    command = [
        sys.executable, *start, "serve", str(folder / "doc.dlm"), "--home", str(folder / "home"),
        "--base", str(folder / "base"), "--json", *options,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            assert json.loads(line)["warnings"] == []
            yield child, json.loads(line)["address"]
        finally:
            child.kill()


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def test_it_tells_its_address_answers_and_ends_on_a_signal(served_folder: Path) -> None:
    with process(served_folder, "--port", "0") as (child, address):
        answer = client(address).chat.completions.create(**ASKED)
        assert (answer.model_extra or {})["dlm"]["mode"] == "trained"
        mixes = NamedMixes(served_folder / "doc.dlm")
        mixes.save({"quiet": {"tone": 0.25}})
        answer = client(address).chat.completions.create(**{**ASKED, "model": "mix:quiet"})
        assert (answer.model_extra or {})["dlm"]["weights"] == {"tone": 0.25}
        mixes.path.unlink()
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_tells_every_client_why_nothing_more_comes(served_folder: Path, sent: signal.Signals) -> None:
    long = {**ASKED, "model": "base", "max_tokens": 2000, "n": 8}
    with (
        process(served_folder, "--port", "0", "--rows", "16", hasty=True) as (child, address),
        ThreadPoolExecutor(2) as pool,
        # whose body never comes
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow,
    ):
        head = f"POST /v1/route HTTP/1.1\r\nHost: {address.removeprefix('http://')}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
        stream = client(address).chat.completions.create(**long, stream=True)
        next(stream)

        def busy(running: int, waiting: int) -> bool:
            text = httpx.get(f"{address}/metrics").text
            return f"rows_running {running}.0" in text and f"requests_waiting {waiting}.0" in text

        running = pool.submit(lambda: client(address).chat.completions.create(**long))
        until(lambda: busy(16, 0))
        waiting = pool.submit(lambda: client(address).chat.completions.create(**ASKED))
        until(lambda: busy(16, 1))
        child.send_signal(sent)
        for refused in (waiting, running):
            with pytest.raises(openai.InternalServerError, match="the server is stopping") as told:
                refused.result()
            assert (told.value.status_code, told.value.code) == (503, "stopping")
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in stream:
                pass
        assert read_answer(slow)[0] == 0
        assert child.wait(30) == 0
        assert child.stderr is not None
        said = child.stderr.read().partition("(Ctrl+C ends it)\n")[2]
        assert said == "stopping: answers that are being written may take 0.4 seconds more\n"


def test_a_second_interrupt_waits_for_nobody(served_folder: Path) -> None:
    with process(served_folder, "--port", "0") as (child, address):
        stream = client(address).chat.completions.create(**{**ASKED, "max_tokens": 2000, "n": 8}, stream=True)
        next(stream)
        assert child.stderr is not None
        child.send_signal(signal.SIGINT)
        assert any(line.startswith("stopping") for line in child.stderr)
        child.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in stream:
                pass
        assert child.wait(30) == 0
        assert child.stderr.read() == ""


def test_killed_under_load_and_started_again_it_loses_only_what_was_in_flight(served_folder: Path) -> None:
    wanted: list[str | None] = []
    with process(served_folder, "--port", "0") as (child, address):
        wanted.append(client(address).chat.completions.create(**ASKED).choices[0].message.content)
        stream = client(address).chat.completions.create(
            **{**ASKED, "max_tokens": 1500, "n": 8, "temperature": 1}, stream=True
        )
        next(stream)
        child.kill()
        with pytest.raises((httpx.HTTPError, openai.APIError)):
            for _ in stream:
                pass
        child.wait(30)
    port = address.rpartition(":")[2]
    with process(served_folder, "--port", port) as (_, again):
        assert again == address
        wanted.append(client(again).chat.completions.create(**ASKED).choices[0].message.content)
    assert wanted[0] == wanted[1]


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    served_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = str(served_folder / "doc.dlm")
    assert main(["serve", document, "--host", "0.0.0.0"]) == 2
    assert "--api-key" in capsys.readouterr().err
    for nothing in ("", " "):
        assert main(["serve", document, "--host", nothing, "--api-key", "k"]) == 2
        assert "--host is empty" in capsys.readouterr().err
    assert main(["serve", document, "--port", "99999"]) == 2
    assert "between 0 and 65535" in capsys.readouterr().err
    assert main(["serve", document, "--rows", "0"]) == 2
    assert main(["serve", document, "--allow-host", "http://box.lan"]) == 2
    assert "--allow-host is NAME or NAME:PORT" in capsys.readouterr().err
    assert main(["serve", document, "--allow-origin", "*"]) == 2
    assert "--allow-origin is SCHEME://HOST" in capsys.readouterr().err
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", document, "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
        words = server_words(served_folder / "doc.dlm", served_folder / "home", None, port, 0)
        with pytest.raises(DlmTuiError, match=f"^cannot listen on 127.0.0.1:{port}: "):  # its stdin stays open
            asyncio.run(ServerProcess.start(words))
        for key in ("", " ", "sekret ", "\tsekret", "schlüssel", "se\nkret", "se\x7fkret"):
            assert main(["serve", document, "--port", str(port), "--api-key", key]) == 2
            assert "--api-key must be printable ASCII" in capsys.readouterr().err
            monkeypatch.setenv("DLM_TUI_API_KEY", key)
            assert main(["serve", document, "--port", str(port)]) == 2
            assert "DLM_TUI_API_KEY must be printable ASCII" in capsys.readouterr().err
        monkeypatch.delenv("DLM_TUI_API_KEY")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        *((["--grid", step], "--grid: it is a whole part of 1") for step in ("0.7", "0.3", "0", "nan", "inf")),
        (["--grid=-0.25"], "--grid: it is a whole part of 1"),
        *((["--threads", count], "--threads: it is a whole number, not ") for count in ("1.5", "٣", "")),
        *((["--threads", count], "--threads: it is at least 1") for count in ("0", "-3")),
    ],
)
def test_options_of_llama_cpp_are_refused_before_anything_is_exported(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "none.dlm"), "--backend", "llama.cpp", *words]) == 2
    assert text in capsys.readouterr().err
    standalone = pytest.importorskip("dlm_tui.serving.llama.standalone", reason="the llama extra is not installed")
    with pytest.raises(SystemExit, match="2"):
        standalone.main(tmp_path, words)
    assert text in capsys.readouterr().err


def test_an_unknown_quantisation_is_refused_before_anything_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "none.dlm"), "--backend", "llama.cpp", "--quant", "q9"]) == 2
    assert "no quantisation is called 'q9'" in capsys.readouterr().err


def test_options_of_llama_cpp_are_taken() -> None:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    for step in (0.5, 0.25, 0.05, 1 / 3):
        assert parser.parse_args(["--grid", repr(step), "--threads", "12"]) == argparse.Namespace(grid=step, threads=12)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_listened_on_with_and_without_brackets(
    host: str, served_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        taken = listen("::1", 0)
    except DlmTuiError:
        pytest.skip("this machine has no IPv6")
    with taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(served_folder / "doc.dlm"), "--host", host, "--port", str(port)]) == 1
        assert capsys.readouterr().err == f"dlm-tui: cannot listen on ::1:{port}: Address already in use\n"
