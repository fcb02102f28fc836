"""What the screen makes of a store that is another document's, of another base, and of what was trained elsewhere."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Button

from dlm_tui.app.app import Opening, WorkbenchApp
from dlm_tui.app.config import Config
from dlm_tui.app.screens.claim import ClaimScreen
from dlm_tui.app.setup import Setup
from dlm_tui.app.state import StateFile
from dlm_tui.document import load
from dlm_tui.engine.protocol import ExportJob, Open, Reload, TrainJob
from dlm_tui.store import Manifest, Owner, Store, owner_path, read_manifest, update_manifest
from tests.adapter_versions import finished_training
from tests.tui.conftest import Bench, Opener
from tests.tui.document import write_document
from tests.tui.drawn import drawn_strips
from tests.tui.recorded import RecordedEngine, RecordedJob, World

# ---- two documents, one id -----------------------------------------------------------------------------------------


def trained(tmp_path: Path) -> tuple[Path, Store]:
    """A document whose store says that it is this one's."""
    path = write_document(tmp_path)
    document = load(path)
    store = Store(tmp_path / "home", document.dlm_id)
    finished_training(store, *document.routing_names, run=1)

    def record(manifest: Manifest) -> None:
        manifest.source_path = owner_path(document)
        manifest.content_hashes = {section.section_id: section.section_id for section in document.sections}

    update_manifest(store, record)
    return path, store


class Claimed:
    """A program that is opened on a document whose store may be another's."""

    def __init__(self, path: Path, tmp_path: Path) -> None:
        world = World()

        async def start(request: TrainJob | ExportJob) -> RecordedJob:
            return RecordedJob(world, request)

        setup = Setup(
            document=load(path), path=path, home=tmp_path / "home", base=None, config=Config(),
            state_file=StateFile(path, tmp_path / "state"), engine_factory=lambda: RecordedEngine(world),
            job_starter=start,
        )  # fmt: skip
        self.app = WorkbenchApp(Opening(path.name, setup.config, setup.config.theme, lambda: setup))

    async def asked(self, pilot: Any) -> None:
        await self.until(pilot, lambda: isinstance(self.app.screen, ClaimScreen))
        await pilot.pause()

    async def opened(self, pilot: Any) -> None:
        await self.until(pilot, lambda: self.app.is_open and self.app.workbench.is_mounted)

    async def left(self, pilot: Any) -> None:
        await self.until(pilot, lambda: self.app._exit)

    async def until(self, pilot: Any, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60.0):
            while not condition():
                await pilot.pause(0.01)

    def text(self) -> str:
        strips = drawn_strips(self.app)
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


@pytest.mark.parametrize("mouse", [False, True], ids=["keys", "mouse"])
async def test_a_copy_is_given_an_id_of_its_own(tmp_path: Path, mouse: bool) -> None:
    path, store = trained(tmp_path)
    copy = Path(shutil.copy(path, tmp_path / "copy.dlm"))
    claimed = Claimed(copy, tmp_path)
    async with claimed.app.run_test(size=(80, 24)) as pilot:
        await claimed.asked(pilot)
        shown = "".join(line.strip(" \u2502") for line in claimed.text().split("\n"))
        assert str(path) in shown and claimed.app.focused is claimed.app.screen.query_one("#new-id")
        await (pilot.click("#new-id") if mouse else pilot.press("ctrl+g"))
        await claimed.opened(pilot)
        context = claimed.app.workbench.context
        assert context.document.dlm_id == load(copy).dlm_id != store.dlm_id
        assert context.store.root.name == load(copy).dlm_id
    assert load(path).dlm_id == store.dlm_id
    manifest = read_manifest(store)
    assert manifest is not None and manifest.source_path == str(path)


@pytest.mark.parametrize("mouse", [False, True], ids=["keys", "mouse"])
async def test_a_document_that_was_moved_and_rewritten_takes_its_store_along(tmp_path: Path, mouse: bool) -> None:
    path, store = trained(tmp_path)
    there = path.rename(tmp_path / "there.dlm")
    head = there.read_text().partition("\n---\n")[0] + "\n---\n"
    there.write_text(f"{head}::instruction#tone::\n### Q\nAll new?\n### A\nYes.\n")
    claimed = Claimed(there, tmp_path)
    async with claimed.app.run_test(size=(80, 24)) as pilot:
        await claimed.asked(pilot)
        assert claimed.app.focused is claimed.app.screen.query_one("#moved")
        await (pilot.click("#moved") if mouse else pilot.press("enter"))
        await claimed.opened(pilot)
    manifest = read_manifest(store)
    assert manifest is not None and manifest.source_path == str(there)


