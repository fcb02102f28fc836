"""The screen on the real engine and real jobs, with the embedded base: type, train, see the bars, kill the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import WaitForScreenTimeout

from dlm_tui.app.launch import make_app
from dlm_tui.assets import asset
from dlm_tui.errors import DlmTuiError

HEAD = """---
dlm_id: 01HZ4X7TGZM3J1A2B3C4D5E6F8
dlm_version: 15
base_model: pocket
training:
  num_epochs: 1
  adapters:
    tide: {lora_r: 2}
    bread: {lora_r: 2}
  gate:
    enabled: true
    steps: 60
    cold_start_floor: 4
---
"""


def write(folder: Path) -> Path:
    parts = [HEAD]
    for index in range(4):
        parts.append(f"::instruction#tide::\n### Q\nWhen does the tide reach post {index}?\n### A\nAt {index}.\n\n")
        parts.append(f"::instruction#bread::\n### Q\nHow much flour for {index} loaves?\n### A\nTake {index} cups.\n\n")
    path = folder / "small.dlm"
    path.write_text("".join(parts))
    return path


def has_base() -> bool:
    try:
        return (asset("base") / "model.safetensors").exists()
    except DlmTuiError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
async def test_type_train_see_answer_kill_and_return(tmp_path: Path) -> None:
    app = make_app(write(tmp_path), tmp_path / "home", None)

    async def until(condition: Callable[[], Any], what: str, seconds: float = 400.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, what
            await pilot.pause(0.02)

    async with app.run_test(size=(100, 30)) as pilot:
        await until(lambda: app.is_open and app.workbench.link.ready, "the engine opens the document")
        bench = app.workbench
        assert bench.trained_names == ()
        await pilot.press("ctrl+t")
        await until(lambda: bench.trained_names == ("tide", "bread"), "trained")
        assert bench.board.records[0].state == "done", bench.board.records[0].summary
        bench.prompt_pane.set_text("When does the tide reach post 2?")
        await until(lambda: bench.routed and bench.routed.prompt == bench.prompt_pane.text, "routed")
        weights = dict(bench.weights or {})
        assert weights["tide"] > weights["bread"] and abs(sum(weights.values()) - 1) < 1e-5
        bench.prompt_pane.set_text("How much flour for 2 loaves?")
        await until(lambda: bench.routed and bench.routed.prompt == bench.prompt_pane.text, "routed again")
        assert dict(bench.weights or {})["bread"] > 0.5
        await pilot.press("ctrl+o")
        await until(lambda: any(card.text for card in bench.answers.cards), "answers begin")
        await until(lambda: not bench.generating, "answers")
        assert [card.view for card in bench.answers.cards] == ["base", "gated", "tide", "bread"]
        assert not any(card.busy for card in bench.answers.cards)

        before = dict(bench.weights or {})
        pid = bench.link.engine.pid  # type: ignore[union-attr]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: bench.link.state.phase != "ready", "the death is noticed")
        await until(lambda: bench.link.ready, "the engine is back")
        assert bench.link.engine.pid != pid  # type: ignore[union-attr]
        assert bench.prompt_pane.text == "How much flour for 2 loaves?"
        await until(lambda: bench.routed and bench.weights == pytest.approx(before, abs=1e-6), "same weights")
        assert bench.failures == []
        with contextlib.suppress(WaitForScreenTimeout):  # nobody answers while the program leaves
            await pilot.press("f10")
