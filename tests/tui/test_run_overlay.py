"""Runs laid over one another, as a person sees and uses them."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input

from dlm_tui.app.run_curves import RunCurves
from dlm_tui.app.screens.run_overlay import RunOverlayScreen
from dlm_tui.store import MetricsWriter
from dlm_widgets.adapter_palette import GLYPHS, LIGHT, Mark
from tests.tui.conftest import Bench, Opener
from tests.tui.overlaid import overlay, overlaying, saved

SIZES = [(60, 18), (80, 24), (120, 40)]


@pytest.mark.parametrize("size", SIZES, ids=[f"{width}x{height}" for width, height in SIZES])
async def test_how_it_looks(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await overlaying(bench)
        await shown(bench)
        assert await bench.settled() == screens


async def test_without_colour_lines_have_marks(
    workbench: Opener, screens: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with workbench(size=(80, 24)) as bench:
        await overlaying(bench)
        await shown(bench)
        assert await bench.settled() == screens


async def shown(bench: Bench) -> None:
    overlay(bench).action_next_curve()
    overlay(bench).action_next_curve()
    overlay(bench).action_next_curve()
    overlay(bench).action_next_curve()
    overlay(bench).action_next_curve()
    overlay(bench).cursor = 15.0
    overlay(bench)._draw()
    await bench.until(lambda: "step 15" in bench.text, "cursor")


async def test_values_settings_filter_pins_and_curves(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await overlaying(bench)
        dialog = overlay(bench)
        assert [run.run_id for run in dialog.shown] == [4, 3, 2], "the newest three"
        third = 3.0 / (1 + 15 * 0.3)
        await bench.until(lambda: f"2 knowledge {third:.4f}" in bench.text, "the value under the cursor")
        assert "learning_rate" in bench.text and "2: 0.03" in bench.text and "1: 0.01" in bench.text
        await bench.press("right")
        await bench.until(lambda: "step 16" in bench.text, "one step on")
        dialog.query_one(Input).value = "knowledge"
        await bench.until(lambda: [run.run_id for run in dialog.listed] == [3, 1], "filtered")
        await bench.press("down", "space")
        await bench.until(lambda: [run.run_id for run in dialog.shown] == [3, 1], "shown")
        await bench.press("k")
        dialog.query_one(Input).value = "tone"
        await bench.until(lambda: [run.run_id for run in dialog.listed] == [2, 1], "what is pinned stays")
        dialog.query_one(Input).value = ""
        await bench.press("m")
        await bench.until(lambda: "validation loss" in bench.text, "validation loss")
        await bench.press("m", "m")
        await bench.until(lambda: "gate entropy" in bench.text, "entropy")
        await bench.press("m")
        await bench.until(
            lambda: "mean weights over trainings" in bench.text and "knowledge 0.60" in bench.text, "weights"
        )
        own = bench.context.marks
        assert {line.label: Mark(line.glyph, line.color) for line in dialog._series("weights")} == own
        of_runs = {line.glyph for line in dialog._series("gate_entropy") + dialog._series("loss")}
        assert len(of_runs) == 4 and not of_runs & set(GLYPHS), "a run's mark is nobody's"
        await bench.press("v")
        await bench.until(lambda: saved(bench, "runs.svg").is_file(), "saved")
        assert all(f'fill="{color}"' in saved(bench, "runs.svg").read_text() for color in LIGHT[:3])
        saved(bench, "runs.svg").unlink()
        dialog.cursor = 3.0
        dialog._draw()
        await bench.until(lambda: "training 3  " in bench.text, "the axis counts trainings, as everything does")
        await bench.press("m", "a", "l")
        await bench.until(lambda: "log10 of loss" in bench.text and "smoothed 0.6" in bench.text, "how it is drawn")
        await bench.press("w", "v")
        await bench.until(lambda: saved(bench, "runs.csv").is_file() and saved(bench, "runs.svg").is_file(), "saved")
        assert saved(bench, "runs.csv").read_text().startswith("run_id,adapter,metric,step,value\n")
        assert "<polyline" in saved(bench, "runs.svg").read_text()


async def test_a_preference_loss_is_no_part_of_the_loss(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await overlaying(bench)
        with MetricsWriter(bench.context.store) as writer:
            writer.record_loss_kind(3, "sft", 1)
            writer.record_loss_kind(3, "dpo", 21)
        await bench.press("escape")
        bench.screen.runs.action_overlay_runs()
        await bench.until(
            lambda: isinstance(bench.app.screen, RunOverlayScreen) and bench.app.screen.is_mounted, "again"
        )
        dialog = overlay(bench)
        assert [len(line.points) for line in dialog._series("loss")] == [20, 30]
        await bench.press("m", "m")
        await bench.until(lambda: "dpo loss, nats per pair" in bench.text, "a curve to choose")
        assert [len(line.points) for line in dialog._series(dialog.metric)] == [10]


async def test_a_curve_of_the_gate_is_nobody_elses(workbench: Opener) -> None:
    steps = {"gate_loss": ((1.0, 0.7), (2.0, 0.1))}
    runs = [
        RunCurves(7, "gate", "ok", "", "gate", training=3, curves={"gate_loss": ((1.0, 0.9),)}),
        RunCurves(3, "sft", "ok", "", "style", training=1, curves={"loss": ((1.0, 2.0),), **steps}),
        RunCurves(2, "sft", "ok", "", "tone", training=1, curves={"loss": ((1.0, 2.0),)}),
    ]
    async with workbench(size=(120, 40)) as bench:
        dialog = RunOverlayScreen(runs, bench.context.marks)
        await bench.app.push_screen(dialog)
        assert [line.label for line in dialog._series("loss")] == ["1 style", "1 tone"]
        assert [line.label for line in dialog._series("gate_loss")] == ["3 gate", "1 gate"]


async def test_without_runs_it_says_so(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        bench.screen.runs.action_overlay_runs()
        await bench.until(lambda: any("No run has a curve yet" in toast for toast in bench.toasts), "said")
        assert not isinstance(bench.app.screen, RunOverlayScreen)