@pytest.mark.parametrize("how", ["escape", "f10", "#leave"])
async def test_a_copy_may_be_left_alone(tmp_path: Path, how: str) -> None:
    path, store = trained(tmp_path)
    copy = Path(shutil.copy(path, tmp_path / "copy.dlm"))
    before = copy.read_bytes(), store.manifest_path.read_bytes()
    claimed = Claimed(copy, tmp_path)
    async with claimed.app.run_test(size=(80, 24)) as pilot:
        await claimed.asked(pilot)
        await (pilot.click(how) if how.startswith("#") else pilot.press(how))
        await claimed.left(pilot)
    assert not claimed.app.is_open and claimed.app.problem is None
    assert (copy.read_bytes(), store.manifest_path.read_bytes()) == before


async def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path, _ = trained(tmp_path)
    copy = Path(shutil.copy(path, tmp_path / "copy.dlm"))
    copy.chmod(0o444)
    claimed = Claimed(copy, tmp_path)
    async with claimed.app.run_test(size=(80, 24)) as pilot:
        await claimed.asked(pilot)
        await pilot.press("ctrl+g")
        await claimed.left(pilot)
    assert "is read-only" in str(claimed.app.problem)


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_question_fits_every_terminal(
    workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]
) -> None:
    async with workbench(size=size) as bench:
        owner = Owner("/home/me/papers/harbour.dlm", there=True)
        document = replace(bench.context.document, path=Path("/home/me/papers/harbour-copy.dlm"))
        await bench.app.push_screen(ClaimScreen(owner.sentence(document), "new id"))
        await bench.until(lambda: bench.app.screen.query_one("#new-id").has_focus, "the likely answer has the focus")
        assert len(bench.app.screen.query(Button)) == 3 and "Leave both as they are" in bench.text
        assert await bench.settled() == screens


# ---- another base --------------------------------------------------------------------------------------------------


def opens(bench: Bench) -> int:
    return sum(isinstance(request, Open) for request in bench.world.requests)


