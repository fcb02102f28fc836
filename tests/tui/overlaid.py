"""Recorded runs for the dialog that lays them over one another, and how a test gets there."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.widgets import OptionList

from dlm_tui.app.screens.run_overlay import RunOverlayScreen
from dlm_tui.store import Manifest, MetricsWriter, Store, TrainingRun, update_manifest
from dlm_widgets.history_chart import HistoryChart
from tests.tui import mouse
from tests.tui.conftest import Bench


def record(bench: Bench) -> None:
    """Three trainings of two adapters at different rates, and the gate."""
    store: Store = bench.context.store
    with MetricsWriter(store.create()) as writer:
        for run, (name, rate) in enumerate((("knowledge", 0.01), ("tone", 0.01), ("knowledge", 0.03)), 1):
            settings = {"learning_rate": rate, "lora_r": 8 * run}
            writer.start_run(run, "sft", 42, adapter_name=name, details={"settings": settings})
            for step in range(1, 31):
                writer.record_step(run, step, 3.0 / (1 + step * rate * 10) + 0.1 * (step % 3), rate)
            writer.record_eval(run, 30, 1.0 / run)
            writer.finish_run(run, "ok")
        writer.start_run(4, "gate", 42)
        writer.record_gate_steps(4, [(step, 1.0 / step, 1.1 - 0.02 * step) for step in range(1, 31)])
        writer.record_gate_events(4, [("knowledge", 0.6, 4), ("tone", 0.3, 4), ("style", 0.1, 4)], "trained", 0.5)
        writer.finish_run(4, "ok")
    update_manifest(store, in_force, base_model="pocket")
    with contextlib.closing(sqlite3.connect(store.metrics_path)) as connection, connection:
        for table in ("runs", "tui_runs"):
            connection.execute(f"UPDATE {table} SET started_at = '2026-03-01T08:0' || run_id || ':00Z'")


def in_force(manifest: Manifest) -> None:
    """The first two runs were one training, the third was another."""
    for run, training in ((1, 1), (2, 1), (3, 2)):
        at = f"2026-03-01T0{training}:00:00"
        manifest.training_runs.append(
            TrainingRun(
                run_id=run, started_at=at, ended_at=at, adapter_version=training, seed=42, steps=30, status="completed"
            )
        )


def overlay(bench: Bench) -> RunOverlayScreen:
    """The dialog, which is open."""
    screen = bench.app.screen
    assert isinstance(screen, RunOverlayScreen)
    return screen


async def at_the_runs(bench: Bench) -> None:
    """In the runs pane, with runs in the store."""
    record(bench)
    bench.panes.show_page("runs")
    await bench.until(lambda: bench.screen.query_one("#runs").region.area > 0, "runs")


async def overlaying(bench: Bench) -> None:
    """In the dialog, the cursor in the middle."""
    await at_the_runs(bench)
    bench.screen.runs.action_overlay_runs()
    await bench.until(lambda: isinstance(bench.app.screen, RunOverlayScreen) and bench.app.screen.is_mounted, "overlay")
    dialog = overlay(bench)
    await bench.until(lambda: dialog.query_one(OptionList).has_focus, "the list")
    dialog.cursor = 15.0
    dialog._draw()
    await bench.until(lambda: "step 15" in bench.text, "cursor")


def click_chart(share: float) -> Callable[[Bench], Awaitable[None]]:
    """Click at this share of the first chart's width."""

    async def step(bench: Bench) -> None:
        parts = overlay(bench).query_one("#overlay-first", HistoryChart).query("Canvas")
        plot = max(parts, key=lambda part: part.region.area)
        region = plot.region
        place = (region.x + int(region.width * share), region.y + region.height // 2)
        await mouse.click(bench, place, plot)

    return step


def saved(bench: Bench, name: str) -> Path:
    """Where an exported file is put."""
    return bench.path.with_name(f"{bench.path.stem}.{name}")
