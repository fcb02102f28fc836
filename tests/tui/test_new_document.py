"""Beginning: what a person without a document is offered, and a new document from inside the program."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input, OptionList

from dlm_tui.app.config import Config
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.app.screens.new_document import NewDocumentScreen
from dlm_tui.app.screens.open_document import OpenDocumentScreen
from dlm_tui.app.screens.welcome import WelcomeScreen
from dlm_tui.app.welcome import WelcomeApp
from dlm_tui.document import load
from dlm_tui.document.templates import compose, write_new
from dlm_widgets.literal_static import LiteralStatic
from tests.tui.conftest import Opener


async def test_a_person_without_a_document_starts_one_from_a_folder(tmp_path: Path) -> None:
    for name in ("birds", "boats"):
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "a.txt").write_text(name)
    app = WelcomeApp(Config(), tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert isinstance(app.screen, WelcomeScreen)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, NewDocumentScreen)
        app.screen.query_one("#new-path", Input).value = "mine"
        app.screen.query_one("#new-folder", Input).value = "no/such/folder"
        await pilot.press("ctrl+g")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert isinstance(app.screen, NewDocumentScreen)
        assert not (tmp_path / "mine.dlm").exists()
        app.screen.query_one("#new-folder", Input).value = "notes"
        await pilot.press("ctrl+g")
        await app.workers.wait_for_complete()
        await pilot.pause()
    assert app.return_value == tmp_path / "mine.dlm"
    assert load(tmp_path / "mine.dlm").adapter_names == ("birds", "boats")


async def test_help_is_there_from_the_first_dialog_on(tmp_path: Path) -> None:
    app = WelcomeApp(Config(), tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        for expected in (WelcomeScreen, NewDocumentScreen):
            await pilot.pause()
            assert isinstance(app.screen, expected)
            await pilot.press("f1")
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen)
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, expected)
            await pilot.press("enter")


async def test_or_looks_at_the_demo_or_leaves(tmp_path: Path) -> None:
    app = WelcomeApp(Config(), tmp_path)
    async with app.run_test(size=(60, 18)) as pilot:
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, WelcomeScreen)
        await pilot.press("down", "enter")
    assert app.return_value == "demo"
    app = WelcomeApp(Config(), tmp_path)
    async with app.run_test() as pilot:
        await pilot.pause()
        await pilot.press("escape")
    assert app.return_value is None
    assert list(tmp_path.iterdir()) == []


async def test_a_new_document_from_the_palette_is_written_and_opened_next(workbench: Opener, tmp_path: Path) -> None:
    async with workbench() as bench:
        command = next(one for one in bench.app.palette_commands() if one.name == "program: new document")
        command.run()
        await bench.until(lambda: isinstance(bench.app.screen, NewDocumentScreen), "dialog")
        screen = bench.app.screen
        screen.query_one("#new-path", Input).value = "harbour.dlm"
        await bench.press("ctrl+g")
        await bench.until(lambda: "exists already" in bench.text, "refused")
        screen.query_one("#new-path", Input).value = "second.dlm"
        screen.query_one("#new-template", OptionList).highlighted = 2
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.app.next_document is not None, "left")
    assert bench.app.next_document == tmp_path / "second.dlm" and bench.app.next_is_new
    assert load(tmp_path / "second.dlm").adapter_names == ("product", "steps", "tone")


async def test_while_a_job_runs_the_document_is_only_written(workbench: Opener, tmp_path: Path) -> None:
    async with workbench() as bench:
        bench.world.hold.clear()
        bench.controllers.training.start()
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        bench.controllers.interrupts.begin_document()
        await bench.until(lambda: isinstance(bench.app.screen, NewDocumentScreen), "dialog")
        await bench.press("ctrl+g")
        await bench.until(lambda: any("notes.dlm is written" in toast for toast in bench.toasts), "said")
        assert bench.app.next_document is None
        assert (tmp_path / "notes.dlm").exists()
        bench.world.hold.set()
        await bench.idle()


async def test_another_document_is_opened_from_the_palette(workbench: Opener, tmp_path: Path) -> None:
    write_new(compose(tmp_path / "beside.dlm"))
    other = tmp_path / "other"
    other.mkdir()
    write_new(compose(other / "there.dlm"))
    (tmp_path / "broken.dlm").write_text("no document")
    async with workbench() as bench:
        command = next(one for one in bench.app.palette_commands() if one.name == "program: open document")
        command.run()
        await bench.until(lambda: isinstance(bench.app.screen, OpenDocumentScreen), "dialog")
        await bench.until(lambda: "beside.dlm" in bench.text and "broken.dlm" in bench.text, "listed")
        path = bench.app.screen.query_one("#open-path", Input)
        for typed, said in (("~nobody-here", "there is no user"), ("broken.dlm", "broken.dlm"), ("gone.dlm", "gone")):
            path.focus()
            path.value = typed
            await bench.press("enter")
            note = bench.app.screen.query_one("#open-note", LiteralStatic)
            await bench.until(lambda said=said, note=note: said in str(note.render()), said)
        path.value = "other"
        await bench.press("enter")
        await bench.until(lambda: "there.dlm" in bench.text and "beside.dlm" not in bench.text, "the folder's")
        await bench.press("enter")
        await bench.until(lambda: bench.app.next_document is not None, "left")
    assert bench.app.next_document == other / "there.dlm"
    assert not bench.app.next_is_new
