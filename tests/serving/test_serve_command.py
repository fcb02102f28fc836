"""`dlm-tui serve` as a process: the address it tells, what it refuses, how it ends, and that it comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dlm_tui.cli.main import main
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.serving.server import listen

ASKED: dict[str, Any] = {
    "model": "gated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0
}  # fmt: skip


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address; killed at the end if it still runs."""
    command = [
        sys.executable, "-m", "dlm_tui", "serve", str(folder / "doc.dlm"), "--home", str(folder / "home"),
        "--base", str(folder / "base"), "--json", *options,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
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
    served_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = str(served_folder / "doc.dlm")
    assert main(["serve", document, "--host", "0.0.0.0"]) == 2
    assert "--api-key" in capsys.readouterr().err
    assert main(["serve", document, "--port", "99999"]) == 2
    assert "between 0 and 65535" in capsys.readouterr().err
    assert main(["serve", document, "--rows", "0"]) == 2
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", document, "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
