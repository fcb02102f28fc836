"""What sessions with new users met: marks, keys and words that were missing or misled."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.widgets import Input, OptionList

from dlm_tui.app.config import config_path, state_path
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.keys import KEYS, is_text, keys_of
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.state import note_recent, recent_documents
from dlm_tui.engine.protocol import Failed, Progress, TrainGate
from tests.tui.actions import compared
from tests.tui.conftest import Bench, Opener
from tests.tui.drawn import drawn_strips
from tests.tui.recorded import World


async def training(bench: Bench) -> None:
    """A training that is held at its first step."""
    bench.world.hold.clear()
    await bench.press("ctrl+t")
    await bench.until(lambda: bench.context.board.running("train"), "job runs")


async def test_escape_leaves_the_prompt_first_also_while_training(workbench: Opener) -> None:
    async with workbench() as bench:
        await training(bench)
        await bench.press("escape")
        assert bench.panes.focused_pane == "desk" and not any("Esc again" in toast for toast in bench.toasts)
        await bench.press("escape")
        assert any("Esc again stops" in toast for toast in bench.toasts) and bench.context.board.running("train")
        await bench.press("escape")
        await bench.until(lambda: not bench.context.board.running(), "stopped")


async def test_a_failed_job_leaves_a_mark_until_it_was_looked_at(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.world.fail_job = Failed(kind="OSError", text="The disk is full.")
        await bench.press("ctrl+t")
        await bench.until(lambda: "training failed, see Jobs" in bench.text, "marked")
        bench.app.clear_notifications()
        await bench.press("f4", "f4")
        assert "training failed, see Jobs" in bench.text
        await bench.press("f4")
        await bench.until(lambda: "The disk is full." in bench.text, "looked at")
        await bench.until(lambda: "training failed, see Jobs" not in bench.text, "no mark any more")
        await bench.press("f4")
        assert "training failed, see Jobs" not in bench.text


async def test_a_label_begins_at_the_adapter_of_the_focused_answer(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await compared(bench)
        for view in ("knowledge", "style"):
            card = next(card for card in bench.screen.answers.cards if card.view == view)
            card.focus()
            await bench.until(lambda card=card: card.has_focus, view)  # type: ignore[misc]
            await bench.press("l")
            await bench.until(lambda: isinstance(bench.app.screen, LabelScreen), "dialog")
            names = list(bench.context.names)
            assert bench.app.screen.query_one(OptionList).highlighted == names.index(view)
            await bench.press("escape")


async def test_the_title_of_an_answer_stays_while_its_text_scrolls(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        bench.world.words = 400
        await bench.type("what is")
        await bench.press("ctrl+g")
        await bench.until(lambda: "word399" in bench.text, "the end is in view")
        card = bench.screen.answers.current
        assert card is not None and card.scroll_offset.y > 0
        await bench.until(lambda: "gated  400 tokens" in bench.text, "and so is the title")


async def test_a_training_that_waits_for_a_good_save_starts_with_it(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        text = bench.path.read_text()
        bench.path.write_text(text.replace("dlm_version: 15", "dlm_version: [", 1))
        await bench.until(lambda: bench.context.document_error is not None, "broken")
        await bench.press("ctrl+t")
        await bench.until(lambda: any("starts with the next good save" in t for t in bench.toasts), "said")
        assert bench.jobs == []
        bench.path.write_text(text)
        await bench.until(lambda: len(bench.jobs) == 1, "started")
        await bench.idle()
        bench.path.write_text(text + "::instruction#tone::\n### Q\nA new one?\n\n### A\nYes.\n")
        await bench.until(lambda: len(bench.context.document.sections) == 14, "saved again")
        await bench.idle()
        assert len(bench.jobs) == 1


async def test_losses_that_are_not_there_are_a_sentence(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.panes.go_to("runs")
        await bench.until(lambda: bench.panes.focused_pane == "runs", "runs")
        await bench.press("space")
        await bench.until(lambda: "No training has run since the start" in bench.text, "said")
        await bench.press("ctrl+t")
        await bench.idle()
        bench.panes.show_page("runs")
        await bench.until(lambda: "loss nats/token" in bench.text, "drawn")
        legend = next(line for line in bench.text.splitlines() if "loss nats/token" in line)
        assert "knowledge 2.00" in legend and "style 1.20" in legend and "gate" not in legend, "which is per prompt"


@pytest.mark.parametrize(("height", "room"), [(40, 2), (20, 1)])
async def test_preference_losses_have_a_chart_of_their_own(workbench: Opener, height: int, room: int) -> None:
    async with workbench(size=(100, height)) as bench:
        bench.screen.runs.action_toggle_chart()
        bench.panes.show_page("runs")
        for step in range(1, 9):
            kind = "sft" if step < 6 else "dpo"
            bench.screen.runs.add_loss("style", kind, step, 3.0 / step if kind == "sft" else 0.69)
        bench.screen.runs.add_loss("gate", "gate", 1.0, 0.5)
        await bench.until(lambda: "dpo loss nats/pair" in bench.text and "style 0.69" in bench.text, "apart")
        lines = [line for line in bench.text.splitlines() if "loss nats/" in line]
        assert len(lines) == room and "gate" not in "".join(lines)
        assert room == 1 or ("loss nats/token" in lines[0] and "style 0.60" in lines[0])
        bench.screen.runs.add_loss("tone", "sft", 9, 2.5)
        await bench.until(lambda: "loss nats/token" in bench.text and "tone 2.50" in bench.text, "the one of late")


async def test_the_loss_of_a_gate_alone_is_per_prompt(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.screen.runs.action_toggle_chart()
        await bench.press("f5")
        await bench.idle()
        bench.panes.show_page("runs")
        await bench.until(lambda: "gate loss nats/prompt  gate 0.33" in bench.text, "drawn")


async def test_f10_leaves_from_a_dialog(workbench: Opener) -> None:
    async with workbench() as bench:
        await training(bench)
        bench.screen.action_help()
        await bench.until(lambda: isinstance(bench.app.screen, HelpScreen), "help")
        await bench.press("f10")
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "asked")
        await bench.press("f10")
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "asked again, once")
        assert len(bench.app.screen_stack) == 3
        await bench.click("#yes")
        await bench.until(lambda: bench.app._exit, "left")


async def test_sections_that_no_training_has_seen_are_explained(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        bench.panes.show_page("outline")
        await bench.until(lambda: "4 tagged sections" in bench.text, "counted")
        assert "not trained yet" not in bench.text
        await bench.press("ctrl+t")
        await bench.idle()
        text = bench.path.read_text()
        bench.path.write_text(text + "::instruction#tone::\n### Q\nA new one?\n\n### A\nYes.\n")
        bench.panes.show_page("outline")
        await bench.until(lambda: "tone  5 tagged sections  v2  + 1 not trained yet" in bench.text, "the legend")
        bench.path.write_text(text.replace("::instruction#tone::", "::instruction::"))
        await bench.until(lambda: "tone  0 tagged sections (needs 4)" in bench.text, "too few")


async def test_the_trajectory_has_axes_and_the_insight_says_train_first(workbench: Opener) -> None:
    async with workbench(size=(200, 60)) as bench:
        bench.screen.prompt_pane.set_text("what is the tide at noon?")
        await bench.until(lambda: "How the gate moved" in bench.text and "unlike 0.20" in bench.text, "explained")
        await bench.idle()
        rows = [line for line in bench.text.split("\n") if "\u2588\u2588" in line or "what" in line]
        shown = "\n".join(rows)
        assert "1 \u2588" in shown and "0 \u2588" in shown
        assert any(row.rstrip(" \u2502").endswith("noon?") and "what" in row for row in rows)
    async with workbench(size=(200, 60), world=World(trained=False)) as bench:
        bench.screen.prompt_pane.set_text("")
        await bench.until(lambda: "Train first (^t)" in bench.text, "said")


async def test_judge_and_drift_have_keys_in_the_prompt(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.type("what")
        for key, words in (("alt+v", "92%"), ("alt+d", "static mean")):
            await bench.press(key)
            await bench.until(lambda words=words: words in bench.text, key)  # type: ignore[misc]
            await bench.press("escape")
        assert bench.screen.prompt_pane.text == "what"


async def test_keys_that_browsers_keep_have_a_second_one(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what")
        await bench.press("alt+n")
        assert bench.screen.prompt_pane.text == "" and bench.context.state.history[0].text == "what"
        await bench.type("please")
        await bench.press("alt+l")
        await bench.until(lambda: isinstance(bench.app.screen, LabelScreen), "label")
        await bench.press("escape", "alt+m")
        await bench.until(lambda: bench.jobs, "training")
        await bench.idle()
        await bench.press("alt+g")
        await bench.until(lambda: any(isinstance(one, TrainGate) for one in bench.world.requests), "gate training")
        await bench.idle()
    kept = {"ctrl+t", "ctrl+n", "ctrl+w", "ctrl+l", "f5"}
    for key in KEYS:
        others = [one for one in keys_of(key, {}) if one not in kept and not is_text(one)]
        assert others or not kept & set(keys_of(key, {})), key.id


async def test_the_help_is_filtered_by_words(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.press("f1")
        await bench.until(lambda: isinstance(bench.app.screen, HelpScreen), "help")
        await bench.type("gate train")
        await bench.until(lambda: "train.gate" in bench.text and "prompt.answer" not in bench.text, "filtered")
        await bench.press("escape")
        await bench.until(lambda: bench.app.screen is bench.screen, "closed")


async def test_the_palette_finds_by_word(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.leave_prompt()
        for query, name in (
            ("go to prompt", "prompt: go to prompt"),
            ("mix reset", "gate: reset mix"),
            ("calibration", "train: judge gate"),
        ):
            await bench.press("ctrl+p")
            await bench.until(lambda: CommandPalette.is_open(bench.app), "palette")
            await bench.until(lambda: "(Esc closes)" in bench.text, "how to leave")
            bench.app.screen.query_one(Input).value = query
            await bench.until(lambda name=name: name in bench.text, name)  # type: ignore[misc]
            await bench.press("escape", "escape")
            await bench.until(lambda: bench.app.screen is bench.screen, "closed")


def test_what_is_typed_is_kept_where_dlm_home_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DLM_HOME")
    assert state_path() == tmp_path / "state" / "dlm-tui"
    monkeypatch.setenv("DLM_HOME", str(tmp_path / "home"))
    assert state_path() == tmp_path / "home" / "dlm-tui"
    document = tmp_path / "a.dlm"
    document.touch()
    note_recent(document)
    assert recent_documents() == [document] and (tmp_path / "home" / "dlm-tui" / "recent.json").exists()


async def test_colours_reach_every_widget_at_once(workbench: Opener) -> None:
    async with workbench(size=(200, 60)) as bench:
        await compared(bench)
        await bench.until(lambda: "changes the next token" in bench.text, "explained and measured")
        dark = bench.context.marks["tone"].color
        assert colours(bench, "tone") == {dark}
        bench.app.choose_theme("dlm-light")
        light = bench.context.marks["tone"].color
        await bench.until(lambda: colours(bench, "tone") == {light} != {dark}, "in the light theme's colours")


def colours(bench: Bench, name: str) -> set[str]:
    """The colours in which an adapter's glyph is drawn anywhere on the screen, outside of the text of prompts."""
    glyph = bench.context.marks[name].glyph
    found = set()
    for strip in drawn_strips(bench.app):
        for segment in strip:
            if glyph in segment.text and segment.style and segment.style.color:
                found.add(segment.style.color.name)
    return found