async def test_another_base_in_the_document_is_opened(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        assert (opens(bench), len(bench.engines)) == (1, 1)
        text = bench.path.read_text()
        bench.path.write_text(text.replace("base_model: smollm2-135m", "base_model: pocket", 1))
        await bench.until(lambda: len(bench.engines) == 2 and bench.context.link.ready, "another engine")
        assert bench.engines[0]._exit.done(), "the old base answers no more"
        assert opens(bench) == 2 and "pocket" in bench.text
        bench.path.write_text(
            text.replace("base_model: smollm2-135m", "base_model: pocket", 1) + "\n::prose::\nMore.\n"
        )
        await bench.until(lambda: any(isinstance(one, Reload) for one in bench.world.requests), "reloaded")
        assert len(bench.engines) == 2, "a save that keeps the base keeps the engine"


async def test_another_base_while_the_first_one_is_loading(workbench: Opener) -> None:
    world = World()
    world.measuring = asyncio.Event()
    async with workbench(world=world, wait=False) as bench:
        await bench.until(lambda: opens(bench) == 1, "loading")
        bench.path.write_text(bench.path.read_text().replace("base_model: smollm2-135m", "base_model: pocket", 1))
        await bench.until(lambda: len(bench.engines) == 2, "started anew, without waiting for the first")
        world.measuring.set()
        await bench.until(lambda: bench.context.link.ready, "open")
        assert bench.engines[0]._exit.done() and not bench.engines[1]._exit.done()


async def test_a_missing_base_is_mended_by_the_next_save(workbench: Opener) -> None:
    world = World()
    world.fail_open = "the base smollm2-135m is not on this machine"
    async with workbench(world=world) as bench:
        assert bench.context.link.state.phase == "failed"
        world.fail_open = None
        bench.path.write_text(bench.path.read_text() + "\n::prose::\nMore.\n")
        await bench.until(lambda: bench.context.link.ready, "ready without a restart by hand")


async def test_a_base_that_was_fetched_meanwhile_is_noticed(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = write_document(tmp_path)
    path.write_text(path.read_text().replace("base_model: smollm2-135m", "base_model: hf:some/base", 1))
    world = World()
    world.fail_open = "the base is not on this machine"
    async with workbench(path=path, world=world) as bench:
        await bench.until(lambda: bench.controllers.engine._base_missing, "noted")
        bench.controllers.engine.poll()
        await bench.idle()
        assert bench.context.link.state.phase == "failed"
        world.fail_open = None
        snapshot = tmp_path / "hub" / "models--some--base" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"):
            (snapshot / name).write_text("{}")
        await bench.until(lambda: bench.context.link.ready, "started by itself")
        assert any("hf:some/base is there now" in toast for toast in bench.toasts)


async def test_a_save_that_cannot_be_taken_in_is_said(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.world.fail_open = "there is another document with this id"
        bench.path.write_text(bench.path.read_text() + "\n::prose::\nMore.\n")
        await bench.until(lambda: any("another document with this id" in toast for toast in bench.toasts), "said")
        assert any("What was open stays in force" in toast for toast in bench.toasts) and bench.context.link.ready


# ---- trained elsewhere ---------------------------------------------------------------------------------------------


async def test_newer_adapters_on_disk_are_said_and_taken_in(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.until(lambda: bench.controllers.elsewhere._used is not None, "looked at once")
        assert "on disk" not in bench.text
        finished_training(bench.context.store, *bench.context.names, run=1)
        await bench.until(lambda: "newer adapters on disk, alt+r takes them in" in bench.text, "said")
        assert not any(isinstance(one, Reload) for one in bench.world.requests), "nothing is taken in unasked"
        await bench.press("alt+r")
        await bench.until(lambda: "on disk" not in bench.text, "taken in")
        assert any(isinstance(one, Reload) for one in bench.world.requests)
        assert any("In force now" in toast for toast in bench.toasts)


def outline(bench: Bench) -> str:
    return "\n".join(str(row.content) for row in bench.screen.outline._rows)


async def test_a_document_that_was_trained_elsewhere_is_not_said_to_be_untrained(workbench: Opener) -> None:
    async with workbench(size=(120, 40), trained=False) as bench:
        await bench.until(lambda: bench.controllers.elsewhere._used is not None, "looked at once")
        assert "Nothing is trained yet. ^t trains" in bench.text
        assert bench.text.count("not trained") == 3 and outline(bench).count("not trained") == 3
        finished_training(bench.context.store, *bench.context.names, run=1)
        taken_in = "Trained elsewhere: newer adapters on disk, alt+r takes them in."
        await bench.until(lambda: taken_in in bench.text, "said on the desk, too")
        assert not any(lie in bench.text for lie in ("Nothing is trained yet", "not trained", "After training"))
        assert "not trained" not in outline(bench) and outline(bench).count("on disk") == 3
        await bench.press("f8")
        await bench.until(lambda: bench.context.state.last_export, "there is something to export")
        bench.world.trained = True
        await bench.press("alt+r")
        await bench.until(lambda: "Trained elsewhere" not in bench.text, "taken in")
        assert not bench.context.on_disk


async def test_a_gate_that_was_trained_elsewhere_is_said(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.until(lambda: bench.controllers.elsewhere._used is not None, "looked at once")
        folder = bench.context.store.gate_dir
        folder.mkdir(parents=True)
        (folder / "gate_config.json").write_text("{}")
        await bench.until(lambda: "a newer gate on disk" in bench.text, "said")


async def test_a_store_that_is_gone_is_said_and_not_begun_anew(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        store = bench.context.store
        finished_training(store, *bench.context.names, run=1)
        await bench.until(lambda: bench.controllers.elsewhere._seen, "looked at")
        away = store.root.with_name("away")
        store.root.rename(away)
        await bench.until(lambda: "the store is gone: bring it back" in bench.text, "noticed")
        for key in ("f5", "ctrl+t"):
            bench.app.clear_notifications()
            await bench.press(key)
            await bench.until(lambda: any("is gone: bring it back" in toast for toast in bench.toasts), "refused")
        await bench.press("alt+r")
        await bench.until(lambda: any("what is loaded stays in use" in toast for toast in bench.toasts), "kept")
        assert not store.root.exists()
        away.rename(store.root)
        await bench.until(lambda: "the store is gone" not in bench.text, "it is back")


async def test_the_trainings_of_this_window_are_no_news(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.until(lambda: bench.controllers.elsewhere._used is not None, "looked at once")
        bench.world.version = 0  # the store has no version yet: the engine reads the one that is trained here
        bench.world.on_trained = lambda: void(finished_training(bench.context.store, *bench.context.names, run=1))
        await bench.press("ctrl+t")
        await bench.idle()
        for _ in range(3):
            bench.controllers.elsewhere.poll()
            await bench.idle()
            assert "on disk" not in bench.text


def void(_: object) -> None:
    """A callback's result that nobody wants."""
