"""The train dialog: each adapter's kind, the plan of it, what is refused, and what is remembered."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Checkbox, Input

from dlm_tui.app.controllers import train_choice
from dlm_tui.app.screens.run_details import RunDetailsScreen
from dlm_tui.app.screens.sweep import SweepScreen
from dlm_tui.app.screens.train import TrainScreen
from dlm_tui.document import load
from dlm_tui.engine.protocol import TrainJob
from dlm_tui.store import AdapterKind, Store, TrainingRecord, current_version
from dlm_tui.store.adapter_kind import write_training_record
from dlm_widgets.pick_list import PickList
from tests.adapter_versions import finished_training
from tests.tui.conftest import Bench, Opener
from tests.tui.document import write_document
from tests.tui.recorded import NAMES, World, train_report

PAIR = "::preference#tone::\n### Prompt\nI am late.\n### Chosen\nNo harm done, dear friend!\n### Rejected\nAgain?\n"
KIND = AdapterKind(parameterization="pissa", selection="wanda", rank=6, signed=True, coefficient=2.0)
TAIL = {f"model.layers.{layer}.self_attn.q_proj": 0.1 + 0.1 * layer for layer in range(3)}


@pytest.fixture
def with_pair(tmp_path: Path) -> Path:
    """The document with a preference pair of `tone`."""
    path = write_document(tmp_path)
    path.write_text(path.read_text() + PAIR)
    return path


def remembered(path: Path, home: Path, kind: AdapterKind = KIND) -> None:
    """A finished training in which `tone` had this kind."""
    store = Store(home, load(path).dlm_id).create()
    finished_training(store, *NAMES, run=1)
    version = current_version(store, "tone")
    assert version is not None
    words = "pissa wanda r6 \u00b12"
    write_training_record(version.path, TrainingRecord(kind=kind, words=words, tail_depth=TAIL))


async def opened(bench: Bench) -> TrainScreen:
    await bench.press("alt+p")
    await bench.until(lambda: isinstance(bench.app.screen, TrainScreen), "train dialog")
    await bench.idle()
    assert isinstance(bench.app.screen, TrainScreen)
    return bench.app.screen


async def in_the_runs(bench: Bench) -> None:
    bench.panes.show_page("runs")
    await bench.until(lambda: bench.panes.focus_pane("runs") and bench.panes.focused_pane == "runs", "in the runs")


async def at_tone(bench: Bench, dialog: TrainScreen) -> None:
    dialog.query_one("#train-adapters", PickList).highlighted = 1
    await bench.idle()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
async def test_the_plan_of_what_is_chosen(
    workbench: Opener, with_pair: Path, size: tuple[int, int], screens: SnapshotAssertion
) -> None:
    async with workbench(path=with_pair, size=size) as bench:
        dialog = await opened(bench)
        await at_tone(bench, dialog)
        dialog.query_one("#train-kind", PickList).highlighted = 2
        dialog.query_one("#train-rank", Input).value = "6"
        dialog.query_one("#train-signed", Checkbox).value = True
        await bench.idle()
        dialog.query_one("#train-coefficient", Input).value = "2"
        await bench.until(lambda: "pissa wanda r6 \u00b12: sft 3, signed 3 steps" in bench.text, "planned")
        assert await bench.settled() == screens
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.jobs, "the job")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.adapters is None and request.calibration is None
        assert request.choices.of("tone") == KIND
        assert request.choices.of("style") == AdapterKind(parameterization="lora", rank=4, signed=False)


async def test_only_what_is_marked_is_trained(workbench: Opener) -> None:
    async with workbench() as bench:
        dialog = await opened(bench)
        await bench.press("space")
        await bench.until(lambda: "\u2714 \u25cf knowledge" not in bench.text, "out")
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.jobs, "the job")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.adapters == ["tone", "style"]
        assert set(request.choices.by_name) == {"tone", "style"}
        assert not dialog.is_attached


async def test_what_cannot_be_trained_so_is_said_and_not_started(workbench: Opener, with_pair: Path) -> None:
    async with workbench(path=with_pair, size=(120, 40)) as bench:
        dialog = await opened(bench)
        dialog.query_one("#train-signed", Checkbox).value = True  # knowledge has no pairs
        await bench.until(lambda: "adapter 'knowledge' has no preference pairs" in bench.text, "refused")
        await bench.press("ctrl+g")
        dialog.query_one("#train-signed", Checkbox).value = False
        dialog.query_one("#train-rank", Input).value = "many"
        await bench.until(lambda: "Rank is a whole number" in bench.text, "no rank")
        await bench.press("ctrl+g")
        dialog.query_one("#train-rank", Input).value = "4"
        for row in range(3):
            dialog.query_one("#train-adapters", PickList).highlighted = row
            await bench.idle()
            dialog.action_mark()
        await bench.until(lambda: "No adapter is chosen." in bench.text, "nobody")
        await bench.press("ctrl+g")
        await bench.idle()
        assert bench.app.screen is dialog and bench.jobs == []


async def test_the_kind_of_before_is_where_the_dialog_starts(
    workbench: Opener, with_pair: Path, tmp_path: Path
) -> None:
    remembered(with_pair, tmp_path / "home")
    async with workbench(path=with_pair, size=(120, 40)) as bench:
        dialog = await opened(bench)
        assert "tone pissa wanda r6 \u00b12" in bench.text
        await at_tone(bench, dialog)
        assert dialog.query_one("#train-kind", PickList).highlighted == 2
        assert dialog.query_one("#train-rank", Input).value == "6"
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.jobs, "the job")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.choices.of("tone") == KIND


async def test_saved_prompts_calibrate(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path)
    saved = tmp_path / "harbour.prompts.json"
    saved.write_text('{"mine": ["One?", "Two?"]}')
    async with workbench(path=path) as bench:
        dialog = await opened(bench)
        dialog.query_one("#train-calibrate", Checkbox).value = True
        await bench.until(lambda: "a prompt set calibrates the selections" in bench.text, "no selection looks at it")
        dialog.query_one("#train-kind", PickList).highlighted = 3
        await bench.until(lambda: "pissa act_only r4" in bench.text and "a prompt set" not in bench.text, "one does")
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.jobs, "the job")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.calibration == str(saved)


async def test_the_dialog_waits_for_a_running_training(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "training")
        await bench.press("alt+p")
        await bench.until(lambda: any("already running" in toast for toast in bench.toasts), "said")
        assert bench.app.screen is bench.screen
        bench.world.hold.set()
        await bench.idle()


async def test_the_reading_of_a_selection_is_said_after_the_training(workbench: Opener) -> None:
    world = World()
    report = train_report()
    for name, depth in (("tone", 0.3), ("style", 0.01)):
        outcome = report.adapters[name]
        report.adapters[name] = type(outcome)(
            run_id=1, version=1, steps=4, train_loss=0.5, val_loss=None, selection="wanda", tail_depth={"a": depth}
        )
    world.train_report = report
    async with workbench(world=world, size=(120, 40)) as bench:
        await bench.press("ctrl+t")
        await bench.until(lambda: any("Trained: " in toast for toast in bench.toasts), "trained")
        told = "\n".join(bench.toasts)
        assert "tone: tail depth 0.300 over 1 layers, above 0.05: wanda looks beyond" in told
        assert "The selection style: tail depth 0.010 over 1 layers, not above 0.05: wanda collapsed" in told


async def test_the_runs_tell_the_kinds_and_their_details(
    workbench: Opener, with_pair: Path, tmp_path: Path, screens: SnapshotAssertion
) -> None:
    remembered(with_pair, tmp_path / "home")
    async with workbench(path=with_pair, size=(120, 40)) as bench:
        await in_the_runs(bench)
        await bench.until(lambda: "pissa wanda r6 \u00b12, tail 0.20" in " ".join(bench.text.split()), "the kind")
        await bench.press("enter")
        await bench.until(lambda: isinstance(bench.app.screen, RunDetailsScreen), "details")
        assert "tail depth 0.200 over 3 layers, above 0.05" in bench.text
        assert "self_attn.q_proj: 0.10 0.20 0.30" in bench.text
        assert await bench.settled() == screens


async def test_no_details_without_a_training(workbench: Opener) -> None:
    async with workbench() as bench:
        await in_the_runs(bench)
        await bench.press("enter")
        await bench.until(lambda: any("No adapter is trained yet" in toast for toast in bench.toasts), "said")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
async def test_a_sweep_follows_both_answers_of_a_pair(
    workbench: Opener, with_pair: Path, size: tuple[int, int], screens: SnapshotAssertion
) -> None:
    async with workbench(path=with_pair, size=size) as bench:
        bench.screen.prompt_pane.set_text("what is the tide")
        await bench.until(lambda: bench.routing.routed, "routed")
        await bench.leave_prompt()
        bench.screen.desk.strips.cursor = 1
        await bench.press("w")
        await bench.until(lambda: isinstance(bench.app.screen, SweepScreen) and "word5" in bench.text, "swept")
        await bench.until(lambda: "chosen 8.00  rejected -12.00" in bench.text, "the curves")
        assert "The pair is the document's at: I am late." in bench.text
        assert "-40.00  -40.00 -2.0 word0" in bench.text
        assert "-24.00  -64.00 +2.0 word0" in bench.text or size == (80, 24)
        assert await bench.settled() == screens
        lines = [line.plain for line in bench.app.screen._rows().split("\n")]
        assert all(line[:3] in ("", "   ") or line[0] in "+-" for line in lines)
        assert size == (120, 40) or any(line.startswith(" " * 37 + "-2.0 word3") for line in lines), "below itself"


@pytest.mark.parametrize("key", ["escape", "f10"])
async def test_a_plan_that_comes_when_the_dialog_was_left(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    began, left, plan = threading.Event(), threading.Event(), train_choice._planned

    def slow(*given: Any) -> Any:
        began.set()
        left.wait(30)
        return plan(*given)

    monkeypatch.setattr(train_choice, "_planned", slow)
    async with workbench() as bench:
        await bench.press("alt+p")
        await bench.until(began.is_set, "the plan is being made")
        dialog = bench.app.screen
        assert isinstance(dialog, TrainScreen) and dialog.is_open
        cancel, drawable = dialog.on_closed, []
        assert cancel is not None
        dialog.on_closed = lambda: (drawable.append(len(dialog.query("#train-plan"))), cancel())
        await bench.press(key)
        await bench.until(lambda: not dialog.is_open, "left")
        assert drawable == [1], "the work is stopped, once, before what it draws on goes"
        left.set()
        await bench.idle()
        assert bench.screen.failures == []


@pytest.mark.parametrize(("steps", "words"), [({"sft": 1}, "sft 1 step"), ({"sft": 1, "dpo": 1}, "sft 1, dpo 1 steps")])
async def test_one_step_is_one(workbench: Opener, steps: dict[str, int], words: str) -> None:
    phases = [SimpleNamespace(name=name) for name in steps]
    adapter = SimpleNamespace(name="tone", words="lora r4", phases=phases, phase_rows=lambda phase: phase)
    plan = SimpleNamespace(steps=lambda rows, phase: steps[phase.name])
    async with workbench() as bench:
        row = bench.controllers.train_choice._row(plan, adapter, 4, 4)  # type: ignore[arg-type]
        assert row.plain.endswith(f"lora r4: {words}")
