"""Sections from the screen: added, edited, given away, deleted, taken back; the text around them stays as it is."""

from __future__ import annotations

from textual.widgets import OptionList, TextArea

from dlm_tui.app.screens.section import RetagScreen, SectionScreen
from tests.tui.conftest import Bench, Opener


async def _at_first_section(bench: Bench) -> None:
    bench.panes.go_to("outline")
    await bench.quiet()
    bench.screen.outline.query_one(OptionList).highlighted = 1
    await bench.quiet()


def _dialog(bench: Bench) -> SectionScreen:
    assert isinstance(bench.app.screen, SectionScreen)
    return bench.app.screen


async def _changed(bench: Bench, before: bytes) -> bytes:
    await bench.until(lambda: bench.path.read_bytes() != before, "written")
    await bench.until(lambda: bench.context.document.sha256 not in ("", _sha(before)), "read again")
    return bench.path.read_bytes()


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


async def test_a_question_with_its_answer_is_added_and_taken_back(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        await bench.press("a")
        await bench.until(lambda: isinstance(bench.app.screen, SectionScreen), "dialog")
        await bench.type("Where is the key?")
        await bench.press("ctrl+g")
        assert _dialog(bench).is_current, "an answer is missing, so nothing is written"
        text = _dialog(bench).query_one(TextArea)
        text.move_cursor((3, 0))
        await bench.type("Here.")
        await bench.press("ctrl+g")
        after = await _changed(bench, before)
        assert after == before + b"::instruction#knowledge::\n### Q\nWhere is the key?\n### A\nHere.\n"
        await bench.until(lambda: any("Added at line" in toast for toast in bench.toasts), "said")
        await bench.press("u")
        await bench.until(lambda: bench.path.read_bytes() == before, "taken back")


async def test_a_section_is_edited_in_place(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        await bench.press("e")
        await bench.until(lambda: isinstance(bench.app.screen, SectionScreen), "dialog")
        text = _dialog(bench).query_one(TextArea)
        assert text.text == "### Q\nWhat is the tide at 1?\n\n### A\nAnswer 1."
        text.text = "### Q\nWhat is the tide at 1?"
        await bench.quiet()
        await bench.press("ctrl+g")
        assert "### A" in bench.text or "answer" in bench.text.lower()
        assert bench.path.read_bytes() == before
        text.text = "### Q\nWhat is the tide at 1?\n\n### A\nNoon."
        await bench.quiet()
        await bench.press("ctrl+g")
        after = await _changed(bench, before)
        assert after == before.replace(b"Answer 1.", b"Noon.", 1)
        await bench.press("u")
        await bench.until(lambda: bench.path.read_bytes() == before, "taken back")


async def test_a_section_is_given_to_another_adapter_and_to_all(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        await bench.press("t")
        await bench.until(lambda: isinstance(bench.app.screen, RetagScreen), "dialog")
        await bench.press("down", "enter")
        after = await _changed(bench, before)
        assert after == before.replace(b"::instruction#knowledge::", b"::instruction#tone::", 1)
        await bench.press("u")
        await bench.until(lambda: bench.path.read_bytes() == before, "taken back")


async def _saved_elsewhere(bench: Bench, data: bytes) -> None:
    bench.path.write_bytes(data)
    await bench.until(lambda: bench.context.document.sha256 == _sha(data), "the save is taken in")


async def test_an_edit_finds_its_section_in_what_another_program_saved_meanwhile(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        await bench.press("e")
        await bench.until(lambda: isinstance(bench.app.screen, SectionScreen), "dialog")
        theirs = before.replace(
            b"::instruction#knowledge::",
            b"::instruction#tone::\n### Q\nNew?\n\n### A\nYes.\n\n::instruction#knowledge::",
            1,
        )
        await _saved_elsewhere(bench, theirs)
        _dialog(bench).query_one(TextArea).text = "### Q\nWhat is the tide at 1?\n\n### A\nNoon."
        await bench.quiet()
        await bench.press("ctrl+g")
        assert await _changed(bench, theirs) == theirs.replace(b"Answer 1.", b"Noon.", 1)


async def test_an_edit_of_what_another_program_changed_is_refused_and_kept(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        theirs = before.replace(b"Answer 1.", b"High.", 1)
        for key, dialog in (("e", SectionScreen), ("t", RetagScreen)):
            await _saved_elsewhere(bench, before)
            await _at_first_section(bench)
            bench.app.clear_notifications()
            await bench.press(key)
            await bench.until(lambda dialog=dialog: isinstance(bench.app.screen, dialog), "dialog")
            await _saved_elsewhere(bench, theirs)
            if key == "e":
                _dialog(bench).query_one(TextArea).text = "### Q\nWhat is the tide at 1?\n\n### A\nNoon."
                await bench.quiet()
                await bench.press("ctrl+g")
                await bench.until(lambda: "Noon." in bench.app.clipboard, "what was typed is kept")
            else:
                await bench.press("down", "enter")
            await bench.until(lambda: any("Nothing was written" in toast for toast in bench.toasts), "refused")
            assert bench.path.read_bytes() == theirs


async def test_a_section_is_deleted_and_a_later_save_is_not_undone(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        await bench.press("delete")
        after = await _changed(bench, before)
        assert after == before.replace(
            b"::instruction#knowledge::\n### Q\nWhat is the tide at 1?\n\n### A\nAnswer 1.\n\n", b"", 1
        )
        bench.path.write_bytes(after + b"\nMore.\n")
        await bench.until(lambda: bench.context.document.sha256 == _sha(after + b"\nMore.\n"), "read")
        await bench.press("u")
        await bench.until(lambda: any("nothing was undone" in toast for toast in bench.toasts), "refused")
        assert bench.path.read_bytes() == after + b"\nMore.\n"


async def test_another_kind_brings_its_form_but_never_over_typed_text(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        await _at_first_section(bench)
        await bench.press("a")
        await bench.until(lambda: isinstance(bench.app.screen, SectionScreen), "dialog")
        kinds, text = _dialog(bench).query_one("#section-kind", OptionList), _dialog(bench).query_one(TextArea)
        kinds.highlighted = 1
        await bench.quiet()
        assert text.text.startswith("### Prompt")
        text.text = "### Prompt\nmine"
        kinds.highlighted = 2
        await bench.quiet()
        assert text.text == "### Prompt\nmine"
        assert "Write it" in bench.text
        await bench.press("escape")
        assert not isinstance(bench.app.screen, SectionScreen)


async def test_on_a_heading_there_is_nothing_to_delete(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await _at_first_section(bench)
        bench.screen.outline.query_one(OptionList).highlighted = 0
        await bench.press("delete")
        await bench.until(lambda: any("Choose a section first" in toast for toast in bench.toasts), "said")
        await bench.press("u")
        await bench.until(lambda: any("Nothing in the document was changed" in toast for toast in bench.toasts), "said")
        assert bench.path.read_bytes() == before
