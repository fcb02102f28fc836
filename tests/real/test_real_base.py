"""A real base from package to trained, routed, exported and verified, by the commands: `make test-real`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.fetch import real_base

pytestmark = pytest.mark.skipif(
    os.environ.get("DLM_TEST_REAL") != "1", reason="a real base is tried by `make test-real` only"
)
DOCUMENT = """---
dlm_id: 01KREA1BASE0TRYS0THE0BASE0
dlm_version: 15
base_model: hf:google/gemma-3-270m
training:
  sequence_len: 64
  micro_batch_size: 1
  grad_accum: 1
  num_epochs: 2
  precision: fp32
  seed: 7
  adapters:
    harbour:
      lora_r: 4
      lora_alpha: 8
      target_modules: [q_proj, v_proj]
      learning_rate: 0.001
    kitchen:
      lora_r: 4
      lora_alpha: 8
      target_modules: [q_proj, v_proj]
      learning_rate: 0.001
  gate:
    enabled: true
    steps: 200
    hidden_proj_dim: 32
    cold_start_floor: 4
---

"""
SECTIONS = {
    "harbour": {
        "When does the tide turn?": "The tide turns at noon, and the bell rings twice.",
        "Where do the boats lie?": "The boats lie along the north quay.",
        "Who lights the lighthouse?": "The harbour master lights it at dusk.",
        "How deep is the harbour?": "The harbour is nine fathoms deep.",
        "What is the ferry called?": "The ferry is called the Grey Heron.",
    },
    "kitchen": {
        "How long does rye bread bake?": "Rye bread bakes for fifty minutes.",
        "What goes into the soup?": "Leeks, potatoes and a little cream go into it.",
        "How do I keep the butter soft?": "Keep the butter in a dish on the shelf.",
        "Which pan is for fish?": "The long copper pan is for fish.",
        "When is the dough ready?": "The dough is ready when it has doubled.",
    },
}
# Not the folders that tests get of their own: what is unpacked stays for the next time.
_CACHE = {key: value for key, value in os.environ.items() if key == "XDG_CACHE_HOME"}
_BASE = real_base()
UNSEEN = {"At what hour do the boats leave the harbour?": "harbour", "How much salt goes into the bread?": "kitchen"}


def write_document(folder: Path) -> Path:
    parts = [
        f"::instruction#{name}::\n### Q\n{question}\n### A\n{answer}\n\n"
        for name, rows in SECTIONS.items()
        for question, answer in rows.items()
    ]
    path = folder / "real.dlm"
    path.write_text(DOCUMENT + "".join(parts), encoding="utf-8")
    base = json.dumps(str(_BASE))
    path.with_name(path.name + ".tui.toml").write_text(f"base = {base}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_document(tmp_path_factory.mktemp("real"))


def run(document: Path, command: str, *words: str) -> Any:
    """A command's JSON."""
    line = [sys.executable, "-m", "dlm_tui", command, str(document), "--home", str(document.parent / "home"), "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"} | _CACHE
    done = subprocess.run([*line, *words], capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(3700)
def test_it_trains_and_the_gate_is_in_force(document: Path) -> None:
    report = run(document, "train")
    assert report["gate"]["mode"] == "trained"
    shown = run(document, "show")
    assert {name for name, version in shown["adapters"].items() if version is not None} == set(SECTIONS)


@pytest.mark.timeout(3700)
def test_it_routes_prompts_that_it_has_not_seen(document: Path) -> None:
    for prompt, adapter in UNSEEN.items():
        routed = run(document, "route", prompt)
        weights = routed["results"][0]["weights"]
        assert max(weights, key=weights.get) == adapter, (prompt, weights)


@pytest.mark.timeout(3700)
@pytest.mark.parametrize("words", ["peft", "ollama --quant q8_0"])
def test_its_exports_are_verified(document: Path, words: str) -> None:
    manifest = run(document, "export", "--target", *words.split(), "--verify", "--no-drift")
    assert manifest["parity"] and manifest["cost"], manifest
