"""Settings to try: the dialog, its table, the job, the best into the document."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input

from dlm_tui.app.screens.trials import TrialsScreen
from dlm_tui.engine.protocol import SweepJob
from tests.tui.actions import trying
from tests.tui.conftest import Opener

REFUSED = (
    ("lora_r=4,abc", "lora_r=abc makes no valid document"),
    ("lora_r=4 lora_r=8", "lora_r is given twice"),
    ("lora_rank=4", "lora_rank"),
)
"""Settings that are refused as `dlm-tui sweep` refuses them, and what is told."""

SIZES = [(60, 18), (80, 24), (120, 40)]


@pytest.mark.parametrize("size", SIZES, ids=[f"{width}x{height}" for width, height in SIZES])
async def test_how_it_looks(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await trying(bench)
        assert await bench.settled() == screens


async def test_what_is_typed_is_tried_as_a_job_and_what_is_wrong_is_said(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        bench.screen.action_try_settings()
        await bench.until(lambda: isinstance(bench.app.screen, TrialsScreen), "dialog")
        dialog = bench.app.screen
        await bench.press("ctrl+g")
        await bench.until(lambda: "Nothing is not PATH=VALUE,VALUE" in bench.text, "nothing typed")
        for settings, told in REFUSED:
            dialog.query_one("#trials-settings", Input).value = settings
            await bench.press("ctrl+g")
            await bench.until(lambda told=told: told in " ".join(bench.text.split()), "refused")
        assert bench.app.screen is dialog and bench.jobs == []
        for folds in ("1", "٣", "9" * 5000):
            dialog.query_one("#trials-folds", Input).value = "5"
            dialog.query_one("#trials-settings", Input).value = "nothing"
            await bench.press("ctrl+g")
            await bench.until(lambda: "nothing is not PATH=VALUE" in " ".join(bench.text.split()), "no setting")
            dialog.query_one("#trials-settings", Input).value = "learning_rate=1e-4,3e-4 gate.entropy_lambda=0,0.01"
            dialog.query_one("#trials-folds", Input).value = folds
            await bench.press("ctrl+g")
            await bench.until(lambda: "At least two folds" in bench.text, "one fold")
        dialog.query_one("#trials-folds", Input).value = "3"
        await bench.press("ctrl+g")
        await bench.until(lambda: any("held-out loss 1.87" in toast for toast in bench.toasts), "tried")
        wanted = [job.request for job in bench.jobs if isinstance(job.request, SweepJob)]
        assert [(one.settings, one.folds, one.write) for one in wanted] == [
            (["learning_rate=1e-4,3e-4", "gate.entropy_lambda=0,0.01"], 3, False)
        ]
