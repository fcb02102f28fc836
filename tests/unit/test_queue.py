"""The line of jobs: order, pause, cancel, and what a killed runner leaves. Jobs are stand-ins, the files are real."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.engine import queue_client
from dlm_tui.engine.job_client import Job
from dlm_tui.engine.protocol import (
    EvaluateJob,
    Event,
    Exported,
    ExportJob,
    ExportReport,
    Failed,
    JobRequest,
    Log,
    Progress,
    Stopped,
    Trained,
    TrainJob,
)
from dlm_tui.engine.queue_client import EventLog
from dlm_tui.engine.queue_file import Entry, QueueFile
from dlm_tui.engine.queue_runner import QueueRunner
from dlm_tui.errors import UsageError
from dlm_tui.store import LockHeld, Store, run_lock
from tests.training_samples import write_document
from tests.tui.recorded import train_report


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QueueFile:
    """The line of `d.dlm`, in the folder where that is."""
    monkeypatch.chdir(tmp_path)
    document = write_document(tmp_path).rename("d.dlm")
    return QueueFile(Store(tmp_path / "home", load(document).dlm_id))


@pytest.mark.parametrize(
    ("job", "said"), [("gate", "has no gate to train"), ("eval", "declares fewer than two adapters")]
)
def test_what_a_document_without_adapters_cannot_do_is_not_put_in_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, said: str
) -> None:
    path = tmp_path / "one.dlm"
    path.write_text(
        "---\ndlm_id: 01HZ4X7TGZM3J1A2B3C4D5E6F7\ndlm_version: 15\nbase_model: smollm2-135m\n---\nA town.\n"
    )
    home = str(tmp_path / "home")
    assert main(["queue", str(path), "add", job, "--home", home]) == 2
    assert said in capsys.readouterr().err
    assert main(["queue", str(path), "add", "train", "--home", home]) == 0
    assert capsys.readouterr().err.strip() == "job 1: train the adapter"


def train(adapter: str = "tone") -> TrainJob:
    return TrainJob(document="d.dlm", home="home", adapters=[adapter])


def export(target: str = "peft") -> ExportJob:
    return ExportJob(document="d.dlm", home="home", target=target)


class Stand:
    """A job that ends when it is told to, or at once."""

    def __init__(self, request: JobRequest, ends: bool) -> None:
        self.request, self.log = request, deque(["a last word"])
        self.go, self.stopped = asyncio.Event(), asyncio.Event()
        self.end: Event | None = None
        if ends:
            self.go.set()

    async def events(self) -> AsyncIterator[Event]:
        yield Progress(stage="sft", done=1, total=2)
        waits = [asyncio.ensure_future(one.wait()) for one in (self.go, self.stopped)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        if self.stopped.is_set():
            yield Stopped(reason="cancelled", text="a checkpoint is kept")
        elif self.end is not None:
            yield self.end
        elif isinstance(self.request, TrainJob):
            yield Trained(report=train_report())
        else:
            yield Exported(report=ExportReport(folder="out", next_command=""))

    async def cancel(self) -> str:
        self.stopped.set()
        return "stopped when asked"


class Work:
    """Starts stand-ins, and keeps them."""

    def __init__(self, ends: bool = True) -> None:
        self.jobs: list[Stand] = []
        self.ends = ends

    async def __call__(self, request: JobRequest) -> Job:
        self.jobs.append(Stand(request, self.ends))
        return self.jobs[-1]

    @property
    def order(self) -> list[object]:
        """What was started, by adapter or target."""
        requests = [job.request for job in self.jobs]
        return [
            (one.adapters or [""])[0] if isinstance(one, TrainJob) else getattr(one, "target", "") for one in requests
        ]


def _name(request: JobRequest) -> str:
    if isinstance(request, TrainJob):
        return (request.adapters or [""])[0]
    return request.target if isinstance(request, ExportJob) else ""


def runner(queue: QueueFile, work: Work) -> QueueRunner:
    return QueueRunner(queue, work, poll=0.005)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def states(queue: QueueFile) -> dict[int, str]:
    return {entry.number: entry.state for entry in queue.read().entries}


async def test_jobs_run_one_after_another_in_the_order_of_the_line(queue: QueueFile) -> None:
    for request in (train("tone"), export("peft"), train("facts")):
        queue.add(request, "a job")
    work = Work()
    await runner(queue, work).run()
    assert work.order == ["tone", "peft", "facts"]
    assert states(queue) == {1: "done", 2: "done", 3: "done"}
    entries = queue.read().entries
    assert isinstance(entries[0].result, Trained) and isinstance(entries[1].result, Exported)
    assert all(entry.began and entry.ended and entry.tries == 1 for entry in entries)
    said = EventLog(queue.events(1, 1)).more()
    assert said and all(0 <= time.time() - event.at < 600 for event in said), "each with its moment"
    assert not queue.is_worked_off()


async def test_what_is_added_meanwhile_is_worked_off_too(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    assert queue.is_worked_off() and states(queue) == {1: "running"}
    queue.add(train("facts"), "two")
    work.ends = True
    work.jobs[0].go.set()
    await running
    assert work.order == ["tone", "facts"]


async def test_only_one_works_at_a_time(queue: QueueFile) -> None:
    queue.add(train(), "one")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    with pytest.raises(LockHeld, match="is worked off"):
        await runner(queue, Work()).run(wait=0.0)
    work.jobs[0].go.set()
    await running


def test_waiting_jobs_are_reordered_and_taken_out(queue: QueueFile) -> None:
    for number in range(4):
        queue.add(train(), f"job {number}")
    queue.move(4, 1)
    queue.move(1, 99)
    assert [entry.number for entry in queue.read().entries] == [4, 2, 3, 1]
    queue.cancel(3)
    assert [entry.number for entry in queue.read().ahead] == [4, 2, 1]
    for wrong in (lambda: queue.move(3, 1), lambda: queue.cancel(3), lambda: queue.cancel(77)):
        with pytest.raises(UsageError, match=r"job 3|there is no job 77 in line; there are: 4, 2, 3, 1"):
            wrong()
    assert queue.add(train(), "next").number == 5, "numbers are not used twice"


async def test_the_running_job_is_cancelled_for_good(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    queue.add(train("facts"), "two")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    work.ends = True
    queue.cancel(1)
    await running
    assert states(queue) == {1: "cancelled", 2: "done"}
    assert queue.read().find(1).summary == "a checkpoint is kept"


async def test_a_paused_line_stops_and_goes_on_where_it_was(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    queue.add(train("facts"), "two")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    queue.pause(True)
    await running
    line = queue.read()
    assert states(queue) == {1: "waiting", 2: "waiting"} and line.paused and line.entries[0].interrupted
    await runner(queue, Work()).run()
    assert states(queue) == {1: "waiting", 2: "waiting"}, "nothing starts while it is paused"
    queue.pause(False)
    work = Work()
    await runner(queue, work).run()
    assert work.order == ["tone", "facts"] and states(queue) == {1: "done", 2: "done"}
    first, second = (job.request for job in work.jobs)
    assert isinstance(first, TrainJob) and isinstance(second, TrainJob)
    assert first.resume and not second.resume, "the one that was cut goes on from its checkpoint"
    assert first.receipt == "queue/job-0001.receipt"


async def test_who_leaves_stops_the_work_for_another_time(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    queue.leave(stays=False)
    await running
    assert states(queue) == {1: "waiting"} and queue.read().entries[0].interrupted
    await runner(queue, Work()).run()
    assert states(queue) == {1: "done"}, "to halt is said once"


async def test_a_killed_runner_leaves_what_was_running_first_in_line(queue: QueueFile) -> None:
    for adapter in ("tone", "facts", "style"):
        queue.add(train(adapter), adapter)
    queue.move(3, 1)
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    queue.move(1, 1)  # before the one that runs nobody gets
    running.cancel()  # as a kill: nothing is written any more
    with pytest.raises(asyncio.CancelledError):
        await running
    assert states(queue) == {1: "waiting", 2: "waiting", 3: "running"} and not queue.is_worked_off()
    work = Work()
    await runner(queue, work).run()
    assert work.order == ["style", "tone", "facts"]
    assert set(states(queue).values()) == {"done"} and queue.read().find(3).tries == 2


@pytest.mark.parametrize("end", [Failed(kind="JobGone", text="ended by SIGKILL"), Stopped(reason="cancelled")])
async def test_a_child_that_somebody_ends_goes_on_but_not_for_ever(queue: QueueFile, end: Event) -> None:
    queue.add(train("tone"), "one")

    class Killed(Work):
        async def __call__(self, request: JobRequest) -> Job:
            job = await super().__call__(request)
            assert isinstance(job, Stand)
            job.end = end
            return job

    work = Killed()
    await runner(queue, work).run()
    assert len(work.jobs) == 3
    assert states(queue)[1] in {"failed", "cancelled"}


async def test_a_failure_keeps_its_words_and_the_line_goes_on(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    queue.add(export("peft"), "two")
    work = Work(ends=False)
    running = asyncio.create_task(runner(queue, work).run())
    await until(lambda: work.jobs)
    work.ends = True
    work.jobs[0].end = Failed(kind="OSError", text="The disk is full.")
    work.jobs[0].go.set()
    await running
    assert states(queue) == {1: "failed", 2: "done"} and queue.read().find(1).summary == "The disk is full."
    events = EventLog(queue.events(1, 1)).more()
    assert [type(event) for event in events] == [Progress, Log, Failed]


async def test_a_training_waits_for_whoever_trains_the_document(queue: QueueFile) -> None:
    queue.add(train("tone"), "one")
    work = Work()
    with run_lock(queue.store):
        running = asyncio.create_task(runner(queue, work).run())
        log = EventLog(queue.events(1, 1))
        await until(lambda: any(isinstance(event, Log) for event in log.more()))
        assert not work.jobs and states(queue) == {1: "running"}
    await running
    assert states(queue) == {1: "done"}


async def test_a_job_of_another_document_or_home_is_not_run(queue: QueueFile, tmp_path: Path) -> None:
    """A line that came with a stranger's store would write where it likes."""
    other = write_document(tmp_path)
    other.write_text(other.read_text().replace(queue.store.dlm_id, "01J9ZK4M2N6P8Q0R1S3T5V7W9X"))
    queue.add(ExportJob(document=str(other), home="home"), "another document")
    queue.add(ExportJob(document="d.dlm", home="elsewhere"), "another home")
    queue.add(ExportJob(document="gone.dlm", home="home"), "no document")
    queue.add(ExportJob(document=str(tmp_path / "d.dlm"), home=str(tmp_path / "home")), "its own")
    work = Work()
    await runner(queue, work).run()
    assert states(queue) == {1: "failed", 2: "failed", 3: "failed", 4: "done"} and len(work.jobs) == 1
    assert "the line is that of" in queue.read().find(1).summary
    assert str(tmp_path / "elsewhere") in queue.read().find(2).summary
    assert "gone.dlm" in queue.read().find(3).summary


