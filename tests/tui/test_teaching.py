"""Answers that teach: kept, mended, called better; what is shown is what is written, and undo outlives the program."""

from __future__ import annotations

from textual.widgets import TextArea

from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.screens.lesson import LessonScreen
from dlm_tui.document import load
from dlm_widgets.literal_static import LiteralStatic
from tests.tui import actions
from tests.tui.conftest import Bench, Opener
from tests.tui.test_conversation import ONE, THREE, TWO, follow, three_turns, type_prompt


async def opened(bench: Bench, *keys: str, pane: str = "answers") -> LessonScreen:
    bench.panes.focus_pane(pane)
    await bench.quiet()
    await bench.press(*keys)
    await bench.until(lambda: actions.showing(bench, LessonScreen), "dialog")
    assert isinstance(bench.app.screen, LessonScreen)
    return bench.app.screen


async def written(bench: Bench, before: bytes) -> bytes:
    """What was added to the document; it has to be what the dialog showed."""
    diff = str(bench.app.screen.query_one("#lesson-diff", LiteralStatic).text)
    shown = [line.removeprefix("+ ") for line in diff.splitlines()]
    await bench.press("ctrl+g")
    await bench.until(lambda: bench.path.read_bytes() != before, "written")
    added = bench.path.read_bytes().removeprefix(before)
    assert added.decode().strip("\n").splitlines() == shown
    await bench.idle()
    return added


async def test_an_answer_is_kept_and_taken_back_after_a_restart(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await actions.answered(bench)
        bench.screen.prompt_pane.set_text("something else meanwhile")
        await bench.idle()
        await opened(bench, "K")
        added = await written(bench, before)
        assert added == (
            b'::instruction#knowledge::\n<!-- dlm-auto-harvest: source="dlm-tui/keep/gated" -->\n'
            b"### Q\nwhat is the tide\n### A\n" + b" ".join(b"gated word%d" % n for n in range(6)) + b"\n"
        )
        assert load(bench.path).sections[-1].auto_harvest
    async with workbench() as bench:
        await bench.leave_prompt()
        await bench.press("u")
        await bench.until(lambda: bench.path.read_bytes() == before, "taken back")
        await bench.until(lambda: any("taken out" in toast for toast in bench.toasts), "said")


async def test_the_better_of_two_answers_becomes_a_preference(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await actions.compared(bench)
        bench.panes.focus_pane("answers")
        await bench.press("n", "n", "n")
        assert actions.view(bench) == "tone"
        await opened(bench, "B")  # the newest run is read before it opens
        await bench.press("down")
        added = (await written(bench, before)).decode()
        assert added.startswith('::preference#tone::\n<!-- dlm-auto-harvest: source="dlm-tui/better/tone" -->\n')
        chosen = " ".join(f"tone word{n}" for n in range(6))
        rejected = " ".join(f"gated word{n}" for n in range(6))
        assert added.endswith(f"### Prompt\nwhat is the tide\n### Chosen\n{chosen}\n### Rejected\n{rejected}\n")


async def test_an_edited_answer_is_kept_and_a_header_in_it_is_refused(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await actions.answered(bench)
        dialog = await opened(bench, "e")
        text = dialog.query_one(TextArea)
        text.text = "Noon.\n### A\nNever."
        await bench.quiet()
        await bench.press("ctrl+g")
        assert dialog.is_current and bench.path.read_bytes() == before and "header" in bench.text
        text.text = "Noon."
        await bench.quiet()
        added = await written(bench, before)
        assert added.endswith(b"### A\nNoon.\n") and b'source="dlm-tui/edit/gated"' in added


async def test_what_cannot_teach_says_why(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.screen.controllers.teaching.open("keep")
        await bench.until(lambda: any("no answer to learn from" in toast for toast in bench.toasts), "said")
        await actions.answered(bench)
        bench.screen.controllers.teaching.open("better")
        await bench.until(lambda: any("only one answer" in toast for toast in bench.toasts), "said")


async def test_a_marked_turn_is_kept_and_mended_with_its_own_prompt(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await three_turns(bench)
        await type_prompt(bench, "something else meanwhile")
        await opened(bench, "up", "K", pane="talk")
        added = await written(bench, before)
        answer = b" ".join(b"gated word%d" % n for n in range(6))
        assert b'source="dlm-tui/keep/gated"' in added and added.endswith(
            b"### Q\n" + TWO.encode() + b"\n### A\n" + answer + b"\n"
        )
        dialog = await opened(bench, "up", "e", pane="talk")
        dialog.query_one(TextArea).text = "Low at noon."
        await bench.quiet()
        added = await written(bench, bench.path.read_bytes())
        assert b'source="dlm-tui/edit/gated"' in added
        assert added.endswith(b"### Q\n" + ONE.encode() + b"\n### A\nLow at noon.\n")


async def test_a_turn_is_better_than_a_branch_that_asks_the_same(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await three_turns(bench)
        bench.panes.focus_pane("talk")
        await bench.press("up", "f")
        await bench.until(lambda: bench.screen.prompt_pane.text == TWO, "forked")
        await follow(bench, THREE, 2)  # asks something else, so it is no answer to compare with
        bench.panes.focus_pane("talk")
        await bench.press("B")
        await bench.until(lambda: any("only one answer in this place" in toast for toast in bench.toasts), "said")
        await bench.press("f")
        await bench.until(lambda: bench.screen.prompt_pane.text == THREE, "forked again")
        bench.controllers.mixing.set_mode("uniform")
        await follow(bench, TWO, 2)
        await opened(bench, "B", pane="talk")
        added = (await written(bench, before)).decode()
        chosen, rejected = (" ".join(f"{view} word{n}" for n in range(6)) for view in ("uniform", "gated"))
        assert 'source="dlm-tui/better/uniform"' in added
        assert added.endswith(f"### Prompt\n{TWO}\n### Chosen\n{chosen}\n### Rejected\n{rejected}\n")


async def test_a_marked_turn_is_labelled_with_its_own_prompt(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await follow(bench, ONE, 1)
        await follow(bench, TWO, 2)
        weights = bench.controllers.conversing.turns[0].weights
        bench.panes.focus_pane("talk")
        await bench.press("up", "l")
        await bench.until(lambda: actions.showing(bench, LabelScreen), "dialog")
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.path.read_bytes() != before, "written")
        await bench.idle()
        section = load(bench.path).sections[-1]
        assert section.content.startswith(f"### Q\n{ONE}\n### A\ngated word0")
        assert section.adapter == sorted(weights, key=lambda name: -weights[name])[1]


async def test_a_turn_that_cannot_teach_says_why(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.controllers.turn_lessons.open("keep")
        await bench.until(lambda: any("no answered turn" in toast for toast in bench.toasts), "said")
        bench.world.words, bench.world.holds_at = 1_000_000, 2
        await type_prompt(bench, ONE)
        await bench.press("alt+u")
        await bench.until(lambda: bench.screen.talk.cards[-1:] and bench.screen.talk.cards[-1].text, "writing")
        bench.controllers.turn_lessons.open("keep")
        await bench.until(lambda: any("still being answered" in toast for toast in bench.toasts), "said")
        await bench.press("escape")
        bench.world.hold.set()
        await bench.idle()


async def test_dialogs_fit_every_size(workbench: Opener, screens: object) -> None:
    frames = []
    for size in ((60, 18), (80, 24), (120, 40)):
        for keys in ("K", "B", "e"):
            async with workbench(size=size) as bench:
                await actions.compared(bench)
                await opened(bench, keys)
                frames.append(f"== {keys} {size}\n{await bench.settled()}")
    assert "\n\n".join(frames) == screens
