"""Job children: cancelled and killed trainings leave the store as it was."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from dlm_tui.document import load
from dlm_tui.engine.job_client import ChildJob, start_job
from dlm_tui.engine.protocol import Failed, Imported, ImportJob, Log, Progress, Stopped, Trained, TrainJob
from dlm_tui.store import MetricsReader, Store, adapter_versions, gate_status
from tests.interop.peer_fixture import peer_root
from tests.training_samples import write_document

pytestmark = pytest.mark.slow


async def test_a_cancelled_training_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = write_document(tmp_path, epochs=50)
    job = await start_job(TrainJob(document=str(path), home=str(tmp_path / "home"), base=str(peer_root() / "base")))
    how, last = "", None
    async for event in job.events():
        last = event
        if isinstance(event, Progress) and event.stage == "sft" and not how:
            how = await job.cancel()
    assert how == "stopped when asked"
    assert isinstance(last, Stopped)
    versions = list((tmp_path / "home" / "store").glob("*/adapter/*/versions/*"))
    assert versions == []


async def test_a_killed_training_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    path = write_document(tmp_path, epochs=50)
    request = TrainJob(document=str(path), home=str(tmp_path / "home"), base=str(peer_root() / "base"))
    job = ChildJob(request)
    await job.start()
    last, pid = None, job.pid
    async for event in job.events():
        last = event
        if isinstance(event, Progress) and event.stage == "sft" and pid is not None:
            os.kill(pid, signal.SIGKILL)
            pid = None
    assert isinstance(last, Failed) and "SIGKILL" in last.text
    write_document(tmp_path)
    again = await start_job(request)
    events = [event async for event in again.events()]
    assert isinstance(events[-1], Trained)
    runs = MetricsReader(Store(tmp_path / "home", load(path).dlm_id)).runs(limit=10)
    assert [run["status"] for run in sorted(runs, key=lambda run: run["run_id"])] == ["failed", "ok", "ok"]


async def test_an_adapter_from_elsewhere_is_in_force_when_its_job_is_over(tmp_path: Path) -> None:
    path, base = write_document(tmp_path), peer_root() / "base"
    source = peer_root() / "home" / "store" / "01JPEERPEERPEERPEERPEERPEE" / "adapter" / "tone" / "versions" / "v0001"
    where = {"document": str(path), "home": str(tmp_path / "home"), "base": str(base)}
    for version in (1, 2):
        job = await start_job(ImportJob(**where, name="borrowed", source=str(source)))
        last = [event async for event in job.events()][-1]
        assert isinstance(last, Imported), last
        assert (last.name, last.version, last.declared) == ("borrowed", version, version == 1)
    found = adapter_versions(Store(tmp_path / "home", load(path).dlm_id), load(path).routing_names)
    assert found["borrowed"].version == 2 and last.rank > 0


FAULT = """
import dlm_tui.gate.training as gate_training

def full(*_, **__):
    {fault}

gate_training.save_gate = full
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise OSError(28, 'No space left on device')", "no space is left on its disk"),
        ("raise MemoryError", "there is not enough memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
    ids=["full disk", "memory", "killed"],
)
async def test_a_fault_in_the_gates_training_leaves_a_result_that_agrees_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=fault))
    path = write_document(tmp_path, epochs=1)
    request = TrainJob(document=str(path), home=str(tmp_path / "home"), base=str(peer_root() / "base"))
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        job = await start_job(request)
        events = [event async for event in job.events()]
    store = Store(tmp_path / "home", load(path).dlm_id)
    assert {item.version for item in adapter_versions(store, ["facts", "manners"]).values()} == {1}
    last = events[-1]
    if isinstance(last, Trained):
        assert {item.version for item in last.report.adapters.values()} == {1} and last.report.gate is None
        assert last.report.gate_error is not None and said in last.report.gate_error
        warnings = [event.text for event in events if isinstance(event, Log) and event.level == "warning"]
        assert warnings == [last.report.gate_error]
    else:
        assert isinstance(last, Failed) and said in last.text
    assert gate_status(load(path), store).in_force == "none"
    again = await start_job(request)
    (end,) = [event async for event in again.events() if isinstance(event, Trained)]
    assert end.report.gate is not None and end.report.gate.mode == "trained"
