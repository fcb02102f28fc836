"""The line of jobs on the screen: order, pause, cancel, leaving and coming back. The files and the runner are real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.panes.jobs import JobList
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.leave import LeaveScreen
from dlm_tui.app.screens.report import ReportScreen
from dlm_tui.app.terminal import HANG_UP
from dlm_tui.document import fresh_dlm_id, load
from dlm_tui.engine.protocol import EvaluateJob, ExportJob, Failed, TrainJob
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.engine.queue_runner import QueueRunner
from dlm_tui.store import Store, utc_seconds
from dlm_tui.store.locks import named_lock
from tests.tui import mouse
from tests.tui.conftest import Bench, Opener
from tests.tui.document import write_document
from tests.tui.recorded import RecordedJob, World


def queue_of(tmp_path: Path) -> QueueFile:
    path = tmp_path / "harbour.dlm"
    if not path.exists():
        write_document(tmp_path)
    return QueueFile(Store(tmp_path / "home", load(path).dlm_id))


def listed(bench: Bench) -> list[tuple[str, str]]:
    return [(record.title, record.state) for record in bench.context.board.listed()]


async def line_of_three(bench: Bench) -> None:
    """A training that is held at its first step, an export and a judgement behind it."""
    bench.world.hold.clear()
    await bench.press("ctrl+t")
    await bench.until(lambda: bench.context.board.running("train"), "the training runs")
    await bench.press("f8")
    await bench.until(lambda: len(bench.context.board.records) == 2, "the export waits")
    await bench.press("alt+v")
    await bench.until(lambda: len(bench.context.board.records) == 3, "the judgement waits")
    bench.panes.go_to("jobs")
    await bench.until(lambda: bench.panes.focused_pane == "jobs", "in the jobs")


TRAIN, EXPORT, JUDGE = "train 3 adapters and the gate", "export peft", "judge the gate"


async def test_what_is_asked_for_waits_its_turn(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        assert listed(bench) == [(TRAIN, "running"), (EXPORT, "waiting"), (JUDGE, "waiting")]
        assert len(bench.jobs) == 1 and "2 more" in bench.text
        assert any("waits in line, 1 before it" in toast or "waits in line" in toast for toast in bench.toasts)
        bench.world.hold.set()
        await bench.until(lambda: all(record.over.is_set() for record in bench.context.board.records), "all over")
        assert [type(job.request) for job in bench.jobs] == [TrainJob, ExportJob, EvaluateJob]
        assert {state for _, state in listed(bench)} == {"done"}
        await bench.idle()
        await bench.until(lambda: any("Trained: done" in toast for toast in bench.toasts), "said as ever")
        assert any("Exported" in toast for toast in bench.toasts)


ONE = """---
dlm_id: 01HZ4X7TGZM3J1A2B3C4D5E6F7
dlm_version: 15
base_model: smollm2-135m
---
::instruction::
### Q
What is the tide?

