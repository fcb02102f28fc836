"""The screen on the real engine: type, train, see the weights change, lose the engine, get it back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from dlm_tui.app.app import WorkbenchApp
from dlm_tui.app.base import Setup
from dlm_tui.app.config import Config
from dlm_tui.app.state import StateFile
from dlm_tui.document import load
from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.jobs import start_job
from tests.interop.peer_fixture import peer_root
from tests.training_samples import write_document

pytestmark = pytest.mark.slow
PATIENCE = 120.0


async def until(pilot: Pilot[Any], condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, letting the app and its children work."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await pilot.pause(0.02)


async def test_type_train_retype_and_survive_a_killed_engine(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    engines: list[EngineClient] = []

    def engine() -> EngineClient:
        engines.append(EngineClient(threads=1))
        return engines[-1]

    setup = Setup(
        document=load(path),
        path=path,
        home=tmp_path / "home",
        base=str(peer_root() / "base"),
        config=Config(),
        state_file=StateFile(path, tmp_path / "state"),
        engine_factory=engine,
        job_starter=start_job,
        screenshot_folder=tmp_path,
    )
    app = WorkbenchApp(setup)
    async with app.run_test(size=(120, 40)) as pilot:
        bench = app.workbench
        await until(pilot, lambda: bench.link.ready, "the engine opens the document")
        await pilot.press(*"Greet")
        await until(pilot, lambda: bench.routed and bench.routed.prompt == "Greet", "every keystroke is answered")
        assert bench.routed is not None and bench.routed.mode == "none"

        await pilot.press("ctrl+t")
        await until(pilot, lambda: bench.routed and bench.routed.mode == "trained", "training ends and is used")
        assert set(bench.opened.adapters if bench.opened else ()) == {"facts", "manners"}
        trained = dict(bench.routed.weights)
        assert len(set(trained.values())) == 2, "the weights are no longer uniform"
        await pilot.press("space", *"guest")
        await until(pilot, lambda: bench.routed and bench.routed.prompt == "Greet guest", "typing goes on")
        assert bench.routed.weights != trained

        pid = engines[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: len(engines) == 2 and bench.link.ready, "the engine returns")
        assert bench.prompt_pane.text == "Greet guest"
        before = dict(bench.routed.weights)
        await pilot.press("space", "x", "backspace", "backspace")
        await until(pilot, lambda: bench.routed and bench.routed.prompt == "Greet guest", "the new engine answers")
        assert bench.routed.weights == pytest.approx(before, abs=1e-6)


async def test_a_cancelled_training_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    from dlm_tui.engine.protocol import Progress, Stopped, TrainJob

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
    from dlm_tui.engine.jobs import ChildJob
    from dlm_tui.engine.protocol import Failed, JobDone, Progress, TrainJob
    from dlm_tui.store import MetricsReader, Store

    path = write_document(tmp_path)
    request = TrainJob(document=str(path), home=str(tmp_path / "home"), base=str(peer_root() / "base"))
    job = ChildJob(request)
    await job.start()
    last = None
    async for event in job.events():
        last = event
        if isinstance(event, Progress) and event.stage == "sft" and job.pid is not None:
            os.kill(job.pid, signal.SIGKILL)
    assert isinstance(last, Failed) and "SIGKILL" in last.text
    again = await start_job(request)
    events = [event async for event in again.events()]
    assert isinstance(events[-1], JobDone)
    runs = MetricsReader(Store(tmp_path / "home", load(path).dlm_id)).runs(limit=10)
    assert [run["status"] for run in sorted(runs, key=lambda run: run["run_id"])] == ["failed", "ok", "ok"]