def test_the_log_is_read_as_it_grows(queue: QueueFile, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = EventLog(path)
    assert log.more() == []
    path.write_bytes(b'{"type":"log","text":"one"}\n{"type":"lo')
    assert [event.text for event in log.more() if isinstance(event, Log)] == ["one"]
    assert log.more() == []
    with path.open("ab") as handle:
        handle.write(b'g","text":"two"}\nnot an event\n')
    assert [event.text for event in log.more() if isinstance(event, Log)] == ["two"]


def test_whether_somebody_works_is_asked_without_writing(queue: QueueFile, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.add(train(), "one")
    locks = queue.store.cache_dir / "tui_locks"
    shutil.rmtree(locks)
    assert not queue.is_worked_off() and not locks.exists()
    with queue.working():
        assert queue.is_worked_off()
    monkeypatch.setattr("dlm_tui.store.locks.lock_is_held", lambda path: None)  # a system that cannot tell
    assert not queue.is_worked_off()
    with queue.working():
        assert queue.is_worked_off()


def test_a_damaged_line_is_set_aside(queue: QueueFile) -> None:
    queue.add(train(), "one")
    queue.path.write_bytes(b"{half")
    assert queue.read().entries == []
    assert queue.path.with_name("queue.damaged.json").read_bytes() == b"{half"
    assert queue.add(EvaluateJob(document="d", home="h"), "judge").number == 1


def test_a_damaged_line_is_said_and_its_numbers_are_not_given_again(
    queue: QueueFile, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        queue.add(train(), "one")
    queue.path.write_bytes(queue.path.read_bytes()[:-3])
    assert queue.read().entries == [] and queue.read().entries == []
    (said,) = caplog.messages
    assert str(queue.path) in said and "queue.damaged.json" in said
    assert queue.add(train(), "four").number == 4
    queue.path.unlink()
    queue.events(7, 1).write_bytes(b"")
    assert queue.add(train(), "eight").number == 8


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path), os.mkfifo])
def test_what_is_no_file_in_the_place_of_the_line_is_set_aside(queue: QueueFile, make: Callable[[Path], None]) -> None:
    queue.path.parent.mkdir(parents=True)
    make(queue.path)
    assert queue.read().entries == [] and not os.path.lexists(queue.path)
    assert queue.add(train(), "one").number == 1


