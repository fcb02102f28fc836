"""The train dialog on real children: a signed PiSSA adapter, its sweep, and a training of it that breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import WaitForScreenTimeout
from textual.widgets import Checkbox, Input

from dlm_tui.app.launch import make_app
from dlm_tui.app.screens.sweep import SweepScreen
from dlm_tui.app.screens.train import TrainScreen
from dlm_tui.store import AdapterKind, current_version, read_training_record
from dlm_widgets.pick_list import PickList
from tests.tui.test_real import has_base, write

PAIR = "::preference#tide::\n### Prompt\nIs it late?\n### Chosen\nNot at all, dear friend.\n### Rejected\nGo away.\n"
FAULT = """
import pathlib

import dlm_tui.training.pissa as pissa

trains = pissa.finetune_pissa

def finetune_pissa(*given, **named):
    if pathlib.Path({flag!r}).exists():
        raise OSError(28, "No space left on device")
    return trains(*given, **named)

pissa.finetune_pissa = finetune_pissa
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
async def test_a_signed_adapter_is_chosen_trained_swept_and_kept_when_a_training_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    path = write(tmp_path)
    text = path.read_text().replace("num_epochs: 1", "num_epochs: 4")
    path.write_text(text.replace("tide: {lora_r: 2}", "tide: {lora_r: 2, learning_rate: 0.1}") + PAIR)
    app = make_app(path, tmp_path / "home", None)
    async with app.run_test(size=(120, 40)) as pilot:

        async def until(condition: Callable[[], Any], what: str) -> None:
            deadline = asyncio.get_running_loop().time() + 800.0
            while not condition():
                assert asyncio.get_running_loop().time() < deadline, what
                await pilot.pause(0.02)

        def toasts(words: str) -> list[Any]:
            return [toast for toast in app._notifications if words in f"{toast.title} {toast.message}"]

        await until(lambda: app.is_open and app.workbench.context.link.ready, "the engine opens the document")
        bench = app.workbench
        await pilot.press("alt+p")
        await until(lambda: isinstance(app.screen, TrainScreen) and app.screen.is_mounted, "the dialog")
        dialog = app.screen
        dialog.query_one("#train-kind", PickList).highlighted = 4
        dialog.query_one("#train-rank", Input).value = "24"
        dialog.query_one("#train-signed", Checkbox).value = True
        plan = "pissa cho_rej_min_std r24 ±1: sft"
        await until(lambda: plan in str(dialog.query_one("#train-plan").render()), "planned")
        await pilot.press("ctrl+g")
        await until(lambda: bench.context.trained_names == ("tide", "bread"), "trained")
        await until(lambda: toasts("tide: tail depth "), "the reading of the selection is said")
        version = current_version(bench.context.store, "tide")
        assert version is not None
        record = read_training_record(version.path)
        kind = AdapterKind(parameterization="pissa", selection="cho_rej_min_std", rank=24, signed=True, coefficient=1.0)
        assert record.kind == kind and len(record.tail_depth) > 10
        await until(lambda: bench.runs._kinds.get("tide", "").startswith(record.words), "the runs pane has the kind")

        bench.prompt_pane.set_text("Is it late?")
        await until(lambda: bench.controllers.routing.routed, "routed")
        await until(lambda: bench.panes.focus_pane("desk") and bench.panes.focused_pane == "desk", "at the desk")
        await pilot.press("w")
        await until(lambda: isinstance(app.screen, SweepScreen), "the sweep")
        sweep = app.screen
        assert isinstance(sweep, SweepScreen)
        await until(lambda: len(sweep._sides) == 2 and sweep.query("#sweep-chart HistoryChart"), "both sides are drawn")
        chosen, rejected = sweep._sides["chosen"], sweep._sides["rejected"]
        assert chosen["+1.0"] - rejected["+1.0"] > chosen["-1.0"] - rejected["-1.0"] + 1.0
        await pilot.press("escape")

        flag.touch()
        await pilot.press("ctrl+t")
        await until(lambda: toasts("Training failed; the adapters before it stay in force"), "the failure is said")
        assert toasts("no space is left") and current_version(bench.context.store, "tide") == version
        assert bench.context.trained_names == ("tide", "bread") and bench.failures == []
        with contextlib.suppress(WaitForScreenTimeout):
            await pilot.press("f10")
