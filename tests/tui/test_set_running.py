"""Sets of prompts on the screen: run, stopped, compared after a training, sorted, in and out of files."""

from __future__ import annotations

from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input, TextArea

from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.expect import ExpectScreen
from dlm_tui.app.screens.prompt_sets import PromptSetsScreen
from dlm_tui.app.screens.set_file import SetFileScreen
from dlm_tui.app.screens.set_run import SetRunScreen
from dlm_tui.document.expectations import Expectation
from dlm_tui.document.prompt_sets import PromptCase, PromptSets
from dlm_tui.engine.protocol import RunSet
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from tests.tui import actions
from tests.tui.conftest import Bench, Opener

FAILS = PromptCase("Rime me", (Expectation("adapter", "knowledge"), Expectation("contains", "says")))


async def opened(bench: Bench) -> SetRunScreen:
    """The dialog of the marked set, by keys alone."""
    await bench.press("f9")
    await bench.until(lambda: actions.showing(bench, PromptSetsScreen), "sets")
    await bench.press("f6")
    await bench.until(lambda: actions.showing(bench, SetRunScreen), "the set's dialog")
    assert isinstance(bench.app.screen, SetRunScreen)
    return bench.app.screen


def note(dialog: SetRunScreen) -> str:
    return str(dialog.query_one("#run-note", LiteralStatic).text)


async def ran(bench: Bench) -> None:
    await bench.press("ctrl+g")
    await bench.idle()