def test_jobs_that_were_told_are_told_once(queue: QueueFile) -> None:
    queue.add(train(), "one")
    with queue.change() as line:
        line.entries[0].state = "done"
    queue.mark_seen()
    assert queue.read().entries[0].seen
    before = queue.path.stat().st_mtime_ns
    queue.mark_seen()
    assert queue.path.stat().st_mtime_ns == before, "nothing new, nothing written"


def test_old_jobs_and_what_they_said_are_forgotten(queue: QueueFile) -> None:
    for number in range(40):
        entry = queue.add(train(), f"job {number}")
        queue.events(entry.number, 1).write_bytes(b"")
        with queue.change() as line:
            line.find(entry.number).state = "done"
    line = queue.read()
    assert [entry.number for entry in line.entries] == list(range(11, 41))
    assert not queue.events(1, 1).exists() and queue.events(11, 1).exists()


def test_reading_a_line_makes_nothing(queue: QueueFile) -> None:
    assert queue.read().ahead == [] and not queue.is_worked_off()
    queue.mark_seen()
    assert not queue.store.root.exists()


def test_entries_are_plain_json(queue: QueueFile) -> None:
    entry: Entry = queue.add(export("merged"), "export")
    again = queue.read().entries[0]
    assert again == entry and isinstance(again.request, ExportJob) and again.request.target == "merged"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--adapter", "zz"], "declares no adapter 'zz'"),
        (["export", "--target", "foo"], "no export target is called 'foo'"),
        (["export", "--quant", "q99"], "no quantisation is called 'q99'"),
    ],
)
def test_what_can_never_run_is_not_put_in_line(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = write_document(tmp_path)
    command = ["queue", str(document), "add", *words, "--home", str(tmp_path / "home")]
    assert main(command) == 2
    assert says in capsys.readouterr().err
    assert QueueFile(Store(tmp_path / "home", load(document).dlm_id)).read().entries == []


def test_what_goes_on_in_a_process_of_its_own_is_worked_off(
    queue: QueueFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process was started and has not taken the line yet."""
    queue.add(export(), "export peft")
    queue.pause(True)
    started: list[QueueFile] = []
    monkeypatch.setattr(queue_client, "start_runner", lambda queue, stays: started.append(queue))
    assert main(["queue", "d.dlm", "resume", "--home", "home"]) == 0
    said = capsys.readouterr()
    assert len(started) == 1 and "nobody works it off" not in said.out
    assert "it is worked off in a process of its own" in said.err


def test_a_job_whose_runner_was_killed_does_not_run(
    tmp_path: Path, queue: QueueFile, capsys: pytest.CaptureFixture[str]
) -> None:
    path, home = write_document(tmp_path, sections=2), str(tmp_path / "home")
    assert main(["queue", str(path), "add", "train", "--home", home]) == 0
    line = QueueFile(Store(Path(home), load(path).dlm_id))
    with line.change() as entries:
        entries.entries[0].state, entries.entries[0].tries = "running", 1
    capsys.readouterr()
    assert main(["queue", str(path), "list", "--home", home]) == 0
    told = capsys.readouterr().out
    assert "interrupted" in told and "running" not in told and f"queue {path} run --home {home}` does" in told
    assert main(["queue", str(path), "list", "--json", "--home", home]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["worked_off"], listed["jobs"][0]["state"]) == (False, "waiting")
    with line.working():
        assert main(["queue", str(path), "list", "--home", home]) == 0
    assert "running" in capsys.readouterr().out
