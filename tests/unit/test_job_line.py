"""The line of jobs as a screen follows it: the order is that of the file at every moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import time

import pytest

from dlm_tui.app.job_line import JobLine, Runner
from dlm_tui.app.jobs import JobBoard, JobRecord
from dlm_tui.engine.job_client import Job
from dlm_tui.engine.protocol import (
    EvaluateJob,
    Exported,
    ExportJob,
    ExportReport,
    Failed,
    JobRequest,
    Progress,
    Stopped,
    SweepJob,
    TrainJob,
    encode,
)
from dlm_tui.engine.queue_file import Entry, QueueFile
from dlm_tui.errors import UsageError
from dlm_tui.progress_words import time_text
from dlm_tui.store import Store

EXPORT = ExportJob(document="d.dlm", home="home", target="peft")
TITLES = ["first", "second", "third", "fourth"]


class Idle:
    """A runner that has not begun yet."""

    def __init__(self) -> None:
        self.left = False

    def poll(self) -> int | None:
        return None

    def leave(self) -> None:
        self.left = True


async def start_idle(queue: QueueFile) -> Runner:
    return Idle()


async def no_child(request: JobRequest) -> Job:
    raise AssertionError("nothing runs here")


@pytest.fixture
def board() -> JobBoard:
    return JobBoard(no_child, lambda record, event: None)


@pytest.fixture
def line(tmp_path: Path, board: JobBoard) -> JobLine:
    return JobLine(Store(tmp_path / "home", "01J9ZK4M2N6P8Q0R1S3T5V7W9X"), board, start_idle)


async def submit(line: JobLine) -> list[JobRecord]:
    job = ExportJob(document="d.dlm", home="home", target="peft")
    records = [await line.submit(job, "export", title) for title in TITLES]
    return [record for record in records if record is not None]


def listed(board: JobBoard) -> list[str]:
    return [record.title for record in board.listed()]


def filed(line: JobLine) -> list[str]:
    return [entry.title for entry in line.queue.read().ahead]


async def test_jobs_stand_in_their_order_before_the_file_was_looked_at_again(line: JobLine, board: JobBoard) -> None:
    await submit(line)
    assert listed(board) == TITLES == filed(line)
    await line.look()
    assert listed(board) == TITLES


async def test_what_is_put_in_line_before_the_first_look_was_not_found_there(tmp_path: Path, board: JobBoard) -> None:
    """A training that begins with the screen: its runner starts while the line is looked at."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def start_slowly(queue: QueueFile) -> Runner:
        begun.set()
        await go_on.wait()
        return Idle()

    line = JobLine(Store(tmp_path / "home", "01J9ZK4M2N6P8Q0R1S3T5V7W9X"), board, start_slowly)
    placed = asyncio.ensure_future(submit(line))
    await begun.wait()
    found = await line.begin()
    go_on.set()
    await placed
    assert (found.standing, found.live, found.ended) == ([], [], [])


async def test_a_line_that_is_let_go_has_nothing_on_the_board_and_its_runner_leaves(
    tmp_path: Path, board: JobBoard
) -> None:
    runner = Idle()

    async def start(queue: QueueFile) -> Runner:
        return runner

    line = JobLine(Store(tmp_path / "home", "01J9ZK4M2N6P8Q0R1S3T5V7W9X"), board, start)
    records = await submit(line)
    assert line.let_go() == records and runner.left
    assert not board.records and all(record.left and record.over.is_set() for record in records)
    assert filed(line) == TITLES, "it is still in line"
    assert [await board.cancel(record) for record in records] == ["already over"] * 4
    assert filed(line) == TITLES


async def test_a_line_that_is_let_go_while_its_runner_starts_has_nobody_who_works(
    tmp_path: Path, board: JobBoard
) -> None:
    runner, begun, go_on = Idle(), asyncio.Event(), asyncio.Event()

    async def start_slowly(queue: QueueFile) -> Runner:
        begun.set()
        await go_on.wait()
        return runner

    line = JobLine(Store(tmp_path / "home", "01J9ZK4M2N6P8Q0R1S3T5V7W9X"), board, start_slowly)
    placed = asyncio.ensure_future(submit(line))
    await begun.wait()
    line.let_go()
    go_on.set()
    await placed
    assert runner.left and not board.records


