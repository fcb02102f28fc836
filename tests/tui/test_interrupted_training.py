"""A training of the command line that was killed is offered by the screen, and goes on as it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.document import TrainerSettings, load
from dlm_tui.engine.protocol import TrainJob
from dlm_tui.store import AdapterKind, KindChoices, Store, run_lock
from dlm_tui.store.checkpoints import (
    STATE,
    Asked,
    CheckpointState,
    checkpoint_folder,
    checkpoint_name,
    new_checkpoint,
)
from tests.tui.conftest import Opener
from tests.tui.document import write_document

ASKED = Asked(
    threads=2,
    trainer=TrainerSettings(packing=False, rslora=True),
    adapters=["tone"],
    choices=KindChoices(every=AdapterKind(rank=3)),
    calibration="/prompts/x.prompts.json",
    base="/models/other",
    checkpoint_steps=5,
)


def killed_training(tmp_path: Path, asked: Asked | None) -> Store:
    """The store of the document, with what a killed `dlm-tui train` leaves there."""
    write_document(tmp_path)
    store = Store(tmp_path / "home", load(tmp_path / "harbour.dlm").dlm_id)
    state = CheckpointState(
        fingerprint="f", run_id=1, step=40, total=90, at="2026-01-01T00:00:00Z", phase="sft", asked=asked
    )
    with new_checkpoint(checkpoint_folder(store, "tone"), checkpoint_name(40), state):
        pass
    return store


@pytest.mark.parametrize("hand", [False, True], ids=["keys", "mouse"])
async def test_it_is_offered_and_goes_on_as_it_was_asked_for(workbench: Opener, tmp_path: Path, hand: bool) -> None:
    killed_training(tmp_path, ASKED)
    async with workbench(size=(120, 40), line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        assert "A training was interrupted: tone at step 40 of 90." in " ".join(bench.text.split())
        await (bench.click("#yes") if hand else bench.press("enter"))
        await bench.until(lambda: bench.jobs, "goes on")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.resume
        assert (request.adapters, request.choices, request.trainer) == (ASKED.adapters, ASKED.choices, ASKED.trainer)
        assert (request.calibration, request.base, request.checkpoint_steps) == (ASKED.calibration, ASKED.base, 5)
        await bench.idle()


async def test_of_an_older_program_it_goes_on_as_a_training_of_everything(workbench: Opener, tmp_path: Path) -> None:
    killed_training(tmp_path, None)
    async with workbench(line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        await bench.press("enter")
        await bench.until(lambda: bench.jobs, "goes on")
        request = bench.jobs[0].request
        assert isinstance(request, TrainJob) and request.resume and request.adapters is None
        await bench.idle()


async def test_not_now_leaves_it(workbench: Opener, tmp_path: Path) -> None:
    store = killed_training(tmp_path, ASKED)
    async with workbench(line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        await bench.press("escape")
        await bench.until(lambda: bench.app.screen is bench.screen, "back")
        assert bench.jobs == []
        await bench.idle()
    assert (checkpoint_folder(store, "tone") / checkpoint_name(40) / STATE).is_file()


async def test_a_training_that_runs_elsewhere_is_not_offered(workbench: Opener, tmp_path: Path) -> None:
    store = killed_training(tmp_path, ASKED)
    with run_lock(store):
        async with workbench(line=True) as bench:
            await bench.idle()
            await bench.settled()
            assert bench.app.screen is bench.screen and bench.jobs == []


async def test_what_was_declined_is_offered_again_only_on_request(workbench: Opener, tmp_path: Path) -> None:
    killed_training(tmp_path, ASKED)
    async with workbench(line=True, wait=False) as bench:
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        await bench.press("escape")
        await bench.until(lambda: bench.app.screen is bench.screen, "back")
        await bench.idle()
    async with workbench(line=True) as bench:
        await bench.idle()
        await bench.settled()
        assert bench.app.screen is bench.screen and bench.jobs == []
        bench.screen.controllers.queue.continue_training()
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "offered")
        await bench.press("enter")
        await bench.until(lambda: bench.jobs, "goes on")
        assert isinstance(bench.jobs[0].request, TrainJob) and bench.jobs[0].request.resume
        await bench.idle()