async def test_a_configuration_changed_from_outside_applies(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await compared(bench)
        path = config_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('theme = "dlm-light"\n[generate]\nmax_tokens = 9\n[keys]\n"prompt.answer" = "f6"\n')
        await bench.until(lambda: bench.context.config.generate.max_tokens == 9, "read")
        await bench.until(lambda: "F6 Answer" in bench.text and bench.app.theme == "dlm-light", "in force")
        path.write_text("[generate]\nmax_tokens = 'many'\n")
        await bench.until(lambda: any("generate.max_tokens" in toast for toast in bench.toasts), "refused")
        path.write_text('[look]\npalette = ["nosuch_colour"]\n')
        await bench.until(lambda: any("look.palette[0]" in toast for toast in bench.toasts), "refused, too")
        assert bench.context.config.generate.max_tokens == 9
        path.write_text('theme = "dlm-dark"\n[look]\npalette = ["teal", "orchid", "ansi_cyan"]\n')
        await bench.until(lambda: colours(bench, "tone") == {"#da70d6"}, "in the colours of the file")


async def test_an_error_of_the_frontmatter_leads_to_its_key(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workbench(size=(100, 34)) as bench:
        opened: list[int] = []
        monkeypatch.setattr(bench.controllers.documents, "edit", lambda path, line: opened.append(line))
        text = bench.path.read_text()
        line = text[: text.index("tone: {lora_r")].count("\n") + 1
        bench.path.write_text(text.replace("tone: {lora_r: 4}", "tone: {lora_r: many}", 1))
        await bench.until(lambda: bench.context.document_error is not None, "broken")
        assert f"line {line}: training.adapters.tone.lora_r" in str(bench.context.document_error)
        bench.panes.go_to("outline")
        await bench.until(lambda: bench.panes.focused_pane == "outline", "outline")
        await bench.press("enter")
        assert opened == [line]
        bench.path.write_text(text.replace("dlm_id:", "no_id:", 1))
        await bench.until(lambda: "one that is free: dlm_id: " in str(bench.context.document_error), "an id is offered")


def test_progress_never_runs_backwards() -> None:
    record = JobRecord("train", "train")
    for done, eta, shown in ((5, 10.0, 5), (4, 12.0, 5), (6, 9.0, 6)):
        record.take(Progress(stage="train", scope="tone", done=done, total=10, eta=eta))
        assert record.progress is not None and record.progress.done == shown
    assert record.fraction == 0.6 and record.progress.eta == 9.0
    record.take(Progress(stage="train", scope="style", done=1, total=10))
    assert record.fraction == 0.1


def test_work_that_begins_anew_under_the_same_name_is_not_shown_as_done() -> None:
    record = JobRecord("export", "export peft")
    for done in (17, 18, 0, 9):
        record.take(Progress(stage="runtime", done=done, total=18))
        assert record.fraction == done / 18
    record.take(Progress(stage="runtime", done=8, total=18, text="another file"))
    assert record.fraction == 8 / 18


async def test_what_is_empty_says_so(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("ctrl+r")
        await bench.until(lambda: "No prompt was asked yet." in bench.text, "no prompt")
        await bench.press("escape", "alt+h")
        await bench.until(lambda: "No answer is kept yet" in bench.text, "no answer")
        await bench.type("x")
        await bench.until(lambda: "No answer fits." in bench.text, "none that fits")


async def test_the_label_dialog_is_readable_at_80_columns(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is the tide")
        await bench.press("ctrl+l")
        await bench.until(lambda: "(without one only the gate learns from the prompt)" in bench.text, "whole")
