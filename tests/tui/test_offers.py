"""Registering an export with Ollama, what runs the model, and what the tints of an answer say."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Checkbox

from dlm_tui.app.engine_facts import bytes_text
from dlm_tui.app.screens.export import ExportScreen
from dlm_tui.engine.protocol import ExportJob
from dlm_tui.export.choices import GGUF_TARGETS
from dlm_widgets.answer_card import heat_style
from dlm_widgets.tick_box import TickBox
from tests.tui.conftest import Bench, Opener
from tests.tui.recorded import World


async def open_export(bench: Bench) -> Checkbox:
    """The export dialog with Ollama as the target."""
    await bench.leave_prompt()
    await bench.press("E")
    await bench.until(lambda: "Number format" in bench.text, "dialog")
    box = bench.app.screen.query_one(Checkbox)
    assert not box.display
    await bench.press("home", "down")
    await bench.until(lambda: "one merged GGUF and a Modelfile" in bench.text, "ollama is marked")
    return box


async def test_a_tick_is_told_from_none_without_colour(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        await open_export(bench)
        box = bench.app.screen.query_one("#export-compare", TickBox)
        words = "Measure what each format costs first"
        for mark in (" ", "X", " "):
            await bench.until(lambda mark=mark: f"{mark}\u258c {words}" in bench.text, mark or "none")
            box.toggle()


def last_export(bench: Bench) -> ExportJob:
    request = bench.jobs[-1].request
    assert isinstance(request, ExportJob)
    return request


async def test_without_an_export_there_is_no_command_to_copy(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        await open_export(bench)
        await bench.press("f8")
        await bench.until(lambda: "since the start: there is no command to copy." in bench.text, "said")


async def test_a_target_that_the_base_cannot_have_is_marked_with_the_reason(
    workbench: Opener,
) -> None:
    world = World()
    world.no_exports = dict.fromkeys(GGUF_TARGETS, "the architecture 'gpt2' cannot be written as GGUF here")
    async with workbench(size=(100, 40), world=world) as bench:
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "ollama (not here)" in bench.text, "marked")
        assert "llama-server (not here)" in bench.text and "peft (not here)" not in bench.text
        await bench.press("home", "down")
        reason = "not from this base: the architecture 'gpt2' cannot be written as GGUF here"
        await bench.until(lambda: f"ollama: {reason}" in plain(bench), "the reason")
        await bench.press("ctrl+g")
        await bench.until(lambda: f"No ollama {reason.removeprefix('not ')}" in plain(bench), "refused")
        assert isinstance(bench.app.screen, ExportScreen) and not bench.jobs
        await bench.press("home", "ctrl+g")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        assert last_export(bench).target == "peft"


def plain(bench: Bench) -> str:
    """What is on the screen, line breaks and frames as single blanks."""
    return " ".join(bench.text.replace("\u2502", " ").split())


async def test_without_ollama_the_dialog_says_so(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with workbench(size=(100, 34)) as bench:
        bench.context.state.export.register = True
        box = await open_export(bench)
        assert "no ollama is installed here" in " ".join(bench.text.replace("\u2502", " ").split())
        assert not box.display
        await bench.press("ctrl+g")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        assert last_export(bench).target == "ollama" and not last_export(bench).register


@pytest.mark.parametrize("works", [True, False])
async def test_with_ollama_it_registers_when_asked(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with workbench(size=(100, 34)) as bench:
        if not works:
            bench.world.registered = None
            bench.world.register_error = "ollama create ended with code 1"
        box = await open_export(bench)
        assert box.display and not box.value
        await bench.press("tab", "tab", "tab")
        await bench.until(lambda: bench.app.screen.focused is box, "the box has the focus")
        await bench.press("space")
        await bench.until(lambda: box.value, "chosen")
        await bench.press("ctrl+g")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        assert last_export(bench).register and bench.context.state.export.register
        said = "Registered with Ollama as dlm-harbour:v0001." if works else "Not registered with Ollama: ollama create"
        assert any(said in toast for toast in bench.toasts)


async def test_about_the_engine(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.controllers.engine.show_facts()
        await bench.until(lambda: "About the engine" in bench.text, "shown")
        for fact in (
            "2,100,000",
            "knowledge v1, tone v1, style v1",
            "cpu, answers in float32",
            "fused:",
            "812 MiB",
            "75 s",
        ):
            assert fact in bench.text
        await bench.press("escape")
        bench.engines[-1].die()
        await bench.until(lambda: len(bench.engines) == 2 and bench.context.link.ready, "another engine")


def test_bytes_have_units() -> None:
    counts = (0, 999, 1024, 1_500_000, 851_443_712, 1023 * 1024**2, 140 * 1024**3)
    assert [bytes_text(count) for count in counts] == [
        "0 bytes", "999 bytes", "1.00 KiB", "1.43 MiB", "812 MiB", "1.00 GiB", "140 GiB"
    ]  # fmt: skip


def test_heat_tints_what_the_mix_likes_more_and_greys_what_it_likes_less() -> None:
    assert [heat_style(nats, "#ff0000", "#000000") for nats in (0.0, 0.2, -0.2, float("nan"))] == [""] * 4
    more, most = heat_style(1.0, "#ff0000", "#000000"), heat_style(9.0, "#ff0000", "#000000")
    assert " on #" in more and " on #" in most and more != most
    assert heat_style(-1.0, "#ff0000", "#000000") == heat_style(-9.0, "#ff0000", "#000000") == "dim"


async def test_the_legend_is_there_while_answers_are_tinted(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.press("ctrl+g")
        await bench.idle()
        legend = "tinted: more likely than under the base \u00b7 grey: less likely"
        assert legend not in bench.text
        bench.panes.focus_pane("answers")
        await bench.until(lambda: bench.panes.focused_pane == "answers", "focus")
        await bench.press("h")
        await bench.until(lambda: f"Next answer: {legend}" in bench.text, "legend")
        await bench.press("ctrl+g")
        await bench.idle()
        await bench.until(lambda: legend in bench.text and "Next answer:" not in bench.text, "tinted")
        await bench.press("h")
        await bench.until(lambda: legend not in bench.text, "gone")
