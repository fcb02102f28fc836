"""A training job that is to go on: also where it was ended before its first checkpoint, or after its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from dlm_tui.document import load
from dlm_tui.engine.job_worker import _Job, run_train
from dlm_tui.engine.protocol import TrainJob
from dlm_tui.errors import Cancelled
from dlm_tui.progress import Progress
from dlm_tui.store import Store, adapter_versions, gate_state
from dlm_tui.store.owed import owed_by_training
from tests.tiny_models import tiny_base
from tests.training_samples import write_document


class Quiet:
    """A job that nobody listens to."""

    def step(self, step: Progress) -> None:
        """Nobody."""


def test_a_job_goes_on_from_wherever_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    tiny_base(tmp_path / "base", "llama")
    document = write_document(tmp_path, sections=3, epochs=1)
    job, home = cast("_Job", Quiet()), tmp_path / "home"
    store = Store(home, load(document).dlm_id)
    (store.root / "queue").mkdir(parents=True)
    request = TrainJob(
        document=str(document), home=str(home), base=str(tmp_path / "base"), resume=True, receipt="queue/1.receipt"
    )
    first = run_train(job, request).report
    assert set(first.adapters) == {"facts", "manners"} and (store.root / "queue/1.receipt").is_file()
    second = run_train(job, request).report
    assert second.adapters == {} and second.gate is None, "nothing was left, not even the gate"
    found = adapter_versions(store, ("facts", "manners"))
    assert {name: version.version for name, version in found.items()} == {"facts": 1, "manners": 1}


class CutInTheGate(Quiet):
    """A job that is stopped when its gate begins to train."""

    def step(self, step: Progress) -> None:
        """A person's doing."""
        if step.scope == "gate":
            raise Cancelled("cancelled")


def test_a_job_that_was_ended_in_its_gate_trains_the_gate_of_that_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    tiny_base(tmp_path / "base", "llama")
    document, home = write_document(tmp_path, sections=3, epochs=1), tmp_path / "home"
    store = Store(home, load(document).dlm_id)
    (store.root / "queue").mkdir(parents=True)
    request = TrainJob(
        document=str(document), home=str(home), base=str(tmp_path / "base"), resume=True, receipt="queue/1.receipt"
    )
    with pytest.raises(Cancelled):
        run_train(cast("_Job", CutInTheGate()), request)
    owed = owed_by_training(store)
    assert owed is not None and owed.asked.threads == torch.get_num_threads()
    report = run_train(cast("_Job", Quiet()), request).report
    assert report.adapters == {} and report.gate is not None and threads[-1] == owed.asked.threads
    assert gate_state(store).last_run_id == owed.run_id and owed_by_training(store) is None
