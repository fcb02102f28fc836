"""Foreign text is shown literally everywhere: no markup, no escapes, no bidi, nothing hidden, no broken columns."""

from __future__ import annotations

from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from textual.widgets import Input, Static, TextArea

from dlm_tui.app.cards import CardKey
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.expect import ExpectScreen
from dlm_tui.app.screens.log import LogScreen
from dlm_tui.app.screens.moved import MovedScreen
from dlm_tui.app.screens.section import SectionScreen
from dlm_tui.document.comparison import Moved
from dlm_tui.document.expectations import Expectation
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.engine.protocol import Progress, Routed, TokenAttribution
from dlm_tui.store import KeptAnswer, Piece
from tests.tui.conftest import Bench, Opener
from tests.tui.document import HEAD
from tests.tui.drawn import drawn_strips

HOSTILE = "[bold red]x[/] [@click=app.quit]q[/] \x1b[31m\x1b]0;t\x07 \u202egnp\u2066 z\u200bw\ufeff 日本語 e\u0301\u0301\u0301\u0301\u0301 \x9b \ud800"  # noqa: E501
FORBIDDEN = set("\x1b\x07\x9b\u202e\u2066\u200b\ufeff\r\ud800")


def assert_tame(bench: Bench) -> None:
    width = bench.app.size.width
    for strip in drawn_strips(bench.app):
        text = "".join(segment.text for segment in strip)
        assert not FORBIDDEN & set(text), ascii(text)
        assert cell_len(text) <= width
        for segment in strip:
            assert not (segment.style and segment.style.meta.get("@click")), segment


async def test_every_pane_shows_hostile_text_literally(workbench: Opener, tmp_path: Path) -> None:
    body = HOSTILE.replace("\ud800", "").replace("\n", " ")
    path = tmp_path / "h[bold]\u202ex.dlm"
    path.write_text(HEAD + f"::instruction#tone::\n{body}\n### Q\n{body}\n### A\n{body}\n", encoding="utf-8")
    async with workbench(path=path, size=(200, 60)) as bench:
        screen = bench.screen
        screen.prompt_pane.set_text(HOSTILE)
        await bench.idle()
        attributions = [TokenAttribution(text=HOSTILE, start=0, end=1, attribution={"tone": 1.0})]
        routed = Routed(prompt="p", weights={"tone": 1.0}, entropy=0, normalised_entropy=0, mode="trained", tokens=1,
                        attributions=attributions, trajectory=[{"tone": 1.0}] * 3)  # fmt: skip
        screen.insight.show_route(routed, screen.context.names, screen.context.marks, screen.context.background)
        screen.insight.effect_pending(HOSTILE)
        await screen.answers.begin([CardKey(HOSTILE), CardKey("base")], {})
        screen.answers.add(CardKey(HOSTILE), HOSTILE, None)
        screen.answers.add(CardKey("base"), HOSTILE, 3.0)
        screen.answers.action_toggle_heat()
        await bench.idle()
        record = JobRecord("train", HOSTILE)
        record.take(Progress(stage=HOSTILE, scope=HOSTILE, done=1, total=2, text=HOSTILE))
        record.log.append(HOSTILE)
        screen.context.board.records.appendleft(record)
        screen.outline.show_error(HOSTILE)
        screen.context.document_error = HOSTILE
        screen.controllers.status.redraw()
        screen.ui.say(HOSTILE, title=HOSTILE)
        screen.panes.show_page("jobs")
        await bench.pilot.pause()
        assert_tame(bench)
        shown = bench.text
        assert "[bold red]x[/]" in shown and "[@click=app.quit]" in shown and "‹U+202E›" in shown and "␛" in shown
        screen.context.board.records.clear()
        screen.context.document_error = None


async def test_every_dialog_shows_hostile_text_literally(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        screen = bench.screen
        text = HOSTILE.replace("\ud800", "")
        screen.prompt_pane.set_text(text)
        await bench.idle()
        screen.context.state.remember(text, {"tone": 1.0, "knowledge": 0.0, "style": 0.0}, 1)
        moved = MovedScreen([Moved(HOSTILE, {"tone": 1.0}, {"tone": 0.0})], screen.context.names, screen.context.marks)
        openers = [
            lambda: bench.app.push_screen(ConfirmScreen(HOSTILE, HOSTILE)),
            lambda: bench.app.push_screen(LogScreen(HOSTILE, [HOSTILE])),
            lambda: bench.app.push_screen(moved),
            lambda: bench.app.push_screen(SectionScreen("Edit", lambda _: "", content=text)),
            lambda: bench.app.push_screen(ExpectScreen(PromptCase(text, (Expectation("contains", text),)))),
            screen.action_label,
            screen.action_history,
            screen.action_prompt_sets,
        ]
        for opener in openers:
            opener()
            await bench.until(lambda: bench.app.screen is not screen, "dialog")
            await bench.pilot.pause()
            assert_tame(bench)
            assert "[@click=app.quit]" in bench.text
            await bench.press("escape")
            await bench.until(lambda: bench.app.screen is screen, "closed")
        screen.context.state.export.mix = "tone:0.5,[bold]:1"
        screen.context.state.last_export = screen.context.state.export.out = text
        screen.action_export_dialog()
        await bench.until(lambda: "[bold red]x[/]" in bench.text, "export dialog")
        assert_tame(bench)


async def test_a_widget_that_is_made_for_trusted_text_lets_nothing_through(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        await bench.screen.mount(Static(Text(HOSTILE)), TextArea(HOSTILE), Input(HOSTILE))
        await bench.pilot.pause()
        lines = ["".join(segment.text for segment in strip) for strip in drawn_strips(bench.app)]
        assert sum("[bold red]x[/]" in line for line in lines) == 3
        assert not (FORBIDDEN - {"\ud800"}) & set("".join(lines))


async def test_kept_answers_show_hostile_text_literally(workbench: Opener) -> None:
    """On the pane, in the history, compared with another one, found in."""
    text = HOSTILE.replace("\ud800", "")
    async with workbench(size=(120, 40)) as bench:
        answers = [
            KeptAnswer(
                prompt=text, text=words, view=text, kind="custom", mix={text: 1.0}, versions={}, base=text, seed=0,
                temperature=0.0, top_p=1.0, max_tokens=8, reason="stop", at=f"2026-03-01T10:00:0{number}.000Z",
                pieces=[Piece(words, 4.0)],
            )
            for number, words in enumerate((f"{text} one", f"two {text}"))
        ]  # fmt: skip
        bench.context.archive.keep(answers)
        bench.screen.prompt_pane.set_text(text)
        await bench.until(lambda: len(bench.screen.answers.cards) == 1, "on the pane")
        bench.panes.focus_pane("answers")
        await bench.press("f", "x")
        await bench.settled()
        assert_tame(bench)
        await bench.press("escape")
        for pressed, there in (("H", "Found: 2."), ("d", "Words:")):
            await bench.press(pressed)
            await bench.until(lambda there=there: there in bench.text, there)  # type: ignore[misc]
            await bench.press("space" if pressed == "d" else "down")
            await bench.quiet()
            assert_tame(bench)
            assert "[@click=app.quit]" in bench.text
            await bench.press("escape")


async def test_hostile_engine_words(workbench: Opener) -> None:
    from tests.tui.recorded import World

    world = World()
    world.fail_open = HOSTILE
    async with workbench(world=world) as bench:
        assert_tame(bench)
        assert "[bold red]x[/]" in bench.text
