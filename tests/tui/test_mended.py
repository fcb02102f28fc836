"""What sessions with new users met: marks, keys and words that were missing or misled."""

from __future__ import annotations

from textual.widgets import OptionList

from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.engine.protocol import Failed
from tests.tui.actions import compared
from tests.tui.conftest import Bench, Opener


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
        assert any("starts with the next good save" in toast for toast in bench.toasts) and bench.jobs == []
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
