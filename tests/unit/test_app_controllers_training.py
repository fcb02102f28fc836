"""Training, comparison, labels, exports and the document without a screen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.app.screens.label import Label
from dlm_tui.app.state import ExportSettings
from dlm_tui.document import fresh_dlm_id, load
from dlm_tui.document.watch import Change
from dlm_tui.engine.protocol import Drift, Event, ExportJob, Failed, GateTrained, Reload, Stopped, TrainGate, TrainJob
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import MetricsReader, commit_version, new_version
from tests.tui.recorded import World, train_report
from tests.unit.app_controllers import Bench, running


async def test_a_training_swaps_the_adapters_in_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, world=World(trained=False)) as bench:
        bench.controllers.training.start(["tone"])
        await bench.ui.settled()
        assert isinstance(bench.jobs[0].request, TrainJob) and bench.jobs[0].request.adapters == ["tone"]
        assert bench.requests(Reload) and bench.context.trained_names == ("knowledge", "tone", "style")
        assert bench.ui.said[-1].startswith("Trained: done in")
        assert len(bench.runs.calls["add_loss"]) == 4
        assert len(bench.context.state.trained_sections) == len(bench.context.document.sections)


def commit(bench: Bench, names: Sequence[str]) -> None:
    """What a training job does to the store."""
    store = bench.context.store.create()
    for name in names:
        version = new_version(store, name)
        (version.path / "adapter_config.json").write_text("{}")
        commit_version(store, version)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            Failed(kind="JobGone", text="the job ended by SIGKILL"),
            "error: Training broke off after the new adapters were in force the job ended by SIGKILL. "
            "In force now: tone version 1, style version 1.",
        ),
        (
            Stopped(reason="cancelled", text="stopped while the gate trained"),
            "warning: Stopped after the new adapters were in force In force now: tone version 1, style version 1.",
        ),
    ],
    ids=["failed", "stopped"],
)
async def test_the_store_says_what_is_in_force_however_a_training_ended(tmp_path: Path, end: Event, said: str) -> None:
    async with running(tmp_path, world=World(trained=False)) as bench:
        bench.world.train_end = end
        bench.world.on_trained = lambda: commit(bench, ["tone", "style"])
        bench.controllers.training.start()
        await bench.ui.settled()
        assert bench.ui.said[-1] == said and bench.ui.lasting == [said]
        assert bench.requests(Reload), "the engine takes in what the store has"
        assert len(bench.context.state.trained_sections) == len(bench.context.document.sections)
        if isinstance(end, Stopped):
            assert bench.context.board.records[0].summary.endswith("stopped while the gate trained")


async def test_a_training_that_failed_before_the_commit_leaves_everything(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.train_end = Failed(kind="Diverged", text="the sft loss became nan")
        bench.controllers.training.start()
        await bench.ui.settled()
        assert bench.ui.said[-1] == (
            "error: Training failed; the adapters before it stay in force the sft loss became nan"
        )
        assert not bench.requests(Reload) and not bench.ui.lasting


async def test_a_cold_start_stays_on_the_screen_until_it_is_read(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.train_report = train_report(mode="uniform", reason="Sections still needed: tone 2.")
        bench.controllers.training.start()
        await bench.ui.settled()
        assert bench.ui.lasting == ["warning: The gate Sections still needed: tone 2."]
        await bench.controllers.interrupts.escape()
        assert bench.ui.lasting == []


@pytest.mark.parametrize(("mode", "kind"), [("uniform", "warning"), ("diverged", "error")])
async def test_the_gate_alone_says_cold_start_and_divergence(tmp_path: Path, mode: str, kind: str) -> None:
    async with running(tmp_path) as bench:
        bench.world.gate_end = GateTrained(
            mode=mode, reason="What to do.", run_id=4, loss=None, entropy=None, mean_weights={}, seconds=0.1
        )
        bench.controllers.training.start_gate()
        await bench.ui.settled()
        (said,) = bench.ui.lasting
        assert said.startswith(kind) and "What to do." in said and said == bench.ui.said[-1]


async def test_one_training_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.hold.clear()
        bench.controllers.training.start()
        while not bench.context.board.running("train"):
            await asyncio.sleep(0)
        bench.controllers.training.start()
        bench.controllers.training.start_gate()
        assert bench.ui.said == ["warning: A training is already running; it is in the jobs pane."] * 2
        assert bench.pages.page == "jobs" and len(bench.jobs) == 1
        for _ in range(3):  # out of the prompt, a warning, stopped
            await bench.controllers.interrupts.escape()
        await bench.ui.settled()
        assert bench.context.board.records[0].state == "cancelled"


async def test_a_retrained_gate_is_compared_on_saved_and_recent_prompts(tmp_path: Path) -> None:
    (tmp_path / "harbour.prompts.json").write_text(json.dumps({"mine": ["please say hello", "rime me a mast"]}))
    async with running(tmp_path) as bench:
        await bench.type("what is high water")
        before = dict(bench.controllers.routing.weights or {})
        bench.controllers.training.start_gate()
        await bench.ui.settled()
        moved = bench.controllers.comparison.moved
        assert [(change.text, change.saved) for change in moved] == [
            ("please say hello", True),
            ("rime me a mast", True),
            ("what is high water", False),
        ]
        assert moved[2].before == before and moved[2].after == bench.controllers.routing.weights != before
        assert bench.controllers.routing.ghost == before
        await bench.type("another")
        assert bench.controllers.routing.ghost is None


async def label(bench: Bench, adapter: str) -> None:
    data = bench.context.setup.path.read_bytes()
    await bench.controllers.labelling.add(
        Label(adapter, "prose", "please", hashlib.sha256(data).hexdigest(), ""), "please"
    )
    await bench.ui.settled()


async def test_a_label_is_added_trained_on_and_taken_back(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        path = bench.context.setup.path
        original = path.read_bytes()
        await bench.type("please")
        await label(bench, "tone")
        assert b"::prose#tone::" in path.read_bytes() and len(bench.requests(TrainGate)) == 1
        assert bench.ui.said[-1].startswith("Labelled as tone Added at line ")
        bench.controllers.changes.undo()
        await bench.ui.settled()
        assert path.read_bytes() == original and len(bench.requests(TrainGate)) == 2
        bench.controllers.changes.undo()
        await bench.ui.settled()
        assert bench.ui.said[-1] == "warning: Nothing in the document was changed by this program."


async def test_a_label_never_overwrites_a_newer_save(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        path = bench.context.setup.path
        seen = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_bytes(path.read_bytes() + b"\nSaved meanwhile by somebody else.\n")
        await bench.controllers.labelling.add(Label("tone", "prose", "please", seen, ""), "please")
        await bench.ui.settled()
        text = path.read_bytes()
        assert b"Saved meanwhile by somebody else." in text and text.rstrip().endswith(b"please")
        assert bench.ui.said[-1].startswith("Labelled as tone")


async def test_an_export_uses_the_settings_of_last_time(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.controllers.export.open()
        bench.ui.choose(ExportSettings(target="ollama", mix="tone:-0.5"))
        await bench.ui.settled()
        bench.controllers.export.start()
        await bench.ui.settled()
        first, second = (job.request for job in bench.jobs)
        assert isinstance(first, ExportJob) and (first.target, first.signed) == ("ollama", True)
        assert first == second
        assert bench.context.state.last_export and bench.context.state.last_export.startswith("vllm serve")


async def opening_again(bench: Bench) -> None:
    """The engine has not opened the document yet, as right behind a start."""
    bench.world.measuring = asyncio.Event()
    bench.context.link.begin_anew()
    async with asyncio.timeout(30):
        while bench.context.opened is not None or bench.context.link.state.phase != "loading":
            await asyncio.sleep(0)


async def test_what_keeps_an_export_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, world=World(trained=False)) as bench:
        bench.world.hold.clear()
        bench.controllers.training.start()
        while bench.context.board.running("train") is None:
            await asyncio.sleep(0)
        bench.controllers.export.start()
        while not any("nothing to export" in text for text in bench.ui.said):
            await asyncio.sleep(0)
        assert "There is nothing to export yet: the adapters are in training." in bench.ui.said[-1]
        bench.world.hold.set()
        await bench.ui.settled()

        async def denied(_: object) -> tuple[str, ...]:
            raise PermissionError(13, "Permission denied", str(tmp_path))

        monkeypatch.setattr(type(bench.context), "names_in_force", denied)
        bench.controllers.export.start()
        await bench.ui.settled()
        assert str(tmp_path) in bench.ui.said[-1] and "Errno" not in bench.ui.said[-1]


async def test_while_the_engine_opens_the_store_says_what_can_be_exported(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await opening_again(bench)
        bench.controllers.export.start()
        await bench.ui.settled()
        assert "There is nothing to export yet" in bench.ui.said[-1] and bench.jobs == []
        commit(bench, ["tone"])
        bench.controllers.export.start()
        await bench.ui.settled()
        assert [type(job.request) for job in bench.jobs] == [ExportJob]
        bench.controllers.set_running.open("none")
        await bench.ui.settled()
        assert "tone" in bench.ui.dialogs[-1]._views


async def test_a_label_says_that_the_engine_is_not_ready_and_not_that_there_is_no_gate(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("please")
        await opening_again(bench)
        await label(bench, "tone")
        told = next(said for said in bench.ui.said if said.startswith("Labelled as tone"))
        assert "as the engine is not ready; F5 trains it then" in told and "no gate" not in told


async def test_what_is_wrong_with_a_save_ends_before_the_next_sentence(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        for said in ("No such file or directory", "No such file or directory: did you mean b.dlm?"):
            await bench.controllers.documents.take(Change(None, DlmTuiError(said), 0.0))
        shown = [text for text, _ in bench.outline.calls["show_error"]]
        assert shown == [
            "No such file or directory. The last good state is shown.",
            "No such file or directory: did you mean b.dlm? The last good state is shown.",
        ]


async def test_a_broken_save_keeps_the_last_good_document_and_training_waits(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        good = bench.context.document
        await bench.controllers.documents.take(Change(None, DlmTuiError("line 3: not YAML."), 0.0))
        assert bench.context.document is good and bench.context.document_error == "line 3: not YAML."
        assert bench.outline.calls["show_error"][-1] == ("line 3: not YAML. The last good state is shown.", 1)
        bench.controllers.training.start()
        assert "training starts with the next good save" in bench.ui.said[-1] and bench.jobs == []
        await bench.controllers.documents.take(Change(good, None, 0.0))
        await bench.ui.settled()
        assert bench.context.document_error is None and bench.requests(Reload) and len(bench.jobs) == 1


async def test_a_training_that_waits_for_a_good_save_is_not_one_of_another_document(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        good, documents = bench.context.document, bench.controllers.documents
        await documents.take(Change(None, DlmTuiError("there is no such file."), 0.0))
        bench.controllers.training.start()
        path = bench.context.setup.path
        path.write_text(path.read_text().replace(good.dlm_id, fresh_dlm_id(), 1))
        await documents.take(Change(load(path), None, 0.0))
        assert "warning: Training does not start The document has another dlm_id; ^t trains" in bench.ui.said[-1]
        await documents.take(Change(good, None, 0.0))
        await bench.ui.settled()
        assert bench.jobs == [], "nor does it start when the first one is back"


async def test_a_save_while_the_engine_reads_the_document_is_read_once_it_can_be(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.measuring = asyncio.Event()
        bench.engines[-1].die()
        async with asyncio.timeout(30):
            while bench.context.link.state.phase != "loading":
                await asyncio.sleep(0)
        await bench.controllers.documents.take(Change(bench.context.document, None, 0.0))
        assert bench.requests(Reload) == []
        bench.world.measuring.set()
        async with asyncio.timeout(30):
            while not (bench.context.link.ready and bench.requests(Reload)):
                await asyncio.sleep(0)
        await bench.ui.settled()
        assert len(bench.requests(Reload)) == 1, "once"


async def test_a_history_that_takes_long_to_read_is_read_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as bench:
        history, go, begun = bench.controllers.history, threading.Event(), []
        overview = MetricsReader.gate_overview

        def slow(*given: Any) -> Any:
            begun.append(1)
            go.wait(30)
            return overview(*given)

        await bench.ui.settled()
        shown = len(bench.runs.calls["show_history"])
        monkeypatch.setattr(MetricsReader, "gate_overview", slow)
        history.show_again()
        async with asyncio.timeout(30):
            while not begun:
                await asyncio.sleep(0)
        for _ in range(5):
            history.poll()
        history.show_again()
        assert len(begun) == 1
        go.set()
        await bench.ui.settled()
        assert len(bench.runs.calls["show_history"]) == shown + 1
        history.poll()  # what was asked for meanwhile is not forgotten
        await bench.ui.settled()
        assert len(bench.runs.calls["show_history"]) == shown + 2 and len(begun) == 2
        history.poll()
        await bench.ui.settled()
        assert len(begun) == 2


async def test_a_report_needs_a_trained_gate(tmp_path: Path) -> None:
    async with running(tmp_path, world=World(trained=False)) as bench:
        await bench.controllers.reports.drift()
        assert "This needs a trained gate" in bench.ui.said[-1]
        assert bench.requests(Drift) == [] and bench.ui.dialogs == []


async def test_leaving_asks_while_a_job_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.hold.clear()
        bench.controllers.training.start()
        while not bench.context.board.running("train"):
            await asyncio.sleep(0)
        bench.controllers.interrupts.quit()
        bench.ui.choose(False)
        assert not bench.ui.left
        bench.controllers.interrupts.quit()
        bench.ui.choose(True)
        assert bench.ui.left


async def test_a_dead_engine_is_said_and_the_next_one_routes_again(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        back = asyncio.Event()
        bench.controllers.engine.ready.connect(back.set)
        bench.engines[0].die()
        await back.wait()
        await bench.ui.settled()
        assert any("The engine is gone; your prompt is kept" in said for said in bench.ui.said)
        assert bench.controllers.routing.weights == bench.engines[1].weights("what is")
