"""Training on folders: what is taken in trains, weighs, teaches the gate and is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import Row, load, sources
from dlm_tui.document.side_file import SideFile, side_file_path, write_side_file
from dlm_tui.errors import DlmTuiError
from dlm_tui.model import Base, load_base, resolve_base
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.session import Session
from dlm_tui.store import Store, gate_status, read_manifest
from dlm_tui.training import TrainOutcome, TrainRequest, train_document
from dlm_tui.training.phases import trainer_arguments
from dlm_tui.training.plan import PlannedRows, plan_training, planned_rows
from tests.interop.peer_fixture import peer_root

_BASE = peer_root() / "base"
_TOPICS = {"boats": "The boat {} carries salt and rope.", "birds": "Gull number {} cries over the roof.",
           "bread": "Loaf {} is baked with rye and honey."}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Base:
    return run_to_end(load_base(resolve_base("peer-tiny", _BASE)))


def _write(folder: Path, training: str, body: str = "") -> Path:
    path = folder / "notes.dlm"
    head = "---\ndlm_id: 01KTESTTESTTESTTESTTESTTES\ndlm_version: 15\nbase_model: peer-tiny\ntraining:\n"
    path.write_text(f"{head}  num_epochs: 1\n  sequence_len: 64\n{training}---\n{body}")
    return path


def _three_folders(folder: Path) -> Path:
    for topic, text in _TOPICS.items():
        (folder / "notes" / topic).mkdir(parents=True)
        for index in range(5):
            (folder / "notes" / topic / f"{index}.txt").write_text(text.format(index))
    path = _write(
        folder,
        "  adapters: {boats: {lora_r: 2}, birds: {lora_r: 2}, bread: {lora_r: 2}}\n"
        "  gate: {enabled: true, steps: 60}\n  sources: [{path: notes}]\n",
    )
    write_side_file(side_file_path(path), SideFile(source_adapters={f"notes/{topic}": topic for topic in _TOPICS}))
    return path


def _train(path: Path, home: Path, base: Base) -> tuple[TrainOutcome, list[str]]:
    document, scan = sources.expand_sources(load(path))
    told: list[str] = []

    def report(step: Progress) -> None:
        told.append(step.text or "")

    store = Store(home, document.dlm_id)
    return train_document(TrainRequest(document=document, store=store, base=base, scan=scan), report), told


def test_a_gate_is_learned_from_three_folders(base: Base, tmp_path: Path) -> None:
    path = _three_folders(tmp_path)
    outcome, told = _train(path, tmp_path / "home", base)
    assert outcome.gate is not None
    assert outcome.gate.mode == "trained", outcome.gate_error
    assert "notes: 15 files, 0.0 MB" in told
    session = run_to_end(Session.open(path, tmp_path / "home", _BASE))
    status = gate_status(session.document, session.store)
    assert (status.mode, status.samples) == ("trained", dict.fromkeys(_TOPICS, 5))
    manifest = read_manifest(session.store)
    assert manifest is not None
    assert len(manifest.content_hashes) == 15
    summary = json.loads((session.store.root / str(manifest.training_runs[0].summary_path)).read_text())
    assert summary["source_directives"] == [
        {
            "path": "notes",
            "file_count": 15,
            "total_bytes": sum(path.stat().st_size for path in tmp_path.glob("notes/*/*")),
            "skipped_binary": 0,
            "skipped_encoding": 0,
            "skipped_over_size": 0,
        }
    ]


def test_a_label_keeps_what_folders_teach_the_gate(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _three_folders(tmp_path)
    _train(path, tmp_path / "home", base)
    where = ["--home", str(tmp_path / "home"), "--base", str(_BASE), "--json"]
    assert main(["label", str(path), "Which gull cries?", "--adapter", "birds", *where]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "trained"
    session = run_to_end(Session.open(path, tmp_path / "home", _BASE))
    assert gate_status(session.document, session.store).samples == {**dict.fromkeys(_TOPICS, 5), "birds": 6}


def test_show_counts_what_comes_from_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _three_folders(tmp_path)
    (tmp_path / "notes/loose.txt").write_text("Belongs to all.")
    (tmp_path / "notes/x.bin").write_bytes(b"\0")
    assert main(["show", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["training_sources"][0]["file_count"] == 16
    assert told["training_sources"][0]["skipped_binary"] == 1
    assert told["document"]["sections"] == dict.fromkeys(_TOPICS, 5)
    assert told["document"]["untagged"] == 1
    assert told["source_adapters"] == {f"notes/{topic}": topic for topic in _TOPICS}
    assert main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "notes  (16 files, 0.0 MB, 1 skipped)" in text
    assert "notes/birds → birds" in text
    (tmp_path / "notes").rename(tmp_path / "away")
    assert main(["show", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "file_count" not in told["training_sources"][0]
    assert any("path does not exist" in problem for problem in told["problems"])


def test_a_document_of_sources_alone_trains(base: Base, tmp_path: Path) -> None:
    (tmp_path / "src/.dlm").mkdir(parents=True)
    (tmp_path / "src/.dlm/training.yaml").write_text("metadata: {kind: note}\nweights: {kind: {note: 3}}\n")
    for index in range(3):
        (tmp_path / f"src/{index}.txt").write_text(f"Note {index} of the harbour.")
    path = _write(tmp_path, "  lora_r: 2\n  sources: [{path: src}]\n")
    outcome, _ = _train(path, tmp_path / "home", base)
    assert list(outcome.adapters) == ["default"]
    manifest = read_manifest(Store(tmp_path / "home", load(path).dlm_id))
    assert manifest is not None
    assert manifest.training_runs[0].weight_distribution == {"kind": {"note": 3}}
    document, scan = sources.expand_sources(load(path))
    rows = planned_rows(document, range(3), scan.weights)
    assert len(rows.train) + len(rows.validation) == 9
    assert rows.prose_share == 1.0


def test_a_source_that_is_missing_stops_training_but_not_what_was_trained(base: Base, tmp_path: Path) -> None:
    path = _three_folders(tmp_path)
    _train(path, tmp_path / "home", base)
    (tmp_path / "notes").rename(tmp_path / "elsewhere")
    with pytest.raises(DlmTuiError, match="path does not exist"):
        _train(path, tmp_path / "home", base)
    session = run_to_end(Session.open(path, tmp_path / "home", _BASE))
    assert session.gate is not None


@pytest.mark.parametrize(
    ("schedule", "share", "pretraining"),
    [("auto", 0.7, False), ("auto", 0.71, True), ("dapt", 0.0, True), ("sft", 1.0, False)],
)
def test_mostly_prose_trains_with_the_schedule_of_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, share: float, pretraining: bool
) -> None:
    document = load(_write(tmp_path, f"  cpt: {{schedule: {schedule}}}\n"))
    kinds: list[Literal["text", "messages"]] = ["text"] * round(share * 100) + ["messages"] * round(100 - share * 100)
    rows = PlannedRows(train=[Row(kind, 0, "s", 0) for kind in kinds])
    monkeypatch.setattr("dlm_tui.training.plan.planned_rows", lambda *_: rows)
    plan = plan_training(document)
    (phase,) = plan.adapters[0].phases
    arguments = trainer_arguments(plan, phase, tmp_path, torch.device("cpu"), evaluate=False)
    assert [arguments.get_warmup_steps(steps) for steps in (0, 1, 2, 11)] == [0, 0, 1, 3 if pretraining else 2]
    if pretraining:
        assert (arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs) == (
            "cosine_with_min_lr",
            {"min_lr_rate": 0.1},
        )
        assert arguments.get_warmup_steps(100) == 20
    else:
        assert (arguments.lr_scheduler_type, arguments.get_warmup_steps(100)) == ("cosine", 10)
