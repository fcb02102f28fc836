"""Downloading a base from a hub that this test serves itself on the loopback: real client, files and progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stub import REVISION, Hub, serving
from tests.tiny_models import write_tiny_base

CLIENT = """
import json, sys
from dlm_tui.model.download import fetch
from dlm_tui.progress import run_to_end
from dlm_tui.model.registry import BaseSource, BaseUnavailable, resolve_base
source = resolve_base(sys.argv[1]) if len(sys.argv) == 2 else BaseSource(
    key=sys.argv[1], kind="hub", path=None, hf_id=sys.argv[1].removeprefix("hf:"), revision=sys.argv[2])
stages = []
steps = fetch(source)
try:
    while True:
        stages.append(next(steps))
except StopIteration as stop:
    found = stop.value
except BaseUnavailable as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
last = [s for s in stages if s.total]
print(json.dumps({"path": str(found.path), "revision": found.revision, "total": last[-1].total,
    "done": last[-1].done, "files": sorted(p.name for p in found.path.iterdir()),
    "again": str(resolve_base("hf:" + found.hf_id).path)}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_tiny_base(tmp_path / "m")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving(Hub({**files, "pytorch_model.bin": b"never", "original.py": b"never"})) as hub:
        yield hub


def client(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    settings = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    out = subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments], env=settings, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(out.stdout)
    return found


def test_a_short_revision_is_found_and_only_safe_files_are_fetched(hub: Hub, tmp_path: Path) -> None:
    found = client(hub, tmp_path, "hf:org/name", REVISION[:12])
    assert found["revision"] == REVISION
    assert Path(found["path"]).name == REVISION
    assert "model.safetensors" in found["files"]
    assert not {"pytorch_model.bin", "original.py"} & set(found["files"])
    wanted = sum(len(data) for name, data in hub.files.items() if not name.endswith((".bin", ".py")))
    assert found["total"] == wanted
    assert found["done"] <= found["total"]


def test_the_newest_revision_is_what_main_is_and_is_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    found = client(hub, tmp_path, "hf:org/name")
    assert (found["revision"], found["again"]) == (REVISION, found["path"])


NO_TOKEN = {"HF_TOKEN": "", "HF_TOKEN_PATH": "/nonexistent", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
TOKEN = {"HF_TOKEN": "hf_atoken"}


@pytest.mark.parametrize(
    ("refusal", "environment", "words"),
    [
        ((401, {"X-Error-Code": "GatedRepo"}), NO_TOKEN, ["licence: ", "accept it at http", "hf auth login"]),
        ((403, {"X-Error-Code": "GatedRepo"}), TOKEN, ["licence: ", "this machine's token has no access"]),
        ((401, {"X-Error-Code": "RepoNotFound"}), NO_TOKEN, ["spelling: ", "no public repository org/name", "token"]),
        ((404, {"X-Error-Code": "RepoNotFound"}), TOKEN, ["spelling: ", "this machine's token sees no repository"]),
        ((404, {"X-Error-Code": "RevisionNotFound"}), NO_TOKEN, ["spelling: ", "has no revision"]),
        (
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            TOKEN,
            ["token: ", "renew it with: hf auth login"],
        ),
        ((403, {}), TOKEN, ["token: this machine's token may not read org/name"]),
        ((401, {}), NO_TOKEN, ["token: ", "does not give org/name to everybody; say who you are with: hf auth login"]),
        ((403, {}), NO_TOKEN, ["token: ", "does not give org/name to everybody; say who you are with: hf auth login"]),
        (
            (403, {"X-Error-Message": "Access to this resource is disabled."}),
            TOKEN,
            ["disabled: ", "/org/name may say"],
        ),
        ((404, {}), NO_TOKEN, ["spelling: ", "has nothing at org/name; check the name, and HF_ENDPOINT"]),
        ((429, {}), NO_TOKEN, ["network: ", "status 429; try again later"]),
        ((451, {}), NO_TOKEN, ["network: ", "refused with status 451"]),
        ((503, {}), NO_TOKEN, ["network: ", "status 503; try again later"]),
    ],
)
def test_what_stands_in_the_way_is_named(
    hub: Hub, tmp_path: Path, refusal: tuple[int, dict[str, str]], environment: dict[str, str], words: list[str]
) -> None:
    hub.refusal = refusal
    error = client(hub, tmp_path, "hf:org/name", **environment)["error"]
    for word in ("hf download org/name", *words):
        assert word in error, error
    assert "\n" not in error
    assert any(hub.tokens) == (environment is TOKEN)


def test_a_hub_that_is_not_there_is_the_network(hub: Hub, tmp_path: Path) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    error = client(hub, tmp_path, "hf:org/name", **NO_TOKEN)["error"]
    assert "network: the hub at http://127.0.0.1" in error and "cannot be reached" in error


@pytest.mark.parametrize(
    ("said", "revision"),
    [
        (b"<html>Please sign in</html>", []),
        (b"\xff{", [REVISION[:12]]),
        (b'["x"]', [REVISION[:12]]),
        (b"{}", []),
        (b'{"id": "org/name"}', []),
        (b'{"id": "org/name", "siblings": [{"rfilename": "a.safetensors", "size": 3}]}', []),  # for the file, too
    ],
)
def test_an_answer_that_no_hub_gives_is_the_network(hub: Hub, tmp_path: Path, said: bytes, revision: list[str]) -> None:
    hub.said = said
    error = client(hub, tmp_path, "hf:org/name", *revision, **NO_TOKEN)["error"]
    assert f"network: what answers at {hub.url} is no hub" in error and "HF_ENDPOINT" in error, error
    assert "Error" not in error


def test_weights_without_safetensors_are_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    assert "pickled" in client(hub, tmp_path, "hf:org/name")["error"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nothing_is_asked_and_the_variable_is_named(hub: Hub, tmp_path: Path, variable: str) -> None:
    found = client(hub, tmp_path, "hf:org/name", **{"HF_HUB_OFFLINE": "", variable: "1"})
    assert "hf download org/name" in found["error"]
    assert found["error"].endswith(f"; offline: {variable} is set, so that the hub is not asked; unset it to fetch")
    assert hub.asked == []


def test_the_first_variable_that_is_set_counts(hub: Hub, tmp_path: Path) -> None:
    assert client(hub, tmp_path, "hf:org/name", HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="1")["revision"] == REVISION
