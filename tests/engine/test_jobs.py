"""Job children: cancelled and killed trainings leave the store as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dlm_tui.document import load
from dlm_tui.engine.job_client import ChildJob, start_job
from dlm_tui.engine.protocol import Failed, Progress, Stopped, Trained, TrainJob
from dlm_tui.store import MetricsReader, Store
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