### A
High.
"""


async def test_without_a_gate_nothing_of_it_is_put_in_line(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path)
    path.write_text(path.read_text().replace("enabled: true", "enabled: false"))
    async with workbench(size=(120, 40), line=True) as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "the training runs")
        await bench.press("f5")
        await bench.until(lambda: any("has no gate to train: set training" in t for t in bench.toasts), "refused")
        assert listed(bench) == [("train 3 adapters", "running")]
        await bench.press("alt+v")
        await bench.until(lambda: len(bench.context.board.records) == 2, "the folds need no gate in the document")
        bench.world.hold.set()
        await bench.idle()


async def test_one_adapter_trains_and_has_nothing_to_judge(workbench: Opener, tmp_path: Path) -> None:
    (tmp_path / "harbour.dlm").write_text(ONE)
    async with workbench(size=(120, 40), line=True, trained=False) as bench:
        assert "^t trains the adapter in the background" in bench.text
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "the training runs")
        await bench.press("alt+v", "alt+d")
        await bench.until(lambda: sum("fewer than two adapters" in t for t in bench.toasts) == 2, "both refused")
        assert listed(bench) == [("train the adapter", "running")]
        bench.world.hold.set()
        await bench.idle()


async def test_the_same_training_waits_once(workbench: Opener) -> None:
    async with workbench(line=True) as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "runs")
        bench.path.touch()
        await bench.press("ctrl+t")
        await bench.until(lambda: len(bench.context.board.waiting()) == 1, "one more, of what is saved by then")
        await bench.press("ctrl+t")
        await bench.until(lambda: any("waits in line already" in t for t in bench.toasts), "said")
        assert len(bench.context.board.waiting()) == 1
        bench.world.hold.set()
        await bench.idle()


async def test_the_training_that_runs_is_not_put_in_line_again_until_the_document_is_written(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_document(tmp_path)
    later = utc_seconds(datetime.fromtimestamp(ceil(path.stat().st_ctime) + 5, UTC))
    monkeypatch.setattr("dlm_tui.engine.queue_runner.utc_seconds", lambda: later)
    async with workbench(line=True) as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "runs")
        await bench.press("ctrl+t")
        await bench.until(lambda: any("is running already" in t for t in bench.toasts), "said")
        assert bench.context.board.waiting() == []
        running = bench.context.board.running("train")
        assert running is not None and running.since is not None
        running.since = path.stat().st_ctime  # as if the document was written at that very moment
        await bench.press("ctrl+t")
        await bench.until(lambda: len(bench.context.board.waiting()) == 1, "of what is saved by now")
        bench.world.hold.set()
        await bench.idle()


async def test_a_gate_training_waits_behind_what_runs(workbench: Opener) -> None:
    async with workbench(line=True) as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "the training runs")
        await bench.press("f5")
        await bench.until(lambda: listed(bench) == [(TRAIN, "running"), ("train the gate", "waiting")], "waits")
        bench.world.hold.set()
        await bench.until(lambda: all(record.over.is_set() for record in bench.context.board.records), "all over")
        first, gate = (job.request for job in bench.jobs)
        assert isinstance(first, TrainJob) and not first.gate_only
        assert isinstance(gate, TrainJob) and gate.gate_only
        await bench.idle()
        assert {state for _, state in listed(bench)} == {"done"}


@pytest.mark.parametrize("hand", [False, True], ids=["keys", "mouse"])
async def test_waiting_jobs_change_places(workbench: Opener, hand: bool) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        bench.app.clear_notifications()
        await bench.press("down", "down")
        await bench.until(lambda: marked(bench) == JUDGE, "marked")
        await (mouse.press_button(bench, "move_job(-1)") if hand else bench.press("shift+up"))
        await bench.until(lambda: listed(bench)[1][0] == JUDGE, "earlier")
        assert marked(bench) == JUDGE, "the same job stays marked"
        await (mouse.press_button(bench, "move_job(1)") if hand else bench.press("J"))
        await bench.until(lambda: listed(bench)[1][0] == EXPORT, "later")
        bench.world.hold.set()
        await bench.idle()


async def test_a_row_that_is_drawn_anew_keeps_what_a_key_has_just_marked(workbench: Opener) -> None:
    """The list says what is highlighted by a message; a redraw may come before it."""
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        pane = bench.screen.jobs_pane
        for title in (EXPORT, JUDGE):
            pane.query_one(JobList).action_cursor_down()
            pane.draw()
            assert marked(bench) == title
        bench.world.hold.set()
        await bench.idle()


def marked(bench: Bench) -> str | None:
    record = bench.screen.jobs_pane.marked
    return record.title if record else None


async def test_the_marked_job_is_taken_out_of_the_line(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        await bench.press("down")
        await bench.until(lambda: marked(bench) == EXPORT, "marked")
        await bench.press("x")
        await bench.until(lambda: (EXPORT, "cancelled") in listed(bench), "gone")
        assert bench.context.board.running("train")
        bench.world.hold.set()
        await bench.idle()
        await bench.until(lambda: (JUDGE, "done") in listed(bench), "the others ran")
        assert [type(job.request) for job in bench.jobs] == [TrainJob, EvaluateJob]


async def test_a_line_is_paused_and_goes_on(workbench: Opener) -> None:
    async with workbench(size=(240, 40), line=True) as bench:
        await line_of_three(bench)
        await bench.press("p")
        await bench.until(lambda: listed(bench)[0] == (TRAIN, "waiting"), "stopped, and first in line")
        await bench.until(lambda: "The line is paused; p goes on." in bench.text, "said")
        assert "interrupted, goes on from there" in bench.text
        await bench.until(lambda: "p Go on" in bench.text and bench.text.count("Go on") == 2, "the keys say so, too")
        assert "Pause" not in bench.text
        bench.world.hold.set()
        await bench.press("p")
        await bench.until(lambda: "Go on" not in bench.text and bench.text.count("Pause") == 2, "as before")
        await bench.until(lambda: all(record.over.is_set() for record in bench.context.board.records), "all over")
        request = bench.jobs[1].request
        assert isinstance(request, TrainJob) and request.resume
        assert {state for _, state in listed(bench)} == {"done"}


async def test_the_report_of_a_judgement_is_found_in_the_line(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        bench.world.hold.set()
        await bench.until(lambda: all(record.over.is_set() for record in bench.context.board.records), "all over")
        await bench.idle()
        bench.panes.go_to("jobs")
        await bench.until(lambda: bench.panes.focused_pane == "jobs", "in the jobs")
        await bench.press("home")
        await bench.until(lambda: marked(bench) == JUDGE, "marked")
        await bench.press("enter")
        await bench.until(lambda: isinstance(bench.app.screen, ReportScreen) and "92%" in bench.text, "the report")


async def test_a_document_with_another_id_has_another_line(workbench: Opener, tmp_path: Path) -> None:
    async with workbench(line=True) as bench:
        text, new_id = bench.path.read_text(), fresh_dlm_id()
        bench.path.write_text(text.replace(bench.context.document.dlm_id, new_id, 1))
        await bench.until(lambda: bench.context.document.dlm_id == new_id, "read")
        await bench.press("f8")
        await bench.until(lambda: bench.context.board.records, "begun")
        await bench.idle()
    queue = QueueFile(Store(tmp_path / "home", new_id))
    assert [entry.state for entry in queue.read().entries] == ["done"]


async def test_the_jobs_of_a_document_stay_in_its_line_when_its_id_changes(workbench: Opener, tmp_path: Path) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await line_of_three(bench)
        text, old_id, new_id = bench.path.read_text(), bench.context.document.dlm_id, fresh_dlm_id()
        old, new = (QueueFile(Store(tmp_path / "home", dlm_id)) for dlm_id in (old_id, new_id))
        bench.path.write_text(text.replace(old_id, new_id, 1))
        await bench.until(lambda: bench.context.document.dlm_id == new_id, "read")
        assert listed(bench) == []
        told = next(toast for toast in bench.toasts if "another dlm_id" in toast)
        assert f"{TRAIN} stays in the line of {old_id}, 2 jobs behind it. Nobody works on it now" in told
        await until(lambda: not old.is_worked_off())
        await bench.press("ctrl+t")
        await bench.until(lambda: listed(bench) == [(TRAIN, "running")], "the new document's own")
        bench.panes.go_to("jobs")
        await bench.until(lambda: bench.panes.focused_pane == "jobs", "in the jobs")
        await bench.press("x")
        await bench.until(lambda: listed(bench) == [(TRAIN, "cancelled")], "stopped")
        assert [entry.state for entry in new.read().entries] == ["cancelled"]
        assert [(entry.state, entry.stop) for entry in old.read().entries] == [("waiting", False)] * 3
        assert not any("In force now" in toast for toast in bench.toasts)
        bench.path.write_text(text)
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        assert bench.context.board.waiting()[0].note == "interrupted, goes on from there"
        bench.world.hold.set()
        await bench.press("enter")
        await bench.until(lambda: len(listed(bench)) == 3 and {s for _, s in listed(bench)} == {"done"}, "worked off")
        await bench.idle()


async def test_an_offer_to_continue_is_of_the_document_that_was_there(workbench: Opener, tmp_path: Path) -> None:
    await interrupted_line(tmp_path)
    async with workbench(size=(120, 40), line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        text, new_id = bench.path.read_text(), fresh_dlm_id()
        bench.path.write_text(text.replace(bench.context.document.dlm_id, new_id, 1))
        await bench.until(lambda: bench.context.document.dlm_id == new_id, "read")
        await bench.press("enter")
        await bench.until(lambda: any("the document has another by now" in toast for toast in bench.toasts), "said")
        await bench.idle()
        assert bench.jobs == []


async def test_a_job_that_is_over_is_not_stopped_in_place_of_the_running_one(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await bench.press("f8")
        await bench.until(lambda: listed(bench) == [(EXPORT, "done")], "over")
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "the training runs")
        bench.panes.go_to("jobs")
        await bench.until(lambda: bench.panes.focused_pane == "jobs", "in the jobs")
        await bench.press("down")
        await bench.until(lambda: marked(bench) == EXPORT, "marked")
        await bench.press("x")
        await bench.until(lambda: any("export peft: already over" in toast for toast in bench.toasts), "said")
        assert bench.context.board.running("train")
        bench.world.hold.set()
        await bench.idle()
        assert listed(bench)[0] == (TRAIN, "done")


# ---- leaving and coming back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choice", "hand"), [("stay", False), ("stop", False), ("stay", True), ("stop", True)])
async def test_leaving_asks_whether_the_work_goes_on(
    workbench: Opener, tmp_path: Path, choice: str, hand: bool
) -> None:
    async with workbench(size=(80, 24), line=True) as bench:
        await line_of_three(bench)
        await bench.press("f10")
        await bench.until(lambda: isinstance(bench.app.screen, LeaveScreen), "asked")
        assert "2 more wait in line" in " ".join(bench.text.split())
        if hand:
            await bench.click(f"#{choice}")
        else:
            await bench.press(*(["tab"] if choice == "stop" else []), "enter")
        await bench.until(lambda: bench.app._exit, "left")
        line = queue_of(tmp_path).read()
        if choice == "stay":
            assert line.stays and line.entries[0].state == "running"
            bench.world.hold.set()
        await until(lambda: not queue_of(tmp_path).is_worked_off())
    states = [entry.state for entry in queue_of(tmp_path).read().entries]
    assert states == (["done"] * 3 if choice == "stay" else ["waiting"] * 3)


@pytest.mark.parametrize("choice", ["stay", "stop"])
async def test_a_line_that_cannot_be_told_is_not_left_in_silence(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr("dlm_tui.engine.queue_file._LOCK_SECONDS", 0.1)
    async with workbench(size=(80, 24), line=True) as bench:
        await line_of_three(bench)
        with named_lock(queue_of(tmp_path).store, "queue", 0.0):
            await choose_to_leave(bench, choice)
            await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "said")
            said = " ".join(bench.text.split())
            assert "cannot be told" in said and ("work stops" if choice == "stay" else "work may go on") in said
            assert not bench.app._exit
        await bench.press("escape")
        assert bench.app.screen is bench.screen and not queue_of(tmp_path).read().stays
        await choose_to_leave(bench, choice)
        await bench.until(lambda: bench.app._exit, "left")
        assert queue_of(tmp_path).read().stays == (choice == "stay")
        bench.world.hold.set()
        await until(lambda: not queue_of(tmp_path).is_worked_off())


async def test_who_cannot_tell_the_line_leaves_all_the_same(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm_tui.engine.queue_file._LOCK_SECONDS", 0.1)
    async with workbench(size=(80, 24), line=True) as bench:
        await line_of_three(bench)
        with named_lock(queue_of(tmp_path).store, "queue", 0.0):
            await choose_to_leave(bench, "stay")
            await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "said")
            await bench.click("#yes")
            await bench.until(lambda: bench.app._exit, "left")
        bench.world.hold.set()


async def choose_to_leave(bench: Bench, choice: str) -> None:
    await bench.press("f10")
    await bench.until(lambda: isinstance(bench.app.screen, LeaveScreen), "asked")
    await bench.click(f"#{choice}")


async def test_work_goes_on_when_the_terminal_is_gone(workbench: Opener, tmp_path: Path) -> None:
    async with workbench(line=True) as bench:
        await line_of_three(bench)
        bench.app.exit(return_code=HANG_UP)
    await until(lambda: queue_of(tmp_path).read().stays)
    bench.world.hold.set()
    await until(lambda: not queue_of(tmp_path).is_worked_off())
    assert [entry.state for entry in queue_of(tmp_path).read().entries] == ["done"] * 3


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_esc_stays(workbench: Opener) -> None:
    async with workbench(line=True) as bench:
        await line_of_three(bench)
        await bench.press("f10")
        await bench.until(lambda: isinstance(bench.app.screen, LeaveScreen), "asked")
        await bench.press("escape")
        await bench.until(lambda: bench.app.screen is bench.screen and bench.context.board.running("train"), "here")
        bench.world.hold.set()
        await bench.idle()


async def test_what_ended_while_nobody_looked_is_told_once(workbench: Opener, tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    place = {"document": str(tmp_path / "harbour.dlm"), "home": str(tmp_path / "home")}
    queue.add(TrainJob(**place), "train everything")
    queue.add(ExportJob(**place), "export peft")
    world = World()

    async def start(request: object) -> RecordedJob:
        world.fail_job = Failed(kind="OSError", text="The disk is full.") if isinstance(request, ExportJob) else None
        return RecordedJob(world, request)  # type: ignore[arg-type]

    await QueueRunner(queue, start, poll=0.01).run()
    async with workbench(size=(120, 40), line=True) as bench:
        await bench.until(lambda: any("While you were away" in toast for toast in bench.toasts), "told")
        told = next(toast for toast in bench.toasts if "While you were away" in toast)
        assert "train everything: done." in told and "export peft: failed. The disk is full." in told
        assert listed(bench) == [("export peft", "failed"), ("train everything", "done")]
        assert bench.jobs == []
    async with workbench(size=(120, 40), line=True) as bench:
        await bench.until(lambda: len(bench.context.board.records) == 2, "still in the list")
        await bench.settled()
        assert not any("While you were away" in toast for toast in bench.toasts)


async def test_what_ended_while_somebody_sat_there_is_no_news(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        await bench.press("f8")
        await bench.until(lambda: [state for _, state in listed(bench)] == ["done"], "done")
        await bench.until(lambda: all(entry.seen for entry in queue_of(bench.path.parent).read().entries), "seen")
    async with workbench(size=(120, 40), line=True) as bench:
        await bench.until(lambda: len(bench.context.board.records) == 1, "still in the list")
        await bench.settled()
        assert not any("While you were away" in toast for toast in bench.toasts)


async def interrupted_line(tmp_path: Path) -> QueueFile:
    """A line whose runner was killed in its first job."""
    queue = queue_of(tmp_path)
    place = {"document": str(tmp_path / "harbour.dlm"), "home": str(tmp_path / "home")}
    queue.add(TrainJob(**place), "train everything")
    queue.add(ExportJob(**place), "export peft")
    world = World()
    world.hold.clear()

    async def start(request: object) -> RecordedJob:
        return RecordedJob(world, request)  # type: ignore[arg-type]

    running = asyncio.ensure_future(QueueRunner(queue, start, poll=0.01).run())
    await until(lambda: queue.events(1, 1).exists() and queue.events(1, 1).stat().st_size)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [entry.state for entry in queue.read().entries] == ["running", "waiting"]
    return queue


@pytest.mark.parametrize("hand", [False, True], ids=["keys", "mouse"])
async def test_the_screen_offers_to_continue_what_was_interrupted(
    workbench: Opener, tmp_path: Path, hand: bool
) -> None:
    queue = await interrupted_line(tmp_path)
    async with workbench(size=(120, 40), line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        assert "train everything was interrupted. 1 more waits behind it." in " ".join(bench.text.split())
        await (bench.click("#yes") if hand else bench.press("enter"))
        await bench.until(lambda: len(listed(bench)) == 2 and {s for _, s in listed(bench)} == {"done"}, "worked off")
        first = bench.jobs[0].request
        assert isinstance(first, TrainJob) and first.resume
        await bench.until(lambda: any("Trained:" in toast for toast in bench.toasts), "told as one's own")
        await bench.idle()
    assert [entry.state for entry in queue.read().entries] == ["done", "done"]


async def test_the_offer_may_be_put_off(workbench: Opener, tmp_path: Path) -> None:
    await interrupted_line(tmp_path)
    async with workbench(size=(120, 40), line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        await bench.press("escape")
        bench.panes.go_to("jobs")
        await bench.until(lambda: "Nobody works the line off; p goes on." in bench.text, "said in the pane")
        assert bench.jobs == []
        await bench.until(lambda: bench.panes.focused_pane == "jobs", "in the jobs")
        await bench.press("p")
        await bench.until(lambda: len(bench.jobs) == 2, "goes on")
        await bench.until(lambda: {state for _, state in listed(bench)} == {"done"}, "worked off")
        await bench.idle()


async def test_a_store_that_cannot_be_written_runs_its_jobs_at_once(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(QueueFile, "add", refuse)
    async with workbench(line=True) as bench:
        await bench.press("f8")
        await bench.until(lambda: bench.context.board.records, "begun")
        await bench.idle()
        record: JobRecord = bench.context.board.records[0]
        assert (record.state, record.number) == ("done", None)


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("what", ["line", "leave", "offer"])
async def test_screens(
    workbench: Opener, screens: SnapshotAssertion, tmp_path: Path, size: tuple[int, int], what: str
) -> None:
    if what == "offer":
        await interrupted_line(tmp_path)
        async with workbench(size=size, line=True, wait=False) as bench:
            await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
            await bench.until(lambda: bench.context.link.ready, "ready")
            assert await quiet_text(bench) == screens
        return
    async with workbench(size=size, line=True) as bench:
        await line_of_three(bench)
        bench.app.clear_notifications()
        await bench.until(lambda: not bench.toasts, "no toast")
        if what == "leave":
            await bench.press("f10")
            await bench.until(lambda: isinstance(bench.app.screen, LeaveScreen), "asked")
        shown = await quiet_text(bench)
        bench.world.hold.set()
        assert shown == screens
        if what == "leave":
            await bench.press("escape")
        await bench.idle()


async def quiet_text(bench: Bench) -> str:
    """The screen once it has stopped changing, with a job that is held."""
    before, same = "", 0
    while same < 5:
        await bench.quiet()
        await asyncio.sleep(0.05)
        same = same + 1 if bench.text == before else 0
        before = bench.text
    return before


async def test_a_line_that_cannot_be_read_is_said(workbench: Opener, tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    queue.add(TrainJob(document=str(tmp_path / "harbour.dlm"), home=str(tmp_path / "home")), "train")
    queue.path.write_bytes(b"{half")
    async with workbench(size=(120, 40), line=True, wait=False) as bench:
        await bench.until(lambda: any("is no line of jobs" in toast for toast in bench.toasts), "said")
        assert any("queue.damaged.json" in toast for toast in bench.toasts)
        await bench.idle()


async def test_a_runner_that_starts_is_somebody_who_works(workbench: Opener) -> None:
    """Between its start and its first look at the line nobody has the line's lock."""
    started = asyncio.Event()

    class Starting:
        def poll(self) -> None:
            return None

        def leave(self) -> None:
            return None

    async def start(_: QueueFile) -> Starting:
        started.set()
        return Starting()

    async with workbench(runner_starter=start) as bench:
        await bench.press("ctrl+t")
        await started.wait()
        line = bench.controllers.queue.line
        assert line is not None
        await line.look()
        assert line.line.ahead and not line.queue.is_worked_off()
        assert bench.controllers.queue.words() == ""
