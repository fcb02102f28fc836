"""Fetching an adapter from a hub on the loopback: the real client, two files, one sentence for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_stub import Hub, serving

CLIENT = """
import json, sys
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.adapter_download import fetch_adapter
from dlm_tui.progress import run_to_end
try:
    folder = run_to_end(fetch_adapter(sys.argv[1]))
    print(json.dumps({"files": sorted(path.name for path in folder.iterdir())}))
except DlmTuiError as error:
    print(json.dumps({"error": str(error)}))
"""
ADAPTER = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": b"weights", "adapter_model.bin": b"never"}


def fetch(url: str, home: Path, repository: str) -> dict[str, object]:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", CLIENT, repository]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_only_configuration_and_safetensors_come(tmp_path: Path) -> None:
    with serving(Hub(ADAPTER)) as hub:
        assert fetch(hub.url, tmp_path, "org/name")["files"] == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("absent", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_repository_without_them_is_one_sentence(absent: str, tmp_path: Path) -> None:
    with serving(Hub({name: data for name, data in ADAPTER.items() if name != absent})) as hub:
        error = str(fetch(hub.url, tmp_path, "org/name")["error"])
    assert "pickled adapters are never read" in error and "\n" not in error


def test_a_gated_repository_and_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with serving(Hub(ADAPTER)) as hub:
        hub.gated = True
        assert "cannot be fetched" in str(fetch(hub.url, tmp_path, "org/name")["error"])
    assert "cannot be fetched" in str(fetch(hub.url, tmp_path, "org/name")["error"])


def test_a_hub_that_answers_is_not_called_out_of_reach(tmp_path: Path) -> None:
    with serving(Hub(ADAPTER)) as hub:
        hub.refusal = (503, {})
        assert "answered with status 503; try again later" in str(fetch(hub.url, tmp_path, "org/name")["error"])


def test_a_page_to_sign_in_on_is_no_hub(tmp_path: Path) -> None:
    with serving(Hub(ADAPTER)) as hub:
        hub.said = b"<html>Please sign in</html>"
        assert f"what answers at {hub.url} is no hub" in str(fetch(hub.url, tmp_path, "org/name")["error"])


def test_offline_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with serving(Hub(ADAPTER)) as hub:
        assert "offline: TRANSFORMERS_OFFLINE is set" in str(fetch(hub.url, tmp_path, "org/name")["error"])


def test_a_malformed_name_asks_nobody(tmp_path: Path) -> None:
    assert "write hf:org/name" in str(fetch("http://127.0.0.1:9", tmp_path, "../x")["error"])
