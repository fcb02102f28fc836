"""Trainings are numbered as a person counts them, whatever numbers their runs have."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.store import MetricsWriter, Store
from dlm_tui.store.training_numbers import training_numbers
from tests.adapter_versions import finished_training
from tests.tui.document import write_document


def test_runs_that_were_put_in_force_together_are_one_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_document(tmp_path)
    store = Store(path.parent / "home", load(path).dlm_id)
    assert training_numbers(store) == {}
    store.create()
    finished_training(store, "knowledge", "tone", "style", run=1)
    with MetricsWriter(store) as writer:
        for run, phase, status in ((3, "sft", "ok"), (4, "gate", "ok"), (5, "sft", "failed"), (8, "sft", "ok")):
            writer.start_run(run, phase, 42)
            if status == "ok":
                writer.record_gate_events(run, [("knowledge", 0.6, 4), ("tone", 0.4, 4)], "trained", 0.5)
            writer.finish_run(run, status)
    finished_training(store, "knowledge", "tone", "style", run=6)
    numbers = training_numbers(store)
    assert numbers == {1: 1, 2: 1, 3: 1, 4: 2, 6: 3, 7: 3, 8: 3}, "the gate alone is the second, run 5 broke off"
    where = [str(path), "--home", str(store.home)]
    assert main(["metrics", *where]) == 0
    rows = {tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines() if line}
    assert {("2", "4"), ("-", "5"), ("3", "8")} <= rows
    assert main(["adapter", "list", *where]) == 0
    assert "training 3 (run 7)" in capsys.readouterr().out
    assert main(["show", *where]) == 0
    assert "trainings 3 of 6 runs" in " ".join(capsys.readouterr().out.split())
