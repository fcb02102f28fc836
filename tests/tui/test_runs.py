"""The history of the gate, read from the store and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.geometry import Region

from dlm_tui.store import MetricsWriter, Store
from tests.tui.conftest import Bench, Opener


async def test_runs_chart_reads_the_store(workbench: Opener, tmp_path: Path) -> None:
    async with workbench(size=(120, 40)) as bench:
        store = Store(tmp_path / "home", bench.context.document.dlm_id)
        store.create()
        writer = MetricsWriter(store)
        for number, (mode, weight) in enumerate([("uniform", 1 / 3), ("trained", 0.5), ("trained", 0.6)], 1):
            run = 4 * number  # between them lie the runs of the adapters, which a person does not count
            writer.start_run(run, "sft", 42)
            rest = (1 - weight) / 2
            events = [("knowledge", weight, 4), ("tone", rest, 4), ("style", rest, 4)]
            writer.record_gate_events(run, events, mode, None if number == 2 else 0.5)
            writer.finish_run(run, "ok")
        await bench.press("f2", "r")
        bench.controllers.history.poll()
        await bench.until(lambda: "training 3 trained" in bench.text, "summary")
        await bench.until(lambda: "knowledge 0.60" in bench.text and "mean weights" in bench.text, "charts")
        await bench.until(lambda: "training 3 trained  0.50 nats (46%)" in bench.text, "the prompts' mean")
        await bench.until(lambda: "mean of prompts 0.50" in words(bench, "#runs"), "the prompts' curve")
        await bench.until(lambda: "of mean weights 1.04" in words(bench, "#runs"), "the run without it has its own")
        await bench.until(lambda: "floor 0.27 nats" in words(bench, "#runs"), "the floor, 0.25 ln 3 nats")
        await bench.press("space")
        await bench.until(lambda: "collapse" not in bench.text, "loss")
        assert bench.context.gate_run == 12


@pytest.mark.parametrize("known", [True, False])
async def test_one_run_is_a_point_and_the_chart_says_whose_entropy(
    workbench: Opener, tmp_path: Path, known: bool
) -> None:
    async with workbench(size=(120, 40)) as bench:
        store = Store(tmp_path / "home", bench.context.document.dlm_id)
        with MetricsWriter(store.create()) as writer:
            writer.start_run(1, "gate", 42)
            events = [("knowledge", 0.4, 4), ("tone", 0.3, 4), ("style", 0.3, 4)]
            writer.record_gate_events(1, events, "trained", 0.2 if known else None)
            writer.finish_run(1, "ok")
        bench.panes.go_to("runs")
        bench.controllers.history.poll()
        curve = "mean of prompts 0.20" if known else "of mean weights 1.09"
        await bench.until(lambda: curve in words(bench, "#runs"), "whose entropy")
        await bench.until(lambda: "\u25cf" in words(bench, "#entropy-chart PlotWidget"), "a visible point")
        assert "Low is a collapse only with a weight \u2265 0.9." in words(bench, "#runs")
        for name, mark in bench.context.marks.items():
            label = f"{mark.glyph} {name} 0."
            await bench.until(lambda label=label: label in words(bench, "#weights-chart"), label)  # type: ignore[misc]


def words(bench: Bench, selector: str) -> str:
    """What a widget shows, on one line."""
    found = bench.screen.query(selector)
    region = found.first().region if found else Region()
    lines = bench.text.split("\n")[region.y : region.bottom]
    return " ".join(" ".join(line[region.x : region.right] for line in lines).split())


async def test_each_training_of_the_gate_has_a_loss_curve_of_its_own(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        counts = []
        for _ in range(2):
            await bench.press("f5")
            await bench.idle()
            counts.append(len(bench.screen.runs._losses["gate"]["gate"]))
        assert counts[0] == counts[1] > 0
