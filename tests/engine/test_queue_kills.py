"""A night's work in miniature: six jobs, everything killed twice, and the same files as undisturbed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlm_tui.app.launch import make_app
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.document import load
from dlm_tui.engine.queue_client import start_runner
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.store import Store
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

ROOT = Path(__file__).resolve().parents[2]
WORK = (
    ("train", "--checkpoint-steps", "1"),
    ("gate",),
    ("eval", "--folds", "3"),
    ("export", "--target", "peft"),
    ("train", "--adapter", "manners", "--checkpoint-steps", "1"),
    ("export", "--target", "merged"),
)


class Place:
    """A document with a home of its own."""

    def __init__(self, folder: Path, base: Path) -> None:
        folder.mkdir()
        self.document, self.home, self.base = write_document(folder, sections=6, epochs=3), folder / "home", base
        self.queue = QueueFile(Store(self.home, load(self.document).dlm_id))

    def call(self, *words: str) -> None:
        done = subprocess.run(self.words(*words), cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def words(self, *words: str) -> list[str]:
        home = ["--home", str(self.home), "--base", str(self.base)]
        return [sys.executable, "-m", "dlm_tui", "queue", str(self.document), *words, *home]

    def files(self) -> dict[str, bytes]:
        """Everything that was trained and exported, and what is in force; without what tells the time."""
        root, found = self.queue.store.root, {}
        for path in sorted([*root.glob("adapter/**/*"), *root.glob("exports/**/*")]):
            name = path.relative_to(root).as_posix()
            if path.suffix in {".safetensors", ".txt"} or path.name in {"adapter_config.json", "gate_config.json"}:
                found[name] = path.read_bytes()
            elif path.is_file():
                found[name] = b""
        return found


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def processes(home: Path) -> list[int]:
    """Every process that works in a home: the runner, and the children of it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            parent = int(re.split(rb"\) \w ", (entry / "stat").read_bytes())[1].split()[0])
            above = Path(f"/proc/{parent}/cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue
        if str(home).encode() in words or (b"job_worker" in words and str(home).encode() in above):
            found.append(int(entry.name))
    return found


def kill_everything(home: Path) -> None:
    for pid in processes(home):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 120
    while processes(home):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(2700)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
def test_a_night_with_two_power_cuts_ends_like_a_quiet_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    tiny_base(base, "llama")
    quiet, cut = Place(tmp_path / "quiet", base), Place(tmp_path / "cut", base)
    for place in (quiet, cut):
        for job in WORK:
            place.call("add", *job)
    quiet.call("run")
    assert [entry.state for entry in quiet.queue.read().entries] == ["done"] * 6
    dice = random.Random(20)
    steps = 0
    for kill_in in (1, 5):  # a training each time, at some step of it
        runner = start_runner(cut.queue)  # as a screen does
        wanted = dice.randint(1, 6)
        deadline = time.monotonic() + 900
        while (steps := trained_steps(cut.queue, kill_in)) < wanted:
            assert time.monotonic() < deadline and runner.poll() is None, cut.queue.read()
            time.sleep(0.005)
        kill_everything(cut.home)
        runner.wait()
        line = cut.queue.read()
        assert line.find(kill_in).state == "running" and not cut.queue.is_worked_off(), steps
    shown = subprocess.run(cut.words("list"), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "nobody works it off now" in shown.stdout
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    asyncio.run(come_back(cut))
    assert [entry.state for entry in cut.queue.read().entries] == ["done"] * 6
    assert [entry.tries for entry in cut.queue.read().entries] == [2, 1, 1, 1, 2, 1]
    before, after = quiet.files(), cut.files()
    assert set(before) == set(after)
    assert [name for name in before if before[name] != after[name]] == []
    assert json.loads(cut.queue.store.manifest_path.read_text())["adapter_versions"] == {"facts": 1, "manners": 2}
    assert not list(cut.queue.path.parent.glob("*.receipt"))


async def come_back(place: Place) -> None:
    """A person opens the screen again and lets the line go on."""
    app = make_app(place.document, place.home, str(place.base))
    async with app.run_test(size=(120, 40)) as pilot:
        deadline = time.monotonic() + 900
        while not isinstance(app.screen, ConfirmScreen):
            assert time.monotonic() < deadline, "nothing was offered"
            await pilot.pause(0.05)
        await pilot.press("enter")
        while any(entry.state in {"running", "waiting"} for entry in place.queue.read().entries):
            assert time.monotonic() < deadline, place.queue.read()
            await pilot.pause(0.05)


def trained_steps(queue: QueueFile, number: int) -> int:
    """Optimiser steps that the job has reported in its last try."""
    from dlm_tui.engine.protocol import Progress
    from dlm_tui.engine.queue_client import EventLog

    entry = queue.read().find(number)
    events = EventLog(queue.events(number, entry.tries)).more()
    return sum(isinstance(event, Progress) and event.loss is not None for event in events)