async def test_a_set_is_run_again_after_a_training_and_compared(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        PromptSets(bench.path).save({"smoke": ["What is the tide at 1?", FAILS]})
        await opened(bench)
        await bench.press("down", "space")
        await ran(bench)
        assert "1 of 2 as expected" not in bench.text and "0 of 2 as expected" in bench.text
        assert "knowledge should have the largest weight, but style" not in bench.text
        (first,) = [request for request in bench.world.requests if isinstance(request, RunSet)]
        assert [view.name for view in first.views] == ["gated", "base"] and first.former == []
        await bench.press("escape")
        bench.screen.action_train()
        await bench.until(
            lambda: bench.context.board.records and bench.context.board.records[0].state == "done", "done"
        )
        await bench.idle()
        dialog = await opened(bench)
        await bench.until(lambda: "0 of 2 as expected" in bench.text, "the last run is still there")
        await ran(bench)
        second = [request for request in bench.world.requests if isinstance(request, RunSet)][1]
        assert [(item.prompt, item.view, item.token_ids) for item in second.former] == [
            (0, "gated", [1, 1]), (0, "base", [1, 1]), (1, "gated", [2, 1]), (1, "base", [2, 1]),
        ]  # fmt: skip
        assert "2 of 4 answers changed" in bench.text and "version 1 \u2192 version 2" in bench.text
        await bench.press("s", "s")
        rows = dialog.query_one("#run-rows", PickList)
        assert "changed" in str(rows.get_option_at_index(0).prompt) and "changed answers first" in note(dialog)
        await bench.until(lambda: "Rime me after 1 trainings" in bench.text and "before" in bench.text, "both answers")
        assert "knowledge should have the largest weight, but style has it" in bench.text
        kept = bench.context.setup.state_file.set_runs.newest("smoke")
        assert [run.former for run in kept] == [kept[1].run_id, None]


async def test_expectations_that_are_broken_come_first_when_asked(workbench: Opener) -> None:
    """In a first run, too, which has nothing to be compared with."""
    met, broken = Expectation("contains", "says"), Expectation("contains", "herring")
    cases = [PromptCase("What is the tide at 1?", (met,)), PromptCase("Rime me", (broken,)), "Please say 1?"]
    async with workbench(size=(120, 40)) as bench:
        PromptSets(bench.path).save({"smoke": cases})
        dialog = await opened(bench)
        await ran(bench)
        rows = dialog.query_one("#run-rows", PickList)

        def prompts() -> list[str]:
            return [str(rows.get_option_at_index(n).prompt).split("  ")[-1].strip() for n in range(rows.option_count)]

        assert prompts() == ["What is the tide at 1?", "Rime me", "Please say 1?"]
        assert "1 of 2 as expected" in note(dialog)
        await bench.press("s")
        assert prompts()[0] == "Rime me" and "broken expectations first" in note(dialog)
        assert "fails" in str(rows.get_option_at_index(0).prompt)
        await bench.press("s")
        assert prompts()[0] == "What is the tide at 1?" and "broken" not in note(dialog)
        await ran(bench)
        await bench.press("s", "s", "s", "s")
        assert prompts()[0] == "Rime me" and "newly broken expectations first" in note(dialog)


async def test_a_run_is_stopped_by_closing_and_nothing_is_kept(workbench: Opener) -> None:
    async with workbench() as bench:
        PromptSets(bench.path).save({"smoke": ["a", "b"]})
        bench.world.hold.clear()
        await opened(bench)
        await bench.press("ctrl+g")
        await bench.until(lambda: "running the set" in bench.text, "progress")
        await bench.press("escape")
        await bench.until(lambda: bench.app.screen is bench.screen, "closed")
        bench.world.hold.set()
        await bench.idle()
        assert bench.context.setup.state_file.set_runs.newest("smoke") == []


async def test_expectations_are_written_and_files_read_and_written(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.at_a_saved_prompt(bench)
        await bench.press("e")
        await bench.until(lambda: actions.showing(bench, ExpectScreen), "expect")
        bench.app.screen.query_one(TextArea).text = "javascript: 1"
        await bench.quiet()
        await bench.press("ctrl+g")
        assert actions.showing(bench, ExpectScreen) and "not read here" in bench.text
        bench.app.screen.query_one(TextArea).text = "contains: tide\nadapter: knowledge\n"
        await bench.quiet()
        await bench.press("ctrl+g")
        await bench.idle()
        cases = PromptSets(bench.path).cases()["smoke"]
        assert cases[0].expect == (Expectation("contains", "tide"), Expectation("adapter", "knowledge"))
        await bench.press("f7")
        await bench.until(lambda: actions.showing(bench, SetFileScreen), "file")
        await bench.press("f6")
        written = bench.path.with_name("smoke.csv")
        await bench.until(written.exists, "written")
        text = written.read_text()
        assert text.startswith("prompt,__expected1,__expected2") and "contains: tide,adapter: knowledge" in text
        written.with_name("more.jsonl").write_text('{"vars": {"prompt": "new one"}}\n')
        bench.app.screen.query_one(Input).value = "more.jsonl"
        await bench.press("ctrl+g")
        await bench.until(lambda: "1 prompt read into smoke" in bench.text, "read")
        assert [case.prompt for case in PromptSets(bench.path).cases()["smoke"]][-1] == "new one"


async def test_a_file_that_is_there_is_replaced_only_when_asked(workbench: Opener) -> None:
    async with workbench() as bench:
        await actions.at_a_saved_prompt(bench)
        await bench.press("f7")
        await bench.until(lambda: actions.showing(bench, SetFileScreen), "file")
        dialog = bench.app.screen
        foreign = bench.path.with_name("budget.csv")
        foreign.write_text("month,euros\nMay,12\n")
        dialog.query_one(Input).value = foreign.name
        await bench.press("f6")
        await bench.until(lambda: "is not a list of" in bench.text, "refused")
        assert foreign.read_text() == "month,euros\nMay,12\n"
        mine = bench.path.with_name("mine.csv")
        mine.write_text("prompt\nprecious\n")
        dialog.query_one(Input).value = mine.name
        await bench.press("f6")
        await bench.until(lambda: actions.showing(bench, ConfirmScreen), "asked")
        await bench.press("escape")
        assert bench.app.screen is dialog and dialog.query_one(Input).value == str(mine.with_name("mine-2.csv"))
        dialog.query_one(Input).value = mine.name
        await bench.press("f6")
        await bench.until(lambda: actions.showing(bench, ConfirmScreen), "asked")
        assert "precious" in mine.read_text()
        await bench.press("tab", "ctrl+g")
        await bench.until(lambda: "precious" not in mine.read_text(), "written, as asked")


async def test_dialogs_fit_every_size(workbench: Opener, screens: SnapshotAssertion) -> None:
    frames = []
    for size in ((60, 18), (80, 24), (120, 40)):
        async with workbench(size=size) as bench:
            bench.context.setup.state_file.set_runs.path.unlink(missing_ok=True)
            await actions.at_a_saved_prompt(bench)
            frames.append(f"== sets {size}\n{await bench.settled()}")
            bench.app.screen.action_close()  # type: ignore[attr-defined]
            await bench.until(lambda bench=bench: bench.app.screen is bench.screen, "closed")
            await actions.set_run(bench)
            frames.append(f"== compared {size}\n{await bench.settled()}")
    assert "\n\n".join(frames) == screens
