"""The whole way from a document to a stored gate, its states, and what stays in force when something goes wrong."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm_tui.cli.main import main
from dlm_tui.document import Document, load
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate.evaluation import evaluate_gate
from dlm_tui.gate.gate import Gate, load_document_gate, load_gate, save_gate
from dlm_tui.gate.label import label_prompt
from dlm_tui.gate.network import seeded_network
from dlm_tui.gate.static import (
    GateMixResolution,
    mean_gate_weights,
    resolve_and_announce,
    resolve_gate_mix,
    static_mix,
    uniform_adapter_mix,
)
from dlm_tui.gate.training import GateTrainingError, train_document_gate
from dlm_tui.model import MixedModel
from dlm_tui.model.information import entropy
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import (
    ForeignGate,
    GateConfig,
    GateFileError,
    MetricsReader,
    MetricsWriter,
    OwnedElsewhere,
    Store,
    gate_status,
    read_gate_record,
    read_manifest,
    refuse_foreign_base,
    refuse_other_document,
)
from dlm_tui.store.examine import examine
from tests.benchmarks.gate_reference import reference_embedding
from tests.gate_samples import DLM_ID, PROMPTS, tiny_model, write_document

NAMES = tuple(PROMPTS)
EASY = "lr: 0.01\nsteps: 60"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", DLM_ID)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return write_document(tmp_path / "d.dlm", gate=EASY)


def files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.gate_dir.glob("*"))}


def test_a_store_that_begins_with_a_gate_has_an_owner(
    store: Store, document: Document, model: MixedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second document of the same id put its gate in the place of the first one's."""
    run_to_end(train_document_gate(document, store, model))
    manifest = read_manifest(store)
    assert document.path is not None and manifest is not None and manifest.source_path == str(document.path)
    copy = write_document(tmp_path / "copy.dlm", gate=EASY)
    with pytest.raises(OwnedElsewhere, match="has the same dlm_id"):
        refuse_other_document(store, copy)
    assert main(["show", str(document.path), "--home", str(store.home)]) == 0
    shown = capsys.readouterr().out
    assert f"store     {store.root}" in shown and "problem" not in shown
    assert not [one for one in examine(store, NAMES, document.base_model) if one.severity == "damage"]
    text = document.path.read_text()
    document.path.write_text(text.replace(f"base_model: {document.base_model}", "base_model: another"))
    on_another = load(document.path)
    refuse_foreign_base(store, on_another)  # nothing was trained on the first one but the gate
    run_to_end(train_document_gate(on_another, store, model))
    manifest = read_manifest(store)
    assert manifest is not None and manifest.base_model == "another"


