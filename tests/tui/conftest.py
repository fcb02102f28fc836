"""A workbench on a recorded engine, with everything that moves by itself held still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode
from textual.pilot import Pilot, WaitForScreenTimeout

from dlm_tui.app.app import Opening, WorkbenchApp
from dlm_tui.app.config import Config
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.layout import Layout
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.wiring import Controllers
from dlm_tui.app.jobs import JobStarter
from dlm_tui.app.setup import Setup
from dlm_tui.app.state import StateFile
from dlm_tui.app.workbench import Workbench
from dlm_tui.document import load
from dlm_tui.engine.protocol import JobRequest
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.engine.queue_runner import QueueRunner
from dlm_widgets.throttled import Throttled
from tests.tui.document import write_document
from tests.tui.drawn import drawn_strips
from tests.tui.loop_guard import LoopGuard
from tests.tui.recorded import RecordedEngine, RecordedJob, World


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No blinking, no animation, no running clock, no toast that fades; nobody's editor or clipboard."""
    from textual.widgets import Input, TextArea

    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)
    monkeypatch.setattr(Input.cursor_blink, "_default", False)
    for clock in (
        "app.jobs.time",
        "engine.queue_runner.time",
        "app.controllers.jobs.monotonic",
        "app.engine_link.monotonic",
    ):
        monkeypatch.setattr(f"dlm_tui.{clock}", lambda: 100.0)
    monkeypatch.setattr("dlm_tui.app.controllers.generation.answer_time", Asked())
    monkeypatch.setattr("textual.app.App.NOTIFICATION_TIMEOUT", 3600.0)
    monkeypatch.setattr("textual.constants.TEXTUAL_ANIMATIONS", "none", raising=False)
    for name in ("VISUAL", "EDITOR", "DISPLAY", "WAYLAND_DISPLAY", "TMUX", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


async def at_rest(*_: float) -> None:
    """Until no task of this loop can go on at once."""
    loop = asyncio.get_running_loop()
    for _ in range(10_000):
        await asyncio.sleep(0)
        if not loop._ready:  # type: ignore[attr-defined]
            return


class Asked:
    """Another moment for every question, far from today, the same in every run."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"2026-03-04T05:{self._count:02d}:07.890Z"


_SERVER_CODE = """
import json, sys
print(json.dumps({"address": "http://127.0.0.1:8321"}), flush=True)
sys.stdin.read()
"""
SERVER = (sys.executable, "-c", _SERVER_CODE)
"""A server that says where it is and ends with the screen."""


@dataclass
class Bench:
    """A running workbench and everything a test may want to touch."""

    app: WorkbenchApp
    pilot: Pilot[int]
    world: World
    engines: list[RecordedEngine]
    jobs: list[RecordedJob]
    path: Path

    @property
    def screen(self) -> Workbench:
        return self.app.workbench

    @property
    def context(self) -> Context:
        """Document, remembered state, engine link, jobs."""
        return self.screen.context

    @property
    def controllers(self) -> Controllers:
        """What the workbench does."""
        return self.screen.controllers

    @property
    def routing(self) -> Routing:
        """The gate's answer to what is typed."""
        return self.controllers.routing

    @property
    def panes(self) -> Layout:
        """Pages, zoom, focus."""
        return self.screen.panes

    async def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        names = {" ": "space", "?": "question_mark", ",": "comma", ".": "full_stop", "\n": "enter"}
        await self.press(*[names.get(char, char) for char in text])

    async def press(self, *keys: str) -> None:
        """Press keys, each after everything the one before it set off has been dealt with."""
        for key in keys:
            with contextlib.suppress(WaitForScreenTimeout):
                await self.pilot.press(key)
            await self.quiet()

    async def click(self, target: Any, offset: tuple[int, int] = (0, 0)) -> None:
        """Click, and wait until everything the click set off has been dealt with."""
        await self.pilot.click(target, offset=offset)
        await self.quiet()

    async def until(self, condition: Callable[[], Any], what: str = "", seconds: float = 90.0) -> None:
        """Wait for a condition, letting the app work."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}\n{self.text}"
            await asyncio.sleep(0.005)
        await self.quiet()

    async def quiet(self) -> None:
        """Until no message is left anywhere and nothing is still to be drawn; work beside the screen goes on."""
        deadline = asyncio.get_running_loop().time() + 30.0
        calm = 0
        while calm < 2 and not self.app._exit and asyncio.get_running_loop().time() < deadline:
            await at_rest()
            if self._is_behind():
                calm = 0
                await asyncio.sleep(0.002)
                self.app.screen._on_timer_update()
                continue
            if not calm:
                await self._pause(0)  # every widget answers: none is in the middle of a message
            calm += 1

    def _is_behind(self) -> bool:
        """Whether a message, a callback or a drawing is left."""
        nodes = [node for screen in self.app.screen_stack for node in screen.walk_children(with_self=True)]
        if any(node.message_queue_size for node in (self.app, *nodes)) or self.app.screen._callbacks:
            return True
        if self.app.key_order.is_behind:
            return True
        return any(isinstance(node, Throttled) and node.is_behind for node in nodes)

    async def _pause(self, seconds: float | None = None) -> None:
        # a widget that is removed meanwhile never answers; whoever waits looks again
        with contextlib.suppress(WaitForScreenTimeout):
            await self.pilot.pause(seconds)

    async def idle(self) -> None:
        """Until no worker that ends by itself is left, nor one that its end started."""
        while True:
            await self.until(self._no_worker, "idle")
            if self._no_worker():
                return

    def _no_worker(self) -> bool:
        held = [] if self.world.hold.is_set() else ["job-train", "job-export", "job-evaluate"]
        lasting = {"engine", "watch", "sources", "serve", "queue", *held}
        return all(worker.is_finished or worker.group in lasting for worker in self.app.workers)

    async def settled(self) -> str:
        """The screen once everything that was asked for is drawn and nothing changes any more."""
        await self.idle()
        before, same = "", 0
        while same < 3:
            await self._pause(0.01)
            await self.quiet()
            now = self.text
            same = same + 1 if now == before else 0
            before = now
        return before

    async def leave_prompt(self) -> None:
        """Where single letters are keys."""
        self.panes.focus_pane("desk")
        await self.until(lambda: self.panes.focused_pane == "desk", "the desk has the focus")

    @property
    def toasts(self) -> list[str]:
        """What was said, oldest first."""
        return [f"{note.title} {note.message}".strip() for note in self.app._notifications]

    @property
    def text(self) -> str:
        """The screen as plain text."""
        strips = drawn_strips(self.app)
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


class RunnerHere:
    """The real runner of a line, in this process, with the jobs of the test."""

    def __init__(self, queue: QueueFile, starter: JobStarter) -> None:
        self.runner = QueueRunner(queue, starter, poll=0.01)
        self.task = asyncio.ensure_future(self.runner.run())

    def poll(self) -> int | None:
        return 0 if self.task.done() else None

    def leave(self) -> None:
        self.runner.leave()


async def run_here(starter: JobStarter, queue: QueueFile) -> RunnerHere:
    """Stands in for the process that works off the line."""
    return RunnerHere(queue, starter)


Opener = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def workbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Open a workbench: `async with workbench(size=(80, 24), trained=True) as bench`."""
    # the pilot guesses from the processor's time when all is done; `Bench.quiet` knows
    for waiter in ("app", "pilot"):
        monkeypatch.setattr(f"textual.{waiter}.wait_for_idle", at_rest)

    guard = LoopGuard(monkeypatch)

    @asynccontextmanager
    async def opened(
        *,
        size: tuple[int, int] = (80, 24),
        world: World | None = None,
        trained: bool = True,
        config: Config | None = None,
        path: Path | None = None,
        wait: bool = True,
        line: bool = False,
        **more: Any,
    ) -> AsyncIterator[Bench]:
        path = path or (
            write_document(tmp_path) if not (tmp_path / "harbour.dlm").exists() else tmp_path / "harbour.dlm"
        )
        world = world or World(trained=trained)
        engines: list[RecordedEngine] = []
        jobs: list[RecordedJob] = []

        def engine() -> RecordedEngine:
            engines.append(RecordedEngine(world))
            return engines[-1]

        async def start(request: JobRequest) -> RecordedJob:
            jobs.append(RecordedJob(world, request))
            return jobs[-1]

        setup = Setup(
            document=load(path),
            path=path,
            home=tmp_path / "home",
            base=None,
            config=config or Config(),
            state_file=StateFile(path, tmp_path / "state"),
            engine_factory=engine,
            job_starter=start,
            screenshot_folder=tmp_path,
            server_words=SERVER,
        )
        if line:
            setup = replace(setup, runner_starter=partial(run_here, setup.job_starter))
        setup = replace(setup, **more)
        app = WorkbenchApp(Opening(path.name, setup.config, setup.config.theme, lambda: setup))
        app.animation_level = "none"
        async with app.run_test(size=size, notifications=True) as pilot:
            bench = Bench(app, pilot, world, engines, jobs, path)
            await bench.until(lambda: app.is_open and app.workbench.is_mounted, "open")
            if wait:
                await bench.until(lambda: app.workbench.context.link.state.phase in {"ready", "failed"}, "engine ready")
                await bench.idle()
            yield bench
            failures = list(app.workbench.failures)
        assert failures == []
        assert guard.found == [], "the screen waits for the disk on its loop"

    return opened


class ScreenExtension(SingleFileSnapshotExtension):
    """One readable text file per screen."""

    _write_mode = WriteMode.TEXT
    file_extension = "txt"


@pytest.fixture
def screens(snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch) -> SnapshotAssertion:
    """Compare `bench.text` with the stored screen; the one path that is shown is the same on every machine."""
    monkeypatch.setattr("dlm_tui.app.config.config_path", lambda: Path("/home/me/.config/dlm-tui/config.toml"))
    return snapshot.use_extension(ScreenExtension)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ.pop("COLUMNS", None)
    os.environ.pop("LINES", None)
