"""Gate files and the gate's state in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dlm_tui.gate.probes as gate_probes_module
from dlm_tui.cli.show_report import show_report
from dlm_tui.document import Document, gate_samples, parse_bytes
from dlm_tui.files import json_bytes, sha256_file
from dlm_tui.store import (
    GateConfig,
    GateFileError,
    MetricsWriter,
    Store,
    describe_gate,
    gate_state,
    parse_gate_config,
    read_gate_config,
    read_gate_record,
    update_manifest,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.gate_report import probes_digest

ID = "01JTESTTESTTESTTESTTESTTES"
GOOD = {"adapter_names": ["tone", "style"], "hidden_proj_dim": 8, "input_dim": 4, "mode": "trained"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID)


def document(
    tone: int = 4, style: int = 4, *, floor: int = 4, base: str = "tiny", enabled: str = "true", word: str = "Say"
) -> Document:
    head = (
        f"---\ndlm_id: {ID}\ndlm_version: 15\nbase_model: {base}\ntraining:\n  adapters:\n    tone: {{}}\n"
        f"    style: {{}}\n  gate:\n    enabled: {enabled}\n    cold_start_floor: {floor}\n---\n"
    )
    body = [f"::instruction#tone::\n### Q\n{word} {k}?\n\n### A\nYes.\n" for k in range(tone)]
    body += [f"::instruction#style::\n### Q\nRhyme {k}?\n\n### A\nNo.\n" for k in range(style)]
    return parse_bytes((head + "\n".join(body)).encode())


def train(
    store: Store, mode: str, run_id: int = 1, weights: tuple[float, float] = (0.5, 0.5), samples: int = 4
) -> None:
    if mode != "diverged":
        write_gate_config(store, GateConfig(("tone", "style"), 0.01, 8, 4, mode))
        if mode == "trained":
            (store.gate_dir / "gate.safetensors").write_bytes(b"stands for weights")
    with MetricsWriter(store) as writer:
        writer.start_run(run_id, "gate", 0)
        writer.record_gate_events(run_id, [("tone", weights[0], samples), ("style", weights[1], samples)], mode)
        writer.finish_run(run_id)


def record_of(doc: Document, store: Store) -> dict[str, Any]:
    return {
        "gate_sha256": sha256_file(store.gate_dir / "gate.safetensors"),
        "document_sha256": doc.sha256,
        "probes": gate_samples(doc),
        "probes_sha256": probes_digest(doc),
        "base_model": doc.base_model,
    }


def test_the_configuration_is_read_as_leniently_as_other_readers_do() -> None:
    assert parse_gate_config(GOOD) == GateConfig(("tone", "style"), 0.01, 8, 4, "trained")
    assert parse_gate_config({**GOOD, "entropy_lambda": 0, "unknown": 1}).entropy_lambda == 0.0
    assert parse_gate_config({**GOOD, "input_dim": True}).input_dim == 1


@pytest.mark.parametrize(
    "change",
    [
        {"adapter_names": "tone"},
        {"adapter_names": [1]},
        {"hidden_proj_dim": 8.0},
        {"input_dim": None},
        {"mode": "diverged"},
        {"mode": ["trained"]},
        {"entropy_lambda": "0.1"},
    ],
)
def test_wrong_types_name_the_key(change: dict[str, Any]) -> None:
    with pytest.raises(GateFileError, match=next(iter(change))):
        parse_gate_config({**GOOD, **change})
    with pytest.raises(GateFileError):
        parse_gate_config([GOOD])


def test_written_configurations_have_the_tools_form_and_keep_newer_keys(store: Store) -> None:
    assert read_gate_config(store) is None
    config = GateConfig(("tone", "style"), 0.02, 8, 4, "uniform")
    write_gate_config(store, config)
    path = store.gate_dir / "gate_config.json"
    assert path.read_text() == (
        '{\n  "adapter_names": [\n    "tone",\n    "style"\n  ],\n  "entropy_lambda": 0.02,\n'
        '  "hidden_proj_dim": 8,\n  "input_dim": 4,\n  "mode": "uniform"\n}\n'
    )
    path.write_bytes(json_bytes({**json.loads(path.read_text()), "newer": [1]}))
    write_gate_config(store, GateConfig(("tone", "style"), 0.02, 8, 4, "trained"))
    assert json.loads(path.read_text())["newer"] == [1]
    assert read_gate_config(store) == GateConfig(("tone", "style"), 0.02, 8, 4, "trained")
    with pytest.raises(GateFileError):
        write_gate_config(store, GateConfig(("tone",), float("nan"), 8, 4, "trained"))


def test_the_record_keeps_unknown_keys_and_drops_old_known_ones(store: Store) -> None:
    assert read_gate_record(store) is None
    write_gate_record(store, {"base_id": "a", "temperature": 1.5, "made_by_a_newer_version": {"x": 1}})
    write_gate_record(store, {"base_id": "b"})
    assert read_gate_record(store) == {"base_id": "b", "made_by_a_newer_version": {"x": 1}}
    (store.gate_dir / "tui_gate.json").write_bytes(b"[1]")
    with pytest.raises(GateFileError):
        read_gate_record(store)
    write_gate_record(store, {"base_id": "c"})
    assert read_gate_record(store) == {"base_id": "c"}


def test_no_gate(store: Store) -> None:
    found = describe_gate(document(), store)
    assert (found["mode"], found["in_force"], found["lacking"]) == ("none", "none", {})
    assert "nothing was trained" in found["reason"].lower()
    assert "does not ask" in describe_gate(document(enabled="false"), store)["reason"]
    store.create()
    assert "tone lacks 3 more" in describe_gate(document(tone=1), store)["reason"]
    assert gate_state(store).mode == "none"


def test_trained(store: Store) -> None:
    train(store, "trained", weights=(0.9, 0.1))
    found = describe_gate(document(), store)
    assert found["mode"] == "trained"
    assert "run 1 on 8 prompts" in found["reason"]
    assert found["entropy"] == pytest.approx(0.3250829734)
    assert found["normalised_entropy"] == pytest.approx(0.3250829734 / 0.6931471806)
    assert found["warnings"] == []
    assert [event.adapter_name for event in gate_state(store, ["style", "tone"]).events] == ["style", "tone"]


def test_uniform_says_which_adapters_lack_how_many(store: Store) -> None:
    train(store, "uniform", samples=3)
    found = describe_gate(document(tone=3, style=3, floor=5), store)
    assert found["mode"] == "uniform"
    assert found["lacking"] == {"tone": 2, "style": 2}
    assert "tone lacks 2 more, style lacks 2 more" in found["reason"]


def test_diverged_with_and_without_a_gate_before(store: Store) -> None:
    train(store, "diverged")
    first = describe_gate(document(), store)
    assert (first["mode"], first["in_force"], first["entropy"]) == ("diverged", "none", None)
    assert "no earlier gate" in first["reason"]
    train(store, "trained", 2)
    train(store, "diverged", 3)
    later = describe_gate(document(), store)
    assert (later["mode"], later["in_force"], later["last_run_id"]) == ("diverged", "trained", 3)
    assert "stays in force" in later["reason"]
    with MetricsWriter(store) as writer:
        writer.start_run(4, "sft", 0)
    assert describe_gate(document(), store)["last_run_id"] == 3
    train(store, "trained", 5)
    assert describe_gate(document(), store)["mode"] == "trained"


def test_stale_when_the_sections_the_adapters_or_the_base_changed(store: Store) -> None:
    train(store, "trained")
    old = document()
    write_gate_record(store, record_of(old, store))
    assert describe_gate(old, store)["mode"] == "trained"
    more = describe_gate(document(tone=6), store)
    assert more["mode"] == "stale"
    assert "tone had 4 tagged sections and has 6" in more["reason"]
    assert more["in_force"] == "trained"
    renamed = document(word="Sing")
    assert "prompts of its tagged sections are others" in describe_gate(renamed, store)["reason"]
    other_base = describe_gate(document(base="other"), store)
    assert other_base["mode"] == "stale"
    assert "was tiny then and is other now" in other_base["reason"]
    write_gate_config(store, GateConfig(("tone", "humour"), 0.01, 8, 4, "trained"))
    assert "declares tone, style" in describe_gate(old, store)["reason"]


def test_an_edit_that_leaves_the_tagged_sections_alone_is_not_stale(store: Store) -> None:
    train(store, "trained")
    old = document()
    write_gate_record(store, {**record_of(old, store), "document_sha256": "0" * 64})
    assert describe_gate(old, store)["mode"] == "trained"


def test_another_tools_gate_is_stale_when_the_counts_changed(store: Store) -> None:
    train(store, "trained")
    assert describe_gate(document(tone=5), store)["mode"] == "stale"
    assert describe_gate(document(), store, "another-base")["mode"] == "stale"


def test_a_record_of_a_gate_that_was_replaced_is_not_believed(store: Store) -> None:
    train(store, "trained")
    write_gate_record(store, {**record_of(document(word="Sing"), store), "base_model": "other"})
    assert describe_gate(document(), store)["mode"] == "stale"
    (store.gate_dir / "gate.safetensors").write_bytes(b"another tool's weights")
    assert describe_gate(document(), store)["mode"] == "trained"


def test_the_digest_is_the_one_that_gate_training_records() -> None:
    doc = document()
    assert probes_digest(doc) == gate_probes_module.probes_digest(
        doc.adapter_names, gate_probes_module.trained_probes(doc)
    )


def test_uniform_that_could_be_trained_now_says_so(store: Store) -> None:
    train(store, "uniform")
    found = describe_gate(document(floor=4), store)
    assert found["mode"] == "uniform"
    assert "enough tagged sections" in found["reason"]


def test_collapse_and_missing_weights_are_warned_of(store: Store) -> None:
    train(store, "trained", weights=(0.999, 0.001))
    with MetricsWriter(store) as writer:
        writer.record_gate_events(1, [("tone", 0.999, 4), ("style", 0.001, 4)], "trained", 0.004)
    (store.gate_dir / "gate.safetensors").unlink()
    missing, collapsed = describe_gate(document(), store)["warnings"]
    assert "missing" in missing
    assert "collapsed onto tone" in collapsed
    assert "entropy_lambda" in collapsed
    assert "0.004 nats" in collapsed


def test_a_broken_gate_file_does_not_stop_the_report(store: Store) -> None:
    train(store, "trained")
    update_manifest(store, lambda manifest: None, base_model="tiny")
    (store.gate_dir / "gate_config.json").write_bytes(b"{}")
    (store.adapters_dir / "tone").mkdir()
    (store.adapters_dir / "tone" / "current.txt").write_text("../../escape\n")
    report = show_report(store.home, document())
    assert report["adapters"] == {"tone": None, "style": None}
    assert len(report["problems"]) == 2
    assert any("gate_config.json" in problem for problem in report["problems"])
    assert any("outside the store" in problem for problem in report["problems"])
