"""Exports of a store that the other tool trained, and of the demo on the embedded base, from the command."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.assets import asset
from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.model import load_base, resolve_base
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store
from tests.export_sessions import add_gate, fill_store
from tests.interop.peer_fixture import PEER_IDS, copy_peer
from tests.tiny_models import random_adapter

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_peer(tmp_path_factory.mktemp("peer") / "peer", base=True)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any] | None, str]:
    code = main(["export", *words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def peer_words(peer: Path, name: str) -> list[str]:
    return [str(peer / f"{name}.dlm"), "--home", str(peer / "home"), "--base", str(peer / "base")]


@needs_llama
def test_a_routed_store_of_the_other_tool(peer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "ollama", "--quant", "f32", "--verify"]
    code, manifest, err = run(capsys, *peer_words(peer, "routed"), *words)
    assert code == 0, err
    assert manifest is not None
    assert manifest["gate_mode"] == "static_mean"
    assert manifest["parity"]["max_abs_logprob_diff"] <= 1e-4
    assert manifest["parity"]["greedy_agree"] == 1.0
    assert manifest["drift"]["kl"] >= 0
    assert sum(weight for _, weight in manifest["mix"]) == pytest.approx(1.0, abs=1e-5)
    store = json.loads((peer / "home" / "store" / PEER_IDS["routed"] / "manifest.json").read_text())
    assert (store["exports"][-1]["target"], store["exports"][-1]["merged"]) == ("ollama", True)
    # an export of the other tool lies there already and stays
    code, _, err = run(capsys, *peer_words(peer, "routed"), "--target", "vllm", "--no-verify", "--no-drift")
    assert (code, "not empty" in err) == (1, True)


@pytest.mark.parametrize("name", ["diverged", "uniform"])
def test_stores_without_what_an_export_needs(peer: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, manifest, err = run(capsys, *peer_words(peer, name), "--no-verify")
    assert (code, manifest) == (1, None)
    last = err.splitlines()[-1]
    assert {"diverged": "diverged", "uniform": "adapter_model.safetensors"}[name] in last
    assert not (peer / "home" / "store" / PEER_IDS[name] / "exports" / "peft").exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo document with adapters and a gate of random weights on the embedded base."""
    folder = tmp_path_factory.mktemp("demo")
    path = Path(shutil.copy(asset("demo/harbour.dlm"), folder))
    document = load(path)
    base = run_to_end(load_base(resolve_base(document.base_model), device="cpu"))
    store = Store(folder / "home", document.dlm_id)
    trained = {
        name: random_adapter(base, name, rank=8, seed=seed, size=0.03)
        for seed, name in enumerate(document.adapter_names)
    }
    fill_store(store, trained, base.identity.id)
    add_gate(store, base.hidden_size, tuple(document.adapter_names))
    return [str(path), "--home", str(folder / "home")]


@needs_llama
@pytest.mark.parametrize(("target", "quant"), [("ollama", "q8_0"), ("ollama", "f32"), ("llama-server", "f16")])
def test_the_demo_as_gguf(demo: list[str], capsys: pytest.CaptureFixture[str], target: str, quant: str) -> None:
    words = ["--target", target, "--quant", quant, "--verify", "--no-drift"]
    code, manifest, err = run(capsys, *demo, *words)
    assert code == 0, err
    assert manifest is not None
    parity = manifest["parity"]
    assert parity["max_abs_logprob_diff"] <= {"f32": 1e-4, "f16": 2e-2, "q8_0": 1.0}[quant]
    assert (parity["prompts"], parity["vocabulary"]) == (16, 3072)


@pytest.mark.parametrize("target", ["peft", "vllm", "merged"])
def test_the_demo_as_folders(demo: list[str], capsys: pytest.CaptureFixture[str], target: str) -> None:
    code, manifest, err = run(capsys, *demo, "--target", target, "--no-verify", "--no-drift")
    assert code == 0, err
    assert manifest is not None
    assert manifest["target"] == target
    assert manifest["mix_rank"] == 24


@pytest.mark.slow
def test_the_demo_merged_in_transformers(demo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, manifest, err = run(capsys, *demo, "--target", "merged", "--quant", "f32", "--verify", "--no-drift")
    assert code == 0, err
    assert manifest is not None
    assert manifest["parity"]["max_abs_logprob_diff"] <= 1e-4
