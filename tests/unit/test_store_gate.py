"""Gate files and the gate's state in words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.cli.show_report import show_report
from dlm_tui.document import Document, gate_samples, parse_bytes, probes_digest
from dlm_tui.files import json_bytes, sha256_file
from dlm_tui.store import (
    GateConfig,
    GateFileError,
    MetricsWriter,
    Store,
    check_gate_files,
    collapsed_onto,
    gate_state,
    gate_status,
    parse_gate_config,
    read_gate_config,
    read_gate_record,
    update_manifest,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.gate_files import weight_shapes
from tests.tensor_bytes import tensor_bytes

ID = "01JTESTTESTTESTTESTTESTTES"
GOOD = {"adapter_names": ["tone", "style"], "hidden_proj_dim": 8, "input_dim": 4, "mode": "trained"}
CONFIG = GateConfig(("tone", "style"), 0.01, 8, 4, "trained")


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
        config = replace(CONFIG, mode=mode)
        write_gate_config(store, config)
        if mode == "trained":
            (store.gate_dir / "gate.safetensors").write_bytes(tensor_bytes(weight_shapes(config)))
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
    found = gate_status(document(), store)
    assert (found.mode, found.in_force, found.lacking) == ("none", "none", {})
    assert found.problem == found.reason == "The gate is not trained yet: train the document."
    assert "does not enable a gate" in gate_status(document(enabled="false"), store).reason
    assert "still needed: tone 3" in gate_status(document(tone=1), store).reason
    assert gate_state(store).mode == "none" and not store.exists()


def test_trained(store: Store) -> None:
    train(store, "trained", weights=(0.9, 0.1))
    found = gate_status(document(), store)
    assert (found.mode, found.in_force, found.problem) == ("trained", "trained", "")
    assert found.reason == "The gate was trained in training 1 on 8 prompts."
    assert found.entropy == pytest.approx(0.3250829734)
    assert found.normalised_entropy == pytest.approx(0.3250829734 / 0.6931471806)
    assert found.warnings == []
    assert [event.adapter_name for event in gate_state(store, ["style", "tone"]).events] == ["style", "tone"]


def test_uniform_says_which_adapters_lack_how_many(store: Store) -> None:
    train(store, "uniform", samples=3)
    found = gate_status(document(tone=3, style=3, floor=5), store)
    assert (found.mode, found.in_force) == ("uniform", "uniform")
    assert found.lacking == {"tone": 2, "style": 2}
    assert "still needed: tone 2, style 2" in found.problem


def test_diverged_with_and_without_a_gate_before(store: Store) -> None:
    train(store, "diverged")
    first = gate_status(document(), store)
    assert (first.mode, first.in_force, first.entropy) == ("diverged", "none", None)
    assert "no earlier gate" in first.reason
    train(store, "trained", 2)
    train(store, "diverged", 3)
    later = gate_status(document(), store)
    assert (later.mode, later.in_force, later.last_run_id) == ("diverged", "trained", 3)
    assert "the previous trained gate stays in force" in later.reason
    with MetricsWriter(store) as writer:
        writer.start_run(4, "sft", 0)
    assert gate_status(document(), store).last_run_id == 3
    train(store, "trained", 5)
    assert gate_status(document(), store).mode == "trained"


def test_stale_when_the_sections_or_the_adapters_changed(store: Store) -> None:
    train(store, "trained")
    old = document()
    write_gate_record(store, record_of(old, store))
    assert gate_status(old, store).mode == "trained"
    more = gate_status(document(tone=6), store)
    assert (more.mode, more.in_force) == ("stale", "trained")
    assert "tone had 4 prompts and has 6" in more.problem
    assert "gate prompts changed" in gate_status(document(word="Sing"), store).reason
    write_gate_config(store, GateConfig(("tone", "humour"), 0.01, 8, 4, "trained"))
    assert "declares tone, style" in gate_status(old, store).reason


def test_a_gate_of_another_base_is_not_in_force(store: Store) -> None:
    train(store, "trained")
    write_gate_record(store, record_of(document(), store))
    found = gate_status(document(base="other"), store)
    assert (found.mode, found.in_force) == ("foreign", "none")
    assert "trained on the base tiny, the document names other" in found.problem


def test_an_edit_that_leaves_the_tagged_sections_alone_is_not_stale(store: Store) -> None:
    train(store, "trained")
    old = document()
    write_gate_record(store, {**record_of(old, store), "document_sha256": "0" * 64})
    assert gate_status(old, store).mode == "trained"


def test_another_tools_gate_is_stale_when_the_counts_changed(store: Store) -> None:
    train(store, "trained")
    assert gate_status(document(tone=5), store).mode == "stale"
    assert gate_status(document(), store, recorded_base="another-base").mode == "foreign"


def test_a_record_of_a_gate_that_was_replaced_is_not_believed(store: Store) -> None:
    train(store, "trained")
    write_gate_record(store, record_of(document(word="Sing"), store))
    assert gate_status(document(), store).mode == "stale"
    theirs = tensor_bytes(weight_shapes(CONFIG), 0.25)
    (store.gate_dir / "gate.safetensors").write_bytes(theirs)
    assert gate_status(document(), store).mode == "trained"


def test_uniform_that_could_be_trained_now_says_so(store: Store) -> None:
    train(store, "uniform")
    found = gate_status(document(floor=4), store)
    assert found.mode == "uniform"
    assert "enough prompts now: train the gate" in found.reason


def test_a_gate_without_its_weights_is_damaged_and_not_in_force(store: Store) -> None:
    train(store, "trained")
    (store.gate_dir / "gate.safetensors").unlink()
    found = gate_status(document(), store)
    assert (found.mode, found.in_force) == ("damaged", "none")
    assert "gate.safetensors is missing" in found.reason


def test_a_gate_whose_bytes_changed_is_damaged_and_not_in_force(store: Store) -> None:
    train(store, "trained")
    write_gate_record(store, {**record_of(document(), store), "run_id": 1})
    assert gate_status(document(), store).mode == "trained"
    weights = store.gate_dir / "gate.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    found = gate_status(document(), store)
    assert (found.mode, found.in_force) == ("damaged", "none")
    assert "gate.safetensors is not the file that was written" in found.problem


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "is cut short"),
        (lambda path: path.write_bytes(b"garbage, and more of it"), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is cut short"),
        (lambda path: path.write_bytes(tensor_bytes({"0.weight": (8, 4)})), "0.bias should have the shape"),
        (lambda path: path.write_bytes(tensor_bytes(weight_shapes(CONFIG), float("nan"))), "not finite"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a plain file|it is a folder"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a plain file|it is a pipe"),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_weights_of_another_tools_gate_are_looked_at_for_their_form(
    store: Store, spoil: Callable[[Path], object], words: str, ours: bool
) -> None:
    train(store, "trained")
    if ours:  # a record that says nothing of the weights that another tool put there since
        write_gate_record(store, {**record_of(document(), store), "gate_sha256": "0" * 64})
    assert gate_status(document(), store).mode == "trained"
    spoil(store.gate_dir / "gate.safetensors")
    found = gate_status(document(), store)
    assert (found.mode, found.in_force) == ("damaged", "none")
    assert "gate.safetensors" in found.reason
    with pytest.raises(GateFileError, match=words):
        check_gate_files(store, CONFIG)


def test_a_collapse_is_warned_of(store: Store) -> None:
    train(store, "trained", weights=(0.999, 0.001))
    with MetricsWriter(store) as writer:
        writer.record_gate_events(1, [("tone", 0.999, 4), ("style", 0.001, 4)], "trained", 0.004)
    (warning,) = gate_status(document(), store).warnings
    for part in ("collapsed onto tone", "entropy_lambda from 0.01", "0.004 nats", "tone 4, style 4"):
        assert part in warning


@pytest.mark.parametrize(
    ("weights", "prompt_entropy", "samples", "expected"),
    [
        # 44 of 48 sections are one adapter's, and the gate is sure and right: the labels look the same.
        ((0.917, 0.083), 0.01, (44, 4), None),
        ((0.93, 0.07), 0.02, (44, 4), None),
        # Everything goes one way, in a balanced and in a lopsided document.
        ((0.97, 0.03), 0.02, (24, 24), "tone"),
        ((0.99, 0.01), 0.02, (44, 4), "tone"),
        # Every prompt gets the label shares, whatever it says: nothing was learned.
        ((0.968, 0.032), 0.142, (60, 2), "tone"),
        # Not sure of itself, or nobody dominates.
        ((0.92, 0.08), 0.27, (44, 4), None),
        ((0.6, 0.4), 0.01, (24, 24), None),
        # Another tool's run recorded no entropy per prompt: the mean weights alone decide.
        ((0.99, 0.01), None, (24, 24), "tone"),
        ((0.97, 0.03), None, (58, 2), None),
        ((0.99, 0.01), None, (0, 0), "tone"),
    ],
)
def test_a_collapse_is_judged_against_the_labels(
    weights: tuple[float, float], prompt_entropy: float | None, samples: tuple[int, int], expected: str | None
) -> None:
    names = ("tone", "style")
    means, counts = dict(zip(names, weights, strict=True)), dict(zip(names, samples, strict=True))
    assert collapsed_onto(means, prompt_entropy, counts) == expected


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
