"""What a cluster's shell leaves in the environment does not reach a training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlm_tui.progress import Progress
from dlm_tui.store import Store
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.launcher import launcher_variables, without_launcher
from tests.tiny_models import tiny_base
from tests.training_samples import sample

INHERITED = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "PMI_RANK": "1",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "FSDP_VERSION": "2",
    "TORCHELASTIC_RUN_ID": "x",
}


def test_the_block_sees_none_of_them_and_they_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in INHERITED.items():
        monkeypatch.setenv(name, value)
    kept = {name: os.environ[name] for name in ("PATH", "HOME")}
    assert set(INHERITED) <= set(launcher_variables())
    with without_launcher():
        assert not launcher_variables()
        assert {name: os.environ[name] for name in kept} == kept
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    assert {name: os.environ[name] for name in INHERITED} == INHERITED
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ


@pytest.mark.timeout(120)
def test_a_training_is_one_process_whatever_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")  # without MASTER_ADDR: the Trainer alone raises ValueError
    notes: list[str | None] = []

    def report(step: Progress | None) -> None:
        if step is not None and step.stage == "note":
            notes.append(step.text)

    document = sample(tmp_path / "doc", sections=2, epochs=1)
    store = Store(tmp_path / "home", document.dlm_id)
    outcome = train_document(TrainRequest(document=document, store=store, base=tiny_base(tmp_path / "m")), report)
    assert set(outcome.adapters) == {"facts", "manners"}
    assert "launcher variables are ignored, a training is one process: LOCAL_RANK, WORLD_SIZE" in notes