def test_a_store_whose_gate_was_trained_before_it_had_an_owner_is_shown(
    store: Store, document: Document, model: MixedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    run_to_end(train_document_gate(document, store, model))
    store.manifest_path.unlink()
    assert main(["show", str(document.path), "--home", str(store.home)]) == 0
    shown = capsys.readouterr().out
    assert f"store     {store.root}" in shown and "nothing was trained" not in shown
    assert not [one for one in examine(store, NAMES, document.base_model) if one.severity == "damage"]


def test_what_tells_unlike_prompts_is_looked_at_too(store: Store, document: Document, model: MixedModel) -> None:
    run_to_end(train_document_gate(document, store, model))
    path = store.gate_dir / "tui_novelty.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    (finding,) = examine(store, NAMES, document.base_model)
    assert finding.severity == "damage" and "tui_novelty.safetensors is not the file that was written" in finding.text
    gate = load_gate(store, model.base.identity, model.base.hidden_size)
    assert gate is not None and gate.mode == "trained" and gate.ood_score is None, "routing goes on without it"
    path.unlink()
    (finding,) = examine(store, NAMES, document.base_model)
    assert "cannot be read" in finding.text
    run_to_end(train_document_gate(document, store, model))
    assert examine(store, NAMES, document.base_model) == []


def test_training_writes_the_shared_files_and_the_events(store: Store, document: Document, model: MixedModel) -> None:
    steps: list[Progress] = []
    outcome = run_to_end(train_document_gate(document, store, model), steps.append)
    assert (outcome.mode, outcome.run_id, outcome.embedded) == ("trained", 1, 18)
    assert outcome.samples == dict.fromkeys(NAMES, 6) and not outcome.warning
    config = json.loads((store.gate_dir / "gate_config.json").read_text())
    assert config == {
        "adapter_names": list(NAMES),
        "entropy_lambda": 0.01,
        "hidden_proj_dim": 64,
        "input_dim": model.base.hidden_size,
        "mode": "trained",
    }
    tensors = load_file(store.gate_dir / "gate.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "0.weight": (64, 32),
        "0.bias": (64,),
        "2.weight": (3, 64),
        "2.bias": (3,),
    }
    # What any reader of the two files computes from raw embeddings.
    prompts = [prompt for turn in range(6) for prompt in (PROMPTS[name][turn] for name in NAMES)]
    rows = torch.stack([reference_embedding(model.base.model, model.base.tokenizer, text) for text in prompts])
    hidden = torch.nn.functional.gelu(rows @ tensors["0.weight"].T + tensors["0.bias"])
    weights = torch.softmax(hidden @ tensors["2.weight"].T + tensors["2.bias"], dim=-1)
    assert outcome.mean_weights == pytest.approx(dict(zip(NAMES, weights.mean(0).tolist(), strict=True)), abs=1e-5)
    assert outcome.entropy == pytest.approx(float(entropy(weights.double()).mean()), abs=1e-5)
    w1, b1, w2, b2 = (tensors[key].double() for key in ("0.weight", "0.bias", "2.weight", "2.bias"))
    exact = torch.softmax(torch.nn.functional.gelu(rows.double() @ w1.T + b1) @ w2.T + b2, dim=-1)
    prompt_entropy = float(-(exact * exact.log()).sum(-1).mean())
    assert (weights.argmax(-1) == torch.arange(18) % 3).double().mean() > 0.9

    reader = MetricsReader(store)
    run = reader.run(1)
    assert run is not None and (run["phase"], run["seed"], run["status"]) == ("gate", 7, "ok")
    (history,) = reader.gate_history()
    assert history.weights == pytest.approx(outcome.mean_weights) and history.samples == outcome.samples
    assert history.prompt_entropy == outcome.entropy == pytest.approx(prompt_entropy, abs=1e-5)
    assert history.entropy is not None and history.prompt_entropy < history.entropy
    recorded = reader.gate_steps(1)
    trained = [step for step in steps if step.stage == "train"]
    assert [(row["step"], row["loss"]) for row in recorded] == [(step.done, step.loss) for step in trained]
    record = read_gate_record(store)
    assert record is not None and record["weights_sha256"] == model.base.identity.weights_sha256
    assert record["document_sha256"] == document.sha256 and record["probes"] == outcome.samples


def test_two_runs_give_the_same_bytes(tmp_path: Path, document: Document, model: MixedModel) -> None:
    stores = [Store(tmp_path / name, DLM_ID) for name in ("one", "two")]
    for store in stores:
        run_to_end(train_document_gate(document, store, model))
    assert files(stores[0]) == files(stores[1])
    run_to_end(train_document_gate(document, stores[1], model, seed=8))
    assert files(stores[0])["gate.safetensors"] != files(stores[1])["gate.safetensors"]


def test_an_edit_embeds_only_what_changed(tmp_path: Path, store: Store, document: Document, model: MixedModel) -> None:
    run_to_end(train_document_gate(document, store, model))
    assert run_to_end(train_document_gate(document, store, model)).embedded == 0
    changed = {**PROMPTS, "sea": ["The storm took the mast.", *PROMPTS["sea"][1:]]}
    edited = write_document(tmp_path / "d.dlm", changed, gate=EASY)
    outcome = run_to_end(train_document_gate(edited, store, model))
    assert (outcome.embedded, outcome.run_id) == (1, 3)


def test_cold_start_is_uniform_and_says_what_is_missing(tmp_path: Path, store: Store, model: MixedModel) -> None:
    few = {"sea": PROMPTS["sea"], "bread": PROMPTS["bread"][:1], "letters": PROMPTS["letters"][:3]}
    document = write_document(tmp_path / "d.dlm", few)
    outcome = run_to_end(train_document_gate(document, store, model))
    assert outcome.mode == "uniform" and "bread 3" in outcome.reason and "letters 1" in outcome.reason
    assert "sea" not in outcome.reason
    gate = load_document_gate(document, store, model.base)
    assert gate is not None and gate.mode == "uniform"
    assert gate.weights(torch.zeros(2, 32)).tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    assert MetricsReader(store).gate_history()[0].prompt_entropy == pytest.approx(math.log(3))
    events = MetricsReader(store).gate_events(1)
    assert {event.adapter_name: (event.mean_weight, event.sample_count) for event in events} == {
        "sea": (pytest.approx(1 / 3), 6),
        "bread": (pytest.approx(1 / 3), 1),
        "letters": (pytest.approx(1 / 3), 3),
    }
    assert gate_status(document, store).mode == "uniform" and "bread 3" in gate_status(document, store).reason
    assert resolve_gate_mix(store, document) == uniform_adapter_mix(NAMES)


def test_divergence_keeps_the_previous_gate(
    tmp_path: Path, store: Store, document: Document, model: MixedModel
) -> None:
    run_to_end(train_document_gate(document, store, model))
    before, mix = files(store), resolve_gate_mix(store, document)
    embedding = model.base.model.get_input_embeddings()
    kept = embedding.weight.detach().clone()
    changed = {name: [f"{prompt} Again." for prompt in rows] for name, rows in PROMPTS.items()}
    second = write_document(tmp_path / "d.dlm", changed, gate=EASY)
    try:
        with torch.no_grad():
            embedding.weight.fill_(float("nan"))
        sick = MixedModel(model.base, {}, fast=False)
        outcome = run_to_end(train_document_gate(second, store, sick))
    finally:
        with torch.no_grad():
            embedding.weight.copy_(kept)
    assert (outcome.mode, outcome.gate, outcome.mean_weights) == ("diverged", None, {})
    assert "previous trained gate stays" in outcome.reason
    assert files(store) == before
    run = MetricsReader(store).run(2)
    assert run is not None and run["status"] == "failed"
    assert all(event.mode == "diverged" for event in MetricsReader(store).gate_events(2))
    status = gate_status(second, store, model.base.identity, 32)
    assert status.mode == "diverged" and "stays in force" in status.reason
    # Never an export of zeros: the mix is still the previous gate's, and the broken rows were not kept.
    assert resolve_gate_mix(store, document) == mix
    assert run_to_end(train_document_gate(second, store, model)).embedded == 18


def test_a_closed_or_failing_training_leaves_everything(store: Store, document: Document, model: MixedModel) -> None:
    run_to_end(train_document_gate(document, store, model))
    before = files(store)
    work = train_document_gate(document, store, model, seed=99)
    for _ in range(5):
        next(work)
    work.close()
    run = MetricsReader(store).run(2)
    assert run is not None and run["status"] == "cancelled" and files(store) == before


def test_a_run_of_somebody_else_is_not_finished_here(store: Store, document: Document, model: MixedModel) -> None:
    with MetricsWriter(store.create()) as metrics:
        metrics.start_run(5, "sft", 1)
    outcome = run_to_end(train_document_gate(document, store, model, run_id=5))
    run = MetricsReader(store).run(5)
    assert outcome.run_id == 5 and run is not None and run["status"] == "running"
    assert MetricsReader(store).latest_gate_run() == 5


def test_a_full_disk_leaves_the_previous_gate(
    store: Store, document: Document, model: MixedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_to_end(train_document_gate(document, store, model))
    before = files(store)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlm_tui.gate.gate.write_gate_record", full)
    with pytest.raises(GateTrainingError, match="no space is left"):
        run_to_end(train_document_gate(document, store, model, seed=99))
    assert files(store) == before
    assert [path.name for path in store.adapters_dir.iterdir() if path.name.startswith("_gate")] == ["_gate"]


def test_status_tells_stale_and_foreign(tmp_path: Path, store: Store, document: Document, model: MixedModel) -> None:
    identity, size = model.base.identity, model.base.hidden_size
    assert gate_status(document, store).mode == "none"
    run_to_end(train_document_gate(document, store, model))
    assert gate_status(document, store, identity, size).mode == "trained"
    path = tmp_path / "d.dlm"
    path.write_text(path.read_text() + "\nprose without an adapter changes nothing for the gate\n")
    assert gate_status(load(path), store, identity, size).mode == "trained"
    reworded = write_document(path, {**PROMPTS, "sea": ["Other words.", *PROMPTS["sea"][1:]]})
    status = gate_status(reworded, store, identity, size)
    assert status.mode == "stale" and "prompts changed" in status.reason
    more = write_document(path, {**PROMPTS, "sea": [*PROMPTS["sea"], "One more."]})
    assert "sea had 6 prompts and has 7" in gate_status(more, store, identity, size).reason
    stale = load_document_gate(more, store, model.base)
    assert stale is not None and stale.mode == "stale" and stale.network is not None
    renamed = write_document(path, {"ocean": PROMPTS["sea"], "bread": PROMPTS["bread"]})
    assert "declares ocean, bread" in gate_status(renamed, store, identity, size).reason
    other = type(identity)("other", None, "0" * 64, identity.tokenizer_sha256)
    foreign = gate_status(document, store, other, size)
    assert foreign.mode == "foreign" and "other weights" in foreign.reason
    with pytest.raises(ForeignGate, match="other weights"):
        load_gate(store, other, size)
    with pytest.raises(ForeignGate, match="32 numbers"):
        load_gate(store, identity, 64)


def test_damaged_gate_files_are_one_sentence(store: Store, document: Document, model: MixedModel) -> None:
    run_to_end(train_document_gate(document, store, model))
    weights = store.gate_dir / "gate.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "2.bias": tensors["2.bias"] * 1.001}, weights)
    with pytest.raises(GateFileError, match=r"gate\.safetensors is not the file that was written"):
        load_gate(store)
    (store.gate_dir / "tui_gate.json").unlink()  # another tool's gate has no hashes; what can be seen is still said
    save_file({**tensors, "2.bias": torch.tensor([0.0, float("nan"), 0.0])}, weights)
    with pytest.raises(GateFileError, match="not finite"):
        load_gate(store)
    save_file({**tensors, "2.bias": torch.zeros(4)}, weights)
    with pytest.raises(GateFileError, match=r"2\.bias should have the shape \(3,\), found \(4,\)"):
        load_gate(store)
    save_file({name: value for name, value in tensors.items() if name != "0.bias"}, weights)
    with pytest.raises(GateFileError, match="found nothing"):
        load_gate(store)
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(GateFileError, match="is damaged: its header claims"):
        load_gate(store)
    weights.unlink()
    with pytest.raises(GateFileError, match="missing"):
        load_gate(store)


def test_a_gate_that_another_tool_replaced_has_no_record(store: Store, document: Document, model: MixedModel) -> None:
    run_to_end(train_document_gate(document, store, model))
    gate = load_gate(store)
    assert gate is not None and gate.record is not None and gate.ood_score is not None
    save_file(seeded_network(32, 64, 3, 1).state_dict(), store.gate_dir / "gate.safetensors")
    with MetricsWriter(store) as metrics:
        run = metrics.begin_run("sft", 0)
        metrics.record_gate_events(run, [(name, 1 / 3, 8) for name in gate.names], "trained")
    (store.gate_dir / "notes.txt").write_text("kept")
    other = load_gate(store)
    assert other is not None and other.record is None and other.ood_score is None
    save_gate(store, gate)
    assert (store.gate_dir / "notes.txt").read_text() == "kept"
    with pytest.raises(GateFileError, match="never written"):
        poisoned = seeded_network(32, 64, 3, 1)
        with torch.no_grad():
            poisoned.first.bias.fill_(float("inf"))
        save_gate(store, replace(gate, network=poisoned))


def test_mean_gate_weights() -> None:
    network = seeded_network(5, 8, 3, 2)
    config = GateConfig(("a", "b", "c"), 0.01, 8, 5, "trained")
    rows = list(torch.randn(7, 5) * 4)
    mix = mean_gate_weights(network, config, rows)
    expected = torch.stack([network(row) for row in rows]).double().mean(0).tolist()
    assert mix == [(name, pytest.approx(value, abs=1e-7)) for name, value in zip("abc", expected, strict=True)]
    assert sum(weight for _, weight in mix) == pytest.approx(1.0, abs=1e-6)
    assert mean_gate_weights(Gate(("a", "b", "c"), config, network), config, rows) == mix
    with pytest.raises(ValueError, match=r"at least 1 .* got 0"):
        mean_gate_weights(network, config, [])
    with pytest.raises(ValueError, match=r"has 6 numbers.* is 5"):
        mean_gate_weights(network, config, [torch.zeros(6)])
    assert uniform_adapter_mix(["x", "y"]) == [("x", 0.5), ("y", 0.5)] and uniform_adapter_mix([]) == []


def test_the_resolved_mix_follows_the_state(tmp_path: Path, store: Store, model: MixedModel) -> None:
    document = write_document(tmp_path / "d.dlm", gate=EASY)
    assert resolve_and_announce(store, document) == GateMixResolution(None, [])
    outcome = run_to_end(train_document_gate(document, store, model))
    mix = resolve_gate_mix(store, document)
    assert mix is not None and dict(mix) == pytest.approx(outcome.mean_weights, abs=1e-6)
    assert [name for name, _ in mix] == list(NAMES)
    frozen = run_to_end(static_mix(document, store, model))
    assert frozen.mode == "static_mean" and frozen.weights() == pytest.approx(outcome.mean_weights, abs=1e-6)
    # Without kept embeddings the recorded mean serves, without our record the events do.
    recorded = Store(store.home, store.dlm_id)
    for path in recorded.cache_dir.rglob("*.safetensors"):
        path.unlink()
    found = resolve_and_announce(store, document)
    assert found.entries is not None and dict(found.entries) == pytest.approx(outcome.mean_weights)
    assert "as recorded" in found.banner_lines[0]
    (store.gate_dir / "tui_gate.json").unlink()
    found = resolve_and_announce(store, document)
    assert found.entries is not None and dict(found.entries) == pytest.approx(outcome.mean_weights)
    assert "gate events" in found.banner_lines[0]
    store.metrics_path.unlink()
    assert resolve_gate_mix(store, document) == uniform_adapter_mix(NAMES)
    renamed = write_document(tmp_path / "e.dlm", {"ocean": PROMPTS["sea"], "bread": PROMPTS["bread"]})
    assert resolve_gate_mix(store, renamed) == [("ocean", 0.5), ("bread", 0.5)]
    off = write_document(tmp_path / "f.dlm")
    off.path and off.path.write_text(off.path.read_text().replace("enabled: true", "enabled: false"))
    assert resolve_gate_mix(store, load(tmp_path / "f.dlm")) is None
    with pytest.raises(UsageError, match="no gate to train"):
        run_to_end(train_document_gate(load(tmp_path / "f.dlm"), store, model))


def test_evaluation_has_the_promised_figures(store: Store, document: Document, model: MixedModel) -> None:
    report = run_to_end(evaluate_gate(document, store, model, folds=3)).as_json()
    assert {"accuracy", "log_loss", "ece", "confusion", "mean_weights", "mean_entropy", "verdict", "misrouted"} <= set(
        report
    )
    json.dumps(report, allow_nan=False)
    assert report["gate"] == "folds" and not store.gate_dir.exists()
    assert sum(sum(row.values()) for row in report["confusion"].values()) == report["prompts"] == 18
    wrong = sum(row[top] for truth, row in report["confusion"].items() for top in row if top != truth)
    assert report["accuracy"] == pytest.approx(1 - wrong / 18) and len(report["misrouted"]) == min(10, wrong)
    lines = {section.start_line: section.adapter for section in document.sections}
    for truth, row in report["confused_lines"].items():
        for top, at in row.items():
            assert len(at) == report["confusion"][truth][top] and all(lines[line] == truth for line in at)
    run_to_end(train_document_gate(document, store, model))
    again = run_to_end(evaluate_gate(document, store, model, folds=50))
    assert again.gate == "trained" and again.folds == 6
    with pytest.raises(UsageError, match="2 to 1000, not 1"):
        run_to_end(evaluate_gate(document, store, model, folds=1))


def test_a_collapsed_gate_is_called_so(tmp_path: Path, store: Store, model: MixedModel) -> None:
    lopsided = {
        "sea": [f"The boat number {n} left the harbour with the tide." for n in range(60)],
        "bread": [f"The boat number {n} left the harbour with the tide." for n in (1, 2)],
    }
    document = write_document(
        tmp_path / "d.dlm", lopsided, gate="cold_start_floor: 2\nlr: 0.003\nentropy_lambda: 0\nsteps: 60"
    )
    outcome = run_to_end(train_document_gate(document, store, model))
    assert outcome.mode == "trained" and "collapsed onto sea" in outcome.warning
    assert "entropy_lambda" in outcome.warning and "bread 2" in outcome.warning
    report = run_to_end(evaluate_gate(document, store, model))
    assert report.collapsed == "sea" and report.verdict == outcome.warning


def test_a_lopsided_document_with_the_right_gate_is_no_collapse(
    tmp_path: Path, store: Store, model: MixedModel
) -> None:
    """One adapter has 44 of 48 sections, so a mean weight above 0.9 is the right answer."""
    lopsided = {
        "sea": [f"The boat number {n} left the harbour with the tide." for n in range(44)],
        "bread": [f"Knead the dough {n} times, then bake." for n in range(4)],
    }
    document = write_document(tmp_path / "d.dlm", lopsided, gate="lr: 0.01\nsteps: 200")
    outcome = run_to_end(train_document_gate(document, store, model))
    assert outcome.mean_weights["sea"] > 0.9 and outcome.warning == ""
    report = run_to_end(evaluate_gate(document, store, model))
    assert report.accuracy == 1.0 and report.collapsed is None
    assert gate_status(document, store).warnings == []


def test_too_few_to_judge(tmp_path: Path, store: Store, model: MixedModel) -> None:
    document = write_document(tmp_path / "d.dlm", {"sea": PROMPTS["sea"], "bread": PROMPTS["bread"][:1]})
    with pytest.raises(DlmTuiError, match="bread needs at least 2"):
        run_to_end(evaluate_gate(document, store, model))


def test_a_labelled_prompt_is_learned_at_once(
    tmp_path: Path, store: Store, document: Document, model: MixedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.dlm"
    run_to_end(train_document_gate(document, store, model))
    prompt = "How do I bake a boat that left the harbour?"
    before = run_to_end(label_prompt(path, document, store, model, prompt, "letters", saved=PROMPTS["sea"]))
    assert before.before is not None and before.after["letters"] > before.before["letters"]
    assert before.gate.embedded == 0 and before.appended.line == before.document.sections[-1].start_line
    assert before.document.sections[-1].adapter == "letters" and before.document.sections[-1].content == prompt
    for moved in before.changed:
        assert moved.text in PROMPTS["sea"] and moved.top_changed and moved.saved
    answered = run_to_end(
        label_prompt(path, before.document, store, model, "Where is the ladder?", "sea", answer="Behind the shed.")
    )
    assert load(path).sections[-1].content.splitlines()[1] == "Where is the ladder?"
    assert answered.after["sea"] > (answered.before or {})["sea"]
    late = run_to_end(label_prompt(path, document, store, model, "Late.", "sea"))  # the document as it was long ago
    # the blank lines above a fence, which the document has everywhere, are the section's before it
    assert [section.content.rstrip("\n") for section in late.document.sections[-3:]][::2] == [prompt, "Late."]
    text = path.read_text()
    with pytest.raises(UsageError, match="no adapter 'sky'"):
        run_to_end(label_prompt(path, answered.document, store, model, "Late.", "sky"))
    with pytest.raises(UsageError, match="empty"):
        run_to_end(label_prompt(path, answered.document, store, model, " \n", "sea"))
    with pytest.raises(UsageError, match="fence"):
        run_to_end(label_prompt(path, answered.document, store, model, "a\n::prose::\nb", "sea"))
    assert path.read_text() == text

    def fails(*_: object, **__: object) -> None:
        raise DlmTuiError("no space")

    monkeypatch.setattr("dlm_tui.gate.label.train_document_gate", fails)
    with pytest.raises(DlmTuiError, match=rf"`dlm-tui train {re.escape(str(path))} --gate-only`"):
        run_to_end(label_prompt(path, late.document, store, model, "Later.", "sea"))
