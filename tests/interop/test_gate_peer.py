"""Gates written by the `dlm` tool, asked by ours, and the commands on its stores."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.gate.attribution import attribution_values
from dlm_tui.gate.gate import load_document_gate
from dlm_tui.gate.router import PromptRouter
from dlm_tui.gate.static import resolve_and_announce, resolve_gate_mix, static_mix
from dlm_tui.gate.training import cached_embeddings, train_document_gate
from dlm_tui.model import MixedModel, load_base, resolve_base
from dlm_tui.progress import run_to_end
from dlm_tui.store import MetricsReader, Store, gate_status
from tests.benchmarks.gate_reference import dropped_changes
from tests.interop.peer_fixture import PEER_ADAPTERS, PEER_IDS, copy_peer, make_writable, peer_root, tree_snapshot

EXPECTED: dict[str, Any] = json.loads((peer_root() / "expected_gate.json").read_text())


@pytest.fixture(scope="module")
def model() -> MixedModel:
    return MixedModel(run_to_end(load_base(resolve_base("peer-tiny", peer_root() / "base"))), {})


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    root = copy_peer(tmp_path / "peer", read_only=True, base=True)
    yield root
    make_writable(root)


def _store(root: Path, name: str) -> Store:
    return Store(root / "home", PEER_IDS[name])


def test_every_expected_weight(model: MixedModel) -> None:
    root = peer_root()
    document, store = load(root / "routed.dlm"), _store(root, "routed")
    gate = load_document_gate(document, store, model.base)
    assert gate is not None and gate.mode == "trained"
    router = PromptRouter(model.backbone, model.base, gate)
    for row in EXPECTED["rows"]:
        result = run_to_end(router.route(row["prompt"]))
        assert result.weights == pytest.approx(row["weights"], abs=1e-5)
        assert result.entropy == pytest.approx(row["entropy"], abs=1e-5)


def test_pulls_predict_what_dropping_a_token_does(model: MixedModel) -> None:
    root = peer_root()
    gate = load_document_gate(load(root / "routed.dlm"), _store(root, "routed"), model.base)
    router = PromptRouter(model.backbone, model.base, gate)
    assert gate is not None
    for row in EXPECTED["rows"]:
        run_to_end(router.route(row["prompt"]))
        predicted, measured = attribution_values(gate, router.states), dropped_changes(gate, router.states)
        for column in range(3):
            ranks = torch.stack([predicted[:, column], measured[:, column]]).argsort(dim=1).argsort(dim=1)
            assert float(torch.corrcoef(ranks.double())[0, 1]) >= 0.9, (row["prompt"], column)


def test_states_and_mixes_of_the_three_stores(model: MixedModel, tmp_path: Path) -> None:
    root = copy_peer(tmp_path / "peer")
    modes = {}
    for name in PEER_IDS:
        document, store = load(root / f"{name}.dlm"), _store(root, name)
        modes[name] = gate_status(document, store, model.base.identity, model.base.hidden_size).mode
    assert modes == {"routed": "trained", "uniform": "uniform", "diverged": "diverged"}
    document, store = load(root / "routed.dlm"), _store(root, "routed")
    shown = json.loads((root / "expected_show_routed.json").read_text())["gate"]["per_adapter"]
    recorded = {row["adapter_name"]: row["mean_weight"] for row in shown}
    found = resolve_and_announce(store, document)
    assert found.entries == [(name, pytest.approx(recorded[name], abs=1e-9)) for name in PEER_ADAPTERS]
    assert all(name in found.banner_lines[0] for name in PEER_ADAPTERS)
    frozen = run_to_end(static_mix(document, store, model))
    assert frozen.mode == "static_mean" and frozen.weights() == pytest.approx(recorded, abs=1e-4)
    uniform = load(root / "uniform.dlm")
    assert resolve_gate_mix(_store(root, "uniform"), uniform) == [(name, 1 / 3) for name in PEER_ADAPTERS]
    assert resolve_gate_mix(_store(root, "diverged"), load(root / "diverged.dlm")) is None


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put text on standard input, as bytes and as text."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), newline=""))


def test_the_route_command_leaves_a_read_only_store_alone(
    read_only: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_snapshot(read_only)
    options = ["--home", str(read_only / "home"), "--base", str(read_only / "base")]
    rows = EXPECTED["rows"]
    type_in(monkeypatch, "".join(row["prompt"] + "\n" for row in rows))
    assert main(["route", str(read_only / "routed.dlm"), *options, "--json"]) == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    assert (report["adapters"], report["mode"]) == (PEER_ADAPTERS, "trained")
    for row, result in zip(rows, report["results"], strict=True):
        assert result["prompt"] == row["prompt"]
        assert result["weights"] == pytest.approx(row["weights"], abs=1e-5)
        assert result["entropy"] == pytest.approx(row["entropy"], abs=1e-5)
    assert main(["route", str(read_only / "diverged.dlm"), "hello", *options, "--json"]) == 0
    out = capsys.readouterr()
    report = json.loads(out.out)
    assert report["mode"] == "diverged" and "diverged" in report["reason"] and "diverged" in out.err
    assert report["results"][0]["weights"] == pytest.approx(dict.fromkeys(PEER_ADAPTERS, 1 / 3))
    # Opening the metrics read-only may touch nothing either.
    assert tree_snapshot(read_only) == before


def test_route_explains_and_survives_hostile_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_peer(tmp_path / "peer", base=True)
    options = [str(root / "routed.dlm"), "--home", str(root / "home"), "--base", str(root / "base")]
    assert main(["route", *options, "Say hello to a friend.", "--json", "--explain"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert len(result["pulls"]) == len(result["trajectory"]) == result["tokens"]
    assert "".join(attribution["text"] for attribution in result["pulls"]).endswith("friend.")
    type_in(monkeypatch, "\n\x1b[31mred\x07\r\n" + "word " * 20_000 + "\n")
    assert main(["route", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "0 tokens" in lines[0] and "\\x1b[31mred" in lines[1]
    assert "512 tokens (cut)" in lines[2] and not any("\x1b" in line for line in lines)


def test_label_and_eval_on_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_peer(tmp_path / "peer", base=True)
    document = root / "routed.dlm"
    document.with_name("routed.prompts.json").write_text(
        json.dumps({"mine": ["What is a list?", "Rewrite as a poem."]})
    )
    options = ["--home", str(root / "home"), "--base", str(root / "base"), "--json"]
    prompt = "Rewrite the complexity of greetings."
    assert main(["label", str(document), prompt, "--adapter", "knowledge", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mode"] == "trained" and report["run_id"] == 4 and report["saved_prompts"] == 2
    assert report["after"]["knowledge"] > report["before"]["knowledge"]
    section = load(document).sections[-1]
    assert (section.type, section.adapter, section.start_line) == ("prose", "knowledge", report["line"])
    assert main(["eval", str(document), "--folds", "4", *options]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["prompts"] == 25 and judged["folds"] == 4
    store = _store(root, "routed")
    assert MetricsReader(store).gate_evaluations()[0]["report"]["prompts"] == 25
    assert main(["label", str(document), "x", "--adapter", "nobody", *options]) == 2
    assert main(["drift", str(root / "diverged.dlm"), *options]) == 1
    assert "no trained gate" in capsys.readouterr().err


def test_our_retraining_of_their_document_is_at_least_as_sure(tmp_path: Path, model: MixedModel) -> None:
    """Same document, same settings: the new gate routes all training prompts, in the files they read."""
    root = copy_peer(tmp_path / "peer")
    document, store = load(root / "routed.dlm"), _store(root, "routed")
    before = (store.gate_dir / "gate_config.json").read_bytes()
    outcome = run_to_end(train_document_gate(document, store, model))
    assert (store.gate_dir / "gate_config.json").read_bytes() == before
    rows, _ = run_to_end(cached_embeddings(model, store, [row["prompt"] for row in EXPECTED["rows"]]))
    assert outcome.gate is not None
    tops = [PEER_ADAPTERS[index] for index in outcome.gate.weights(rows).argmax(dim=-1).tolist()]
    assert tops == [row["label"] for row in EXPECTED["rows"]]
