"""The screen on the real engine and real jobs, with the embedded base: type, train, see the bars, kill the engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import WaitForScreenTimeout

from dlm_tui.app.launch import make_app
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.workbench import Workbench
from dlm_tui.assets import asset
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import gate_status
from tests.demo import Demo

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
        await until(lambda: app.is_open and app.workbench.context.link.ready, "the engine opens the document")
        bench = app.workbench
        assert bench.context.trained_names == ()
        await pilot.press("ctrl+t")
        await until(lambda: bench.context.trained_names == ("tide", "bread"), "trained")
        assert bench.context.board.records[0].state == "done", bench.context.board.records[0].summary
        bench.prompt_pane.set_text("When does the tide reach post 2?")
        await until(
            lambda: (
                bench.controllers.routing.routed and bench.controllers.routing.routed.prompt == bench.prompt_pane.text
            ),
            "routed",
        )
        weights = dict(bench.controllers.routing.weights or {})
        assert weights["tide"] > weights["bread"] and abs(sum(weights.values()) - 1) < 1e-5
        bench.prompt_pane.set_text("How much flour for 2 loaves?")
        await until(
            lambda: (
                bench.controllers.routing.routed and bench.controllers.routing.routed.prompt == bench.prompt_pane.text
            ),
            "routed again",
        )
        assert dict(bench.controllers.routing.weights or {})["bread"] > 0.5
        await pilot.press("ctrl+o")
        await until(lambda: any(card.text for card in bench.answers.cards), "answers begin")
        await until(lambda: not bench.controllers.generation.running, "answers")
        assert [card.view for card in bench.answers.cards] == ["base", "gated", "tide", "bread"]
        assert not any(card.busy for card in bench.answers.cards)

        before = dict(bench.controllers.routing.weights or {})
        pid = bench.context.link.engine.pid  # type: ignore[union-attr]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: bench.context.link.state.phase != "ready", "the death is noticed")
        await until(lambda: bench.context.link.ready, "the engine is back")
        assert bench.context.link.engine.pid != pid  # type: ignore[union-attr]
        assert bench.prompt_pane.text == "How much flour for 2 loaves?"
        await until(
            lambda: (
                bench.controllers.routing.routed
                and bench.controllers.routing.weights == pytest.approx(before, abs=1e-6)
            ),
            "same weights",
        )
        assert bench.failures == []
        with contextlib.suppress(WaitForScreenTimeout):  # nobody answers while the program leaves
            await pilot.press("f10")


def drawn_weights(bench: Workbench) -> dict[str, float]:
    """The gate's weights as the desk shows them, read from the cells of the screen."""
    region = bench.desk.region
    strips = bench._compositor.render_strips()[region.y : region.bottom]
    lines = ["".join(segment.text for segment in strip)[region.x : region.right] for strip in strips]
    found = {}
    for name in bench.context.names:
        for line in lines:
            if match := re.search(rf"\b{name}\b[^\d+\u2013]*(\d\.\d\d)\s", line):
                found[name] = float(match[1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
async def test_a_label_moves_the_drawn_weights(
    demo: Demo, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mine = demo.copy(tmp_path / "mine")
    app = make_app(mine.document, mine.home, None)

    async with app.run_test(size=(100, 34)) as pilot:

        async def until(condition: Callable[[], Any], what: str) -> None:
            deadline = asyncio.get_running_loop().time() + 300.0
            while not condition():
                assert asyncio.get_running_loop().time() < deadline, what
                await pilot.pause(0.02)

        await until(lambda: app.is_open and app.workbench.context.link.ready, "the engine opens the document")
        bench = app.workbench
        prompt = "where is the ladder"
        await until(lambda: bench.panes.focused_pane == "prompt", "the prompt has the focus")
        for char in prompt:
            await pilot.press("space" if char == " " else char)
        await until(
            lambda: bench.controllers.routing.routed and bench.controllers.routing.routed.prompt == prompt, "routed"
        )
        weights = dict(bench.controllers.routing.weights or {})
        rounded = {name: pytest.approx(weight, abs=0.006) for name, weight in weights.items()}
        await until(lambda: drawn_weights(bench) == rounded, "drawn")
        before = drawn_weights(bench)

        await pilot.press("ctrl+l")
        await until(lambda: isinstance(app.screen, LabelScreen) and app.screen.focused, "the label dialog")
        wanted = sorted(weights, key=lambda name: -weights[name])[1]
        began = time.monotonic()
        await pilot.press("ctrl+g")
        await until(lambda: app.screen is bench and drawn_weights(bench) not in ({}, before), "the desk moved")
        seconds = time.monotonic() - began
        after = drawn_weights(bench)
        record_property("label_to_drawn_seconds", round(seconds, 2))
        print(f"from the label key to the moved weights on the screen: {seconds:.2f} s (goal 3 s)")
        assert set(after) == set(before) and after[wanted] > before[wanted]
        said = f"{wanted} {before[wanted]:.2f} \u2192"
        await until(
            lambda: [one for one in app._notifications if one.title == f"Labelled as {wanted}" and said in one.message],
            "what moved is said",
        )
        assert f"::prose#{wanted}::\n{prompt}" in mine.document.read_text()
        assert bench.failures == []
        with contextlib.suppress(WaitForScreenTimeout):  # nobody answers while the program leaves
            await pilot.press("f10")


FAULT = """
import pathlib

import dlm_tui.gate.fitting as fitting
import dlm_tui.gate.training as gate_training

fault = pathlib.Path({fault!r})
saves, scales = gate_training.save_gate, fitting.Standardiser.apply

def save_gate(*given, **named):
    if fault.read_text() == "full":
        raise OSError(28, "No space left on device")
    return saves(*given, **named)

def apply(self, embeddings):
    return scales(self, embeddings) * (float("inf") if fault.read_text() == "inf" else 1.0)

gate_training.save_gate = save_gate
fitting.Standardiser.apply = apply
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
async def test_a_gate_that_breaks_off_diverges_or_lacks_sections_is_said_until_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while a real job saves the gate: the screen has the new adapters and says what is missing.

    Then the engine trains the gate: its inputs overflow; it trains; and it asks for more sections than there are.
    """
    fault = tmp_path / "fault"
    fault.write_text("full")
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=str(fault)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    path = write(tmp_path)
    app = make_app(path, tmp_path / "home", None)
    async with app.run_test(size=(100, 30)) as pilot:

        async def until(condition: Callable[[], Any], what: str) -> None:
            deadline = asyncio.get_running_loop().time() + 800.0
            while not condition():
                assert asyncio.get_running_loop().time() < deadline, what
                await pilot.pause(0.02)

        def toasts(words: str) -> list[Any]:
            return [toast for toast in app._notifications if words in toast.message]

        async def stays_until_read(words: str) -> str:
            """The toast with these words, which Esc takes away and nothing else does."""
            await until(lambda: toasts(words), words)
            (toast,) = toasts(words)
            assert toast.timeout > 3600, "it stays until it is read"
            await pilot.press("escape")
            await until(lambda: not toasts(words), f"read: {words}")
            return str(toast.message)

        def last_of_log(run: int) -> dict[str, Any]:
            (file,) = bench.context.store.logs_dir.glob(f"train-{run:06d}-*.jsonl")
            line: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
            return line

        async def train_gate(mode: str) -> None:
            known = len(bench.context.board.records)
            await pilot.press("f5")
            await until(lambda: len(bench.context.board.records) > known, f"the gate trains: {mode}")
            record = bench.context.board.records[0]
            await until(lambda: record.over.is_set(), f"the gate's training ended: {mode}")
            assert record.trained is not None and record.trained.mode == mode
            assert last_of_log(record.trained.run_id)["mode"] == mode

        await until(lambda: app.is_open and app.workbench.context.link.ready, "the engine opens the document")
        bench = app.workbench
        await pilot.press("ctrl+t")
        await until(lambda: bench.context.trained_names == ("tide", "bread"), "the engine has the new adapters")
        said = await stays_until_read("gate was not trained")
        assert "no space is left" in said and "tide version 1, bread version 1" in said
        record = bench.context.board.records[0]
        assert record.training is not None and record.training.gate is None and record.training.gate_error

        fault.write_text("inf")
        await train_gate("diverged")
        said = await stays_until_read("gate training diverged")
        assert "no earlier gate can be used" in said and "Lower training.gate.lr" in said

        fault.write_text("")
        await train_gate("trained")
        assert gate_status(bench.context.document, bench.context.store).in_force == "trained"

        path.write_text(path.read_text().replace("cold_start_floor: 4", "cold_start_floor: 9"))
        await until(lambda: bench.context.document.training.gate.cold_start_floor == 9, "the change is noticed")
        await train_gate("uniform")
        assert "sections still needed: tide 5, bread 5" in await stays_until_read("Too few prompts to train a gate")
        assert bench.failures == []
        with contextlib.suppress(WaitForScreenTimeout):
            await pilot.press("f10")