async def test_moves_that_overtake_a_look_all_count(line: JobLine, board: JobBoard) -> None:
    """Two presses of a key, the second before the screen has seen what the first did."""
    records = await submit(line)
    await asyncio.gather(line.move(records[3], -1), line.move(records[3], -1))
    assert listed(board) == ["first", "fourth", "second", "third"] == filed(line)
    await line.move(records[3], -7)
    await line.move(records[0], 7)
    assert listed(board) == ["fourth", "second", "third", "first"] == filed(line)


async def test_what_runs_by_now_is_not_moved(line: JobLine) -> None:
    records = await submit(line)
    with line.queue.change() as changed:
        changed.entries[0].state = "running"
    with pytest.raises(UsageError, match="job 1 does not wait: running"):
        await line.move(records[0], 1)
    await line.move(records[2], -1)
    assert filed(line) == ["first", "third", "second", "fourth"]


async def test_what_runs_by_now_is_being_stopped_and_not_taken_out(line: JobLine) -> None:
    records = await submit(line)
    with line.queue.change() as changed:
        changed.entries[0].state = "running"
    assert [record.state for record in records[:2]] == ["waiting", "waiting"], "not looked at again"
    assert await line.cancel(records[0]) == "being stopped"
    assert await line.cancel(records[1]) == "taken out of the line"


@pytest.mark.parametrize("tries", [0, 1], ids=["never begun", "paused before"])
async def test_what_is_cancelled_while_it_waits_is_taken_out_of_the_line(line: JobLine, tries: int) -> None:
    records = await submit(line)
    with line.queue.change() as changed:
        changed.entries[0].tries = tries
    said = [Progress(stage="mix"), Stopped(reason="cancelled")]  # of the try before
    line.queue.events(1, 1).write_bytes(b"".join(encode(event) for event in said))
    line.queue.cancel(1)  # by a command, say
    await line.look()
    assert (records[0].state, records[0].summary) == ("cancelled", "taken out of the line")


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        (TrainJob(document="d.dlm", home="home"), "goes on from there"),
        (TrainJob(document="d.dlm", home="home", gate_only=True), "begins again"),
        (ExportJob(document="d.dlm", home="home", target="peft"), "begins again"),
        (EvaluateJob(document="d.dlm", home="home"), "begins again"),
        (SweepJob(document="d.dlm", home="home", settings=["lora_r=4"]), "goes on from there"),
    ],
)
async def test_what_was_cut_short_says_whether_it_begins_again(line: JobLine, request_: JobRequest, how: str) -> None:
    line.queue.add(request_, "cut")
    with line.queue.change() as changed:
        changed.entries[0].tries = 1
    await line.look()
    assert [record.note for record in line._board.records] == [f"interrupted, {how}"]


async def test_a_look_that_is_cancelled_has_seen_nothing(
    line: JobLine, board: JobBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(line)
    line.queue.move(4, 1)
    reads, read = 0, QueueFile.read

    def cancelled(*_: object) -> object:
        nonlocal reads
        reads += 1
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(QueueFile, "read", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await line.look()
    assert reads == 1 and QueueFile.read is read
    await line.look()
    assert listed(board)[0] == "fourth"


async def test_times_are_those_of_the_job_and_not_of_who_follows_it(line: JobLine, board: JobBoard) -> None:
    """A second screen came when all had been said."""
    with line.queue.change() as changed:
        changed.entries.append(Entry(number=1, title="export", request=EXPORT, state="done", tries=1, seen=True))
        changed.entries.append(Entry(number=2, title="export", request=EXPORT, state="waiting"))
    await line.look()
    began = time() - 1000
    said = [
        Progress(stage="mix", at=began),
        Progress(stage="drift", at=began + 61),
        Exported(report=ExportReport(folder="out", next_command=""), at=began + 125),
    ]
    line.queue.events(2, 1).write_bytes(b"".join(encode(event) for event in said))
    with line.queue.change() as changed:
        changed.entries[1].state, changed.entries[1].tries = "done", 1
    await line.look()
    record = next(one for one in board.records if one.number == 2)
    assert record.summary == f"done in {time_text(125)}" and round(record.seconds) == 125
    assert all(text.strip().startswith(time_text(at)) for text, at in zip(record.log, (0, 61), strict=True))


def test_work_that_begins_again_takes_the_mark_of_its_last_failure_away(board: JobBoard) -> None:
    first = board.begin("serve", "Server")
    board.note(first, Failed(kind="DlmTuiError", text="the port is taken"))
    assert board.failure is first
    board.begin("train", "Training")
    assert board.failure is first
    board.begin("serve", "Server")
    assert board.failure is None
