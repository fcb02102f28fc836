"""What a new user does with only the footer and F1: see the gate move, compare, solo, label, retrain, read the chart,
export, quit. Once at 120x40 with the mouse at hand, once at 80x24 with keys alone; the frames are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from dlm_tui.store import MetricsWriter, Store
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.mixing_desk import MixingDesk
from tests.tui.conftest import Bench, Opener
from tests.tui.recorded import World


class Recording:
    """Frames of a session, each under a title."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.frames = bench, []  # type: ignore[var-annotated]

    async def frame(self, title: str) -> None:
        self.bench.app.clear_notifications()
        await self.bench.until(lambda: not self.bench.toasts, "toasts gone")
        self.frames.append(f"== {title}\n{await self.bench.settled()}")

    @property
    def text(self) -> str:
        return "\n\n".join(self.frames)


async def click_hint(bench: Bench, label: str, bar_id: str = "footer") -> None:
    bar = bench.screen.query_one(f"#{bar_id}", KeyBar)
    at = next(place for place, hint in bar.placed() if hint.label == label)
    await bench.click(f"#{bar_id}", offset=(at + 1, 0))
    await bench.quiet()


def record_training(tmp_path: Path, dlm_id: str, world: World) -> None:
    """What a training writes to the store: the recorded job does it here."""
    store = Store(tmp_path / "home", dlm_id)
    store.create()
    writer = MetricsWriter(store)
    writer.start_run(world.runs, "sft", 42)
    writer.record_gate_events(world.runs, [("knowledge", 0.5, 4), ("tone", 0.3, 4), ("style", 0.2, 4)], "trained", 0.4)
    writer.finish_run(world.runs, "ok")


@pytest.mark.parametrize("mouse", [True, False], ids=["120x40 with the mouse", "80x24 with keys"])
async def test_a_new_user_gets_through(
    workbench: Opener, screens: SnapshotAssertion, tmp_path: Path, mouse: bool
) -> None:
    world = World(trained=False)
    async with workbench(size=(120, 40) if mouse else (80, 24), world=world) as bench:
        screen, tape = bench.screen, Recording(bench)
        world.on_trained = lambda: record_training(tmp_path, screen.context.document.dlm_id, world)

        await (click_hint(bench, "Help") if mouse else bench.press("f1"))
        await tape.frame("help")
        await bench.press("escape")

        await (click_hint(bench, "Train") if mouse else bench.press("ctrl+t"))
        await bench.until(lambda: screen.context.trained_names and not screen.context.board.running(), "trained")
        await bench.idle()

        await bench.type("what is the tide")
        await bench.idle()
        before = dict(screen.controllers.routing.weights or {})
        await tape.frame("the gate moves while typing")

        await (click_hint(bench, "Compare") if mouse else bench.press("ctrl+o"))
        await bench.until(lambda: screen.answers.cards and not screen.controllers.generation.running, "answers")
        await bench.idle()
        await tape.frame("answers compared")

        if mouse:
            desk = screen.query_one(MixingDesk)
            at = desk._columns(desk.content_size.width).switches_at + 1
            await bench.click(MixingDesk, offset=(at, 2))
        else:
            await bench.press("escape", "down", "s")
        await bench.press("ctrl+g")
        await bench.until(
            lambda: not screen.controllers.generation.running and screen.context.state.mix.solos == ["tone"], "solo"
        )
        await bench.idle()
        await tape.frame("one adapter alone")

        if mouse:
            await bench.click("#editor")
            await click_hint(bench, "Label")
        else:
            await bench.press("ctrl+l")
        await bench.until(lambda: "Will be added" in bench.text, "label dialog")
        await bench.press("home")
        await tape.frame("label")
        await bench.press("ctrl+g")
        await bench.until(
            lambda: screen.controllers.routing.weights and dict(screen.controllers.routing.weights) != before,
            "retrained",
        )
        await bench.idle()
        await tape.frame("retrained")

        await bench.press("f2", "r")
        screen.controllers.history.poll()
        await bench.until(lambda: "floor 0.27 nats" in bench.text, "chart")
        await tape.frame("entropy over runs")

        await (click_hint(bench, "Export") if mouse else bench.press("f8"))
        await bench.until(lambda: screen.context.state.last_export, "exported")
        await bench.idle()
        await bench.press("f2", "j")
        await bench.until(lambda: "export peft" in bench.text, "jobs")
        await tape.frame("exported")

        await (click_hint(bench, "Quit", "leave") if mouse else bench.press("f10"))
        await bench.until(lambda: bench.app._exit, "left")
    assert tape.text == screens
