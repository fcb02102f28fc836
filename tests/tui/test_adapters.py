"""Versions of the adapters on the screen: dislike, go back, compare both, keep the better."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import msgspec
import pytest

from dlm_tui.app.screens.adapters import AdaptersScreen
from dlm_tui.engine.protocol import Compare
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import scratch_sibling
from dlm_tui.store import (
    GateConfig,
    OwnEffect,
    Store,
    change,
    current_version,
    store_lock,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.adapter_history import record_effects, version_history
from dlm_tui.store.former_gates import GateAt, stage_former
from dlm_widgets.pick_list import PickList
from tests.adapter_versions import finished_training
from tests.tui.conftest import Bench, Opener


def listed(bench: Bench) -> AdaptersScreen:
    assert isinstance(bench.app.screen, AdaptersScreen)
    return bench.app.screen


async def open_versions(bench: Bench) -> None:
    await bench.press("alt+k")
    await bench.until(lambda: isinstance(bench.app.screen, AdaptersScreen), "the versions are listed")


async def test_a_session_of_going_back_and_comparing(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        store, names = bench.context.store, bench.context.names
        for run in (1, 2):
            finished_training(store, *names, run=run)
        await open_versions(bench)
        assert "knowledge@2" in bench.text and "b Back" in bench.text
        await bench.press("b")
        await bench.until(lambda: "Back to" in bench.text, "went back")
        await bench.idle()
        assert all(current_version(store, name).version == 1 for name in names)  # type: ignore[union-attr]
        # the newer one gets a fader and a place in Compare
        listed(bench).query_one(PickList).highlighted = 0
        await bench.press("space")
        assert bench.context.state.desk_versions == ["knowledge@2"]
        await bench.press("escape")
        await bench.until(lambda: "knowledge@2" in bench.text, "a fader for the other version")
        bench.screen.prompt_pane.set_text("what is the tide")
        await bench.idle()
        bench.screen.action_compare()
        await bench.until(lambda: "knowledge@2" in [card.view for card in bench.screen.answers.cards], "compared")
        await bench.idle()
        # keep the better one: forward again
        await open_versions(bench)
        listed(bench).query_one(PickList).highlighted = 0
        await bench.press("enter")
        await bench.until(lambda: "knowledge@2 is in force." in bench.text, "put in force")
        await bench.idle()
        assert current_version(store, "knowledge").version == 2  # type: ignore[union-attr]


async def test_a_fader_of_an_earlier_version_is_part_of_the_mix(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        for run in (1, 2):
            finished_training(bench.context.store, *bench.context.names, run=run)
        bench.context.state.desk_versions = ["knowledge@1"]
        bench.controllers.mixing.move_fader("knowledge@1", 0.5)
        view = bench.controllers.mixing.view()
        assert view.kind == "custom" and view.mix is not None and view.mix["knowledge@1"] == 0.5
        bench.controllers.mixing.switch("knowledge@1", "solo")
        assert bench.controllers.mixing.view().adapter == "knowledge@1"
        await bench.quiet()
        assert "knowledge@1" in bench.text


async def test_what_is_needed_is_not_dropped_and_the_rest_is(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        store, names = bench.context.store, bench.context.names
        for run in (1, 2, 3):
            finished_training(store, *names, run=run)
        await open_versions(bench)
        await bench.press("delete")
        await bench.until(lambda: "is in force; put another" in bench.text, "refused")
        listed(bench).query_one(PickList).highlighted = 2
        await bench.press("delete")
        await bench.until(lambda: "knowledge@1 is deleted" in bench.text, "dropped")
        await bench.idle()
        assert [facts.version for facts in version_history(store, ["knowledge"])["knowledge"]] == [2, 3]


async def test_without_versions_there_is_a_sentence(workbench: Opener) -> None:
    async with workbench(trained=False) as bench:
        bench.screen.action_adapters()
        await bench.until(lambda: any("No adapter has a version yet" in toast for toast in bench.toasts), "said")


async def test_the_effect_of_a_version_is_listed(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        finished_training(bench.context.store, *bench.context.names, run=1)
        taught = OwnEffect(kl=4.25, gain=3.0, changed=0.7, z=4.1, sections=4)
        nothing = OwnEffect(kl=0.002, gain=0.1, changed=0.0, z=4.1, sections=4)
        record_effects(bench.context.store, {"knowledge": (1, taught), "tone": (1, nothing)})
        await open_versions(bench)
        rows = [str(row.prompt) for row in listed(bench).query_one(PickList).options]
        assert (
            "effect 4.25 nats a token ·" in rows[0]
            and "effect 0.002 nats a token (!) ·" in rows[1]
            and "effect" not in rows[2]
        )


async def test_an_adapter_that_learned_nothing_is_said_until_it_is_read(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        report = bench.world.train_report
        dull = msgspec.structs.replace(report.adapters["tone"], warning="tone has learned next to nothing in 4 steps.")
        report.adapters = {**report.adapters, "tone": dull}
        bench.screen.action_train()
        await bench.until(lambda: any("learned next to nothing" in toast for toast in bench.toasts), "said")
        (shown,) = [n for n in bench.app._notifications if "learned next to nothing" in n.message]
        assert shown.severity == "warning" and shown.timeout > 3600, "it stays until it is dismissed"


async def test_what_moved_between_any_two_versions_and_gates(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        store, names = bench.context.store, bench.context.names
        for run in (1, 2, 3):
            finished_training(store, *names, run=run)
        for run in (2, 3):
            former_gate(store, names, run)
        await open_versions(bench)
        listing = listed(bench).query_one(PickList)
        rows = [str(row.prompt).split()[:2] for row in listing.options]
        assert ["gate@3", "*"] in rows and rows[-1][0] == "gate@2"
        listing.highlighted = 2
        await bench.press("c")
        await bench.until(lambda: "knowledge@1 is marked" in bench.text, "marked")
        listing.highlighted = len(rows) - 1
        await bench.press("c")
        await bench.until(lambda: "are not versions of one thing" in bench.text, "another thing")
        listing.highlighted = 1
        await bench.press("c")
        await bench.until(lambda: "knowledge@2 is better than knowledge@1" in " ".join(bench.text.split()), "moved")
        assert isinstance(bench.world.requests[-1], Compare)
        assert "its answer +0.31 → +2.25 nats a token" in bench.text and "effect 0.500 → 0.750 nats" in bench.text
        await bench.press("escape")
        listing.highlighted = len(rows) - 1
        await bench.press("c")
        listing.highlighted = len(rows) - 2
        await bench.press("c")
        await bench.until(lambda: "1 of 2 prompts have another strongest adapter under gate@3" in bench.text, "gates")
        await bench.press("escape", "enter")
        await bench.until(lambda: "Gates are trained, not chosen" in bench.text, "said")


async def test_closing_a_comparison_stops_it(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        for run in (1, 2):
            finished_training(bench.context.store, *bench.context.names, run=run)
        bench.world.measuring = asyncio.Event()
        await open_versions(bench)
        for row in (0, 1):
            listed(bench).query_one(PickList).highlighted = row
            await bench.press("c")
        await bench.until(lambda: "asking the live gate" in bench.text, "it is asked")
        await bench.press("escape")
        request = bench.world.requests[-1]
        await bench.until(lambda: request.id in bench.engines[0]._cancelled, "stopped")


def former_gate(store: Store, names: Sequence[str], run: int) -> None:
    """A gate that takes the place of the one before, as `save_gate` writes it, without weights."""
    with store_lock(store, 5.0), change(store) as together:
        stage_former(store, together)
        folder = scratch_sibling(store.gate_dir)
        folder.mkdir(parents=True)
        staged = GateAt(store, folder)
        write_gate_config(staged, GateConfig(tuple(names), 0.01, 8, 4, "uniform"))
        write_gate_record(staged, {"format": 1, "run_id": run})
        together.replace_folder(store.gate_dir, folder)


async def test_trainings_are_numbered_as_a_person_counts_them(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        for run in (1, 4):
            finished_training(bench.context.store, *bench.context.names, run=run)
        await open_versions(bench)
        for name, training in (("knowledge@1", 1), ("knowledge@2", 2), ("style@2", 2)):
            (row,) = (line for line in bench.text.splitlines() if name in line)
            assert f"training {training} " in row, row


async def test_details_that_need_two_lines_begin_below_one_another(workbench: Opener) -> None:
    async with workbench(size=(60, 18)) as bench:
        finished_training(bench.context.store, *bench.context.names, run=1)
        await open_versions(bench)
        await bench.until(lambda: "loss 1.000" in bench.text, "listed")
        await bench.settled()
        lines = bench.text.splitlines()
        first = next(number for number, line in enumerate(lines) if "knowledge@1" in line)
        date, rest = lines[first].index("01-01"), lines[first + 1]
        assert rest[date - 2 : date].isspace() and not rest[date].isspace(), lines[first : first + 2]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_change_that_ends_when_the_dialog_was_left_is_told(workbench: Opener, fails: bool) -> None:
    left = threading.Event()

    def slow() -> str:
        left.wait(30)
        if fails:
            raise DlmTuiError("the disk is full")
        return "tone is back at version 1."

    async with workbench(size=(80, 24)) as bench:
        finished_training(bench.context.store, *bench.context.names, run=1)
        await open_versions(bench)
        bench.controllers.adapters._change(listed(bench), slow)
        await bench.press("escape")
        left.set()
        await bench.idle()
        assert any(("the disk is full" if fails else "tone is back") in toast for toast in bench.toasts)
        assert bench.screen.failures == []
