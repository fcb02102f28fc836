"""`manifest.json`, `dlm.lock` and run logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.files import json_bytes
from dlm_tui.store import (
    ExportRecord,
    ManifestError,
    MetricsWriter,
    RunLog,
    Store,
    TrainingRun,
    read_lock_record,
    read_manifest,
    update_manifest,
    write_lock_record,
)
from tests.interop.peer_fixture import PEER_IDS, peer_root

ID = "01JTESTTESTTESTTESTTESTTES"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID)


def a_run(run_id: int, **more: Any) -> TrainingRun:
    fields = {"started_at": "2026-01-01T00:00:00", "adapter_version": 1, "seed": 1, "steps": 2, "status": "completed"}
    return TrainingRun.model_validate({"run_id": run_id, **fields, **more})


@pytest.mark.parametrize("which", sorted(PEER_IDS))
def test_a_manifest_of_the_tool_comes_back_byte_for_byte(which: str) -> None:
    store = Store(peer_root() / "home", PEER_IDS[which])
    manifest = read_manifest(store)
    assert manifest is not None
    assert json_bytes(manifest.model_dump(mode="json")) == store.manifest_path.read_bytes()
    record = read_lock_record(store)
    if record is not None:
        assert json_bytes(record.model_dump(mode="json")) == store.lock_record_path.read_bytes()
    else:
        assert which == "diverged"


def test_update_creates_changes_and_stamps(store: Store) -> None:
    with pytest.raises(ManifestError, match="no base model"):
        update_manifest(store, lambda manifest: None)
    update_manifest(store, lambda manifest: manifest.training_runs.append(a_run(1)), base_model="tiny")
    update_manifest(store, lambda manifest: manifest.exports.append(ExportRecord(exported_at="x", quant="Q8_0")))
    manifest = read_manifest(store)
    assert manifest is not None
    assert [run.run_id for run in manifest.training_runs] == [1]
    assert manifest.exports[0].target == "ollama"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", manifest.updated_at)
    assert not store.lock_path.exists()


def test_keys_of_newer_versions_survive_a_rewrite(store: Store) -> None:
    update_manifest(store, lambda manifest: manifest.training_runs.append(a_run(1)), base_model="tiny")
    raw = json.loads(store.manifest_path.read_text())
    raw["from_the_future"] = {"é": [1, None]}
    raw["training_runs"][0]["also"] = "kept"
    raw["schema_version"] = 2
    store.manifest_path.write_bytes(json_bytes(raw))
    update_manifest(store, lambda manifest: manifest.training_runs.append(a_run(2)))
    after = json.loads(store.manifest_path.read_text())
    assert after["from_the_future"] == {"é": [1, None]}
    assert after["training_runs"][0]["also"] == "kept"
    assert after["schema_version"] == 2
    assert len(after["training_runs"]) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"dlm_id": "x"}',
        b'{"dlm_id": "x", "base_model": "b", "adapter_versions": {"tone": "one"}}',
        b'{"dlm_id": "x", "base_model": "b", "training_runs": [{"run_id": 0}]}',
    ],
)
def test_a_broken_manifest_is_one_sentence(store: Store, data: bytes) -> None:
    store.create()
    store.manifest_path.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        read_manifest(store)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    before = store.manifest_path.read_bytes()
    with pytest.raises(ManifestError):
        update_manifest(store, lambda manifest: None, base_model="tiny")
    assert store.manifest_path.read_bytes() == before


def test_a_bad_change_is_not_written(store: Store) -> None:
    update_manifest(store, lambda manifest: None, base_model="tiny")
    before = store.manifest_path.read_bytes()

    def spoil(manifest: Any) -> None:
        manifest.adapter_versions["tone"] = "three"

    with pytest.raises(ManifestError, match="adapter_versions"):
        update_manifest(store, spoil)
    assert store.manifest_path.read_bytes() == before


def test_run_ids_follow_both_records(store: Store) -> None:
    update_manifest(store, lambda manifest: manifest.training_runs.append(a_run(4)), base_model="tiny")
    with MetricsWriter(store) as writer:
        assert writer.begin_run("gate", 0) == 5
        writer.start_run(7, "gate", 0)
        assert writer.begin_run("gate", 0) == 8


def test_the_lock_record(store: Store) -> None:
    store.create()
    assert read_lock_record(store) is None
    facts: dict[str, Any] = {
        "dlm_sha256": "0" * 64,
        "seed": 42,
        "last_run_id": 3,
        "base_model_revision": None,
        "pinned_versions": {"torch": "2"},
    }
    write_lock_record(store, **facts)
    raw = json.loads(store.lock_record_path.read_text())
    raw["newer"] = 1
    store.lock_record_path.write_bytes(json_bytes(raw))
    write_lock_record(store, **{**facts, "last_run_id": 4})
    after = json.loads(store.lock_record_path.read_text())
    assert (after["newer"], after["last_run_id"], after["hardware_tier"]) == (1, 4, "cpu")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", after["created_at"])
    with pytest.raises(ManifestError, match="dlm_sha256"):
        write_lock_record(store, **{**facts, "dlm_sha256": "short"})


def test_a_run_log_is_complete_lines_and_a_summary(store: Store) -> None:
    with RunLog(store, 12) as log:
        log.banner(seed=1, pinned_versions={"torch": "2", "peft": "0"}, plan={"adapters": ["tone"]})
        log.delta(["a"], [], ["b"])
        log.step(1, 2.5, 0.1, grad_norm=float("nan"))
        lines = [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]
        log.complete(status="completed")
        summary = log.summary(adapter_version=2, seed=1, steps=1, duration_seconds=0.5, final_val_loss=1.0)
    assert [line["type"] for line in lines] == ["banner", "delta", "step"]
    assert lines[0]["pinned_versions"] == [["peft", "0"], ["torch", "2"]]
    assert lines[2]["grad_norm"] is None
    assert re.fullmatch(r"train-000012-\d{8}T\d{6}\.jsonl", log.path.name)
    assert log.summary_relative == f"logs/{summary.name}"
    value = json.loads(summary.read_text())
    assert value["final_val_perplexity"] == pytest.approx(2.718281828)
    assert value["early_stopped"] is False


@pytest.mark.parametrize("field", ["run_id", "adapter_version"])
def test_a_number_that_no_run_ever_reaches_is_a_damaged_manifest(store: Store, field: str) -> None:
    run = {"run_id": 1, "started_at": "2026-01-01T00:00:00", "adapter_version": 1, "seed": 0, "steps": 1}
    manifest = {"dlm_id": store.dlm_id, "base_model": "pocket", "created_at": "2026-01-01T00:00:00"}
    run |= {"status": "completed", field: 2**63}
    store.create()
    store.manifest_path.write_text(json.dumps({**manifest, "training_runs": [run]}))
    with pytest.raises(ManifestError, match=field):
        read_manifest(store)
