"""Source folders on the screen: where sections come from, what changed, what a training would take in."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import OptionList

from dlm_tui.document.sources import FileMemory, survey
from dlm_tui.engine.protocol import Reload
from tests.tui.conftest import Bench, Opener
from tests.tui.document import HEAD


def _document(folder: Path, files: int = 3) -> Path:
    (folder / "notes").mkdir()
    for index in range(files):
        (folder / f"notes/n{index:03d}.txt").write_text(f"note {index}")
    path = folder / "harbour.dlm"
    path.write_text(HEAD.replace("  gate:", "  sources: [{path: notes}]\n  gate:"), encoding="utf-8")
    (folder / "harbour.dlm.tui.toml").write_text('[source_adapters]\nnotes = "tone"\n')
    return path


async def _shown(bench: Bench) -> str:
    bench.panes.show_page("outline")
    await bench.until(lambda: bench.context.survey is not None, "looked through")
    await bench.quiet()
    return bench.text


async def test_the_outline_shows_folders_and_what_they_teach(workbench: Opener, tmp_path: Path) -> None:
    path = _document(tmp_path)
    async with workbench(path=path, size=(80, 40)) as bench:
        text = await _shown(bench)
        assert "tone  3 tagged sections and files (needs 4)" in text
        assert "notes  3 files, 0.0 MB  3 new" in text
        assert "+ tone n000.txt" in text


async def test_a_changed_source_file_is_seen_and_said(workbench: Opener, tmp_path: Path) -> None:
    path = _document(tmp_path)
    async with workbench(path=path, size=(80, 40)) as bench:
        await _shown(bench)
        reloads = sum(isinstance(request, Reload) for request in bench.world.requests)
        (tmp_path / "notes/more.txt").write_text("more")
        await bench.until(lambda: "notes  4 files" in bench.text, "seen")
        await bench.until(lambda: any("take in 4 new or changed files of 4" in toast for toast in bench.toasts), "said")
        assert "tone  4 tagged sections and files" in bench.text
        await bench.until(
            lambda: sum(isinstance(request, Reload) for request in bench.world.requests) > reloads, "the gate follows"
        )
        (tmp_path / "notes").rename(tmp_path / "gone")
        await bench.until(lambda: "path does not exist" in bench.text, "said")


async def test_a_document_that_names_other_folders_is_looked_through_anew(workbench: Opener, tmp_path: Path) -> None:
    path = _document(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.txt").write_text("x")
    async with workbench(path=path, size=(80, 40)) as bench:
        await _shown(bench)
        path.write_text(path.read_text().replace("{path: notes}", "{path: more}"))
        await bench.until(lambda: "more  1 file" in bench.text, "the other folder")
        path.write_text(path.read_text().replace("  sources: [{path: more}]\n", ""))
        await bench.until(lambda: bench.context.survey is None and "more  1 file" not in bench.text, "none")


async def test_esc_stops_looking(workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    path = _document(tmp_path, 200)
    hold, entered = threading.Event(), threading.Event()
    real = FileMemory.recall

    def slow(self: FileMemory, *more: object) -> object:
        entered.set()
        hold.wait(30)
        return real(self, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(FileMemory, "recall", slow)
    monkeypatch.setattr(survey, "_REPORT_SECONDS", 0.0)
    async with workbench(path=path, size=(80, 40), wait=False) as bench:
        await bench.until(entered.is_set, "looking")
        await bench.press("escape")
        hold.set()
        await bench.until(lambda: any("not looked through" in toast for toast in bench.toasts), "said")
        assert bench.context.survey is None


async def test_a_file_of_a_folder_opens_in_the_editor(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    path = _document(tmp_path)
    async with workbench(path=path, size=(80, 40)) as bench:
        await _shown(bench)
        monkeypatch.setattr(bench.controllers.documents, "edit", lambda path, line=1: opened.append(path))
        listing = bench.screen.outline.query_one(OptionList)
        listing.highlighted = listing.option_count - 1
        bench.screen.outline.action_open_section()
        await bench.quiet()
        assert opened == [tmp_path / "notes/n002.txt"]
