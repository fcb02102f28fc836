"""Training, jobs, labels, exports, the document, the engine's death: what a person does over a session."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.widgets import Checkbox

from dlm_tui.app.panes.outline import first_words
from dlm_tui.app.screens.named_mixes import NamedMixesScreen
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_sets import PromptCase, PromptSets
from dlm_tui.engine.protocol import Drift, ExportJob, Generate, TrainGate, TrainJob
from dlm_tui.export.cost_table import FormatCost
from dlm_tui.export.report import DriftFigures, FrozenCost, ParityFigures
from dlm_widgets.pick_list import PickList
from tests.tui.conftest import Bench, Opener
from tests.tui.document import write_document
from tests.tui.recorded import World, train_report


def requests(bench: Bench, kind: type) -> list:  # type: ignore[type-arg]
    return [request for request in bench.world.requests if isinstance(request, kind)]


async def test_untrained_document_offers_training_and_trains(workbench: Opener) -> None:
    async with workbench(trained=False) as bench:
        assert "Nothing is trained yet" in bench.text and "^t trains 3 adapters" in bench.text
        await bench.type("what")
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        await bench.until(lambda: "training knowledge · 25% · 4 s left · loss 2.000" in bench.text, "progress is shown")
        bench.world.hold.set()
        await bench.idle()
        assert bench.context.trained_names == ("knowledge", "tone", "style")
        assert bench.routing.routed is not None and bench.routing.routed.mode == "trained"
        assert isinstance(bench.jobs[0].request, TrainJob)


async def test_what_went_wrong_while_opening_is_said_once(workbench: Opener) -> None:
    world = World()
    world.open_warning = "the first answer failed: no memory"
    async with workbench(world=world) as bench:
        await bench.until(lambda: any("the first answer failed: no memory" in toast for toast in bench.toasts), "said")
        assert bench.context.link.state.phase == "ready"


async def test_the_status_line_says_how_the_base_is_kept(workbench: Opener) -> None:
    world = World()
    world.kept = "nf4"
    async with workbench(size=(80, 24), world=world) as bench:
        await bench.until(lambda: " 2.1M nf4  " in bench.text, "said")


async def test_a_long_prompt_being_read_is_said_until_the_first_token(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.world.prefill = asyncio.Event()
        bench.world.hold.clear()
        await bench.type("what is")
        await bench.press("ctrl+g")
        await bench.until(lambda: "reading the prompt · 43% · 2 s left" in bench.text, "reading")
        bench.world.prefill.set()
        bench.world.hold.set()
        await bench.idle()
        assert "reading the prompt" not in bench.text and "gated word5" in bench.text
        bench.world.prefill.clear()
        await bench.press("ctrl+g")
        await bench.until(lambda: "reading the prompt" in bench.text, "reading again")
        await bench.press("escape")
        bench.world.prefill.set()
        await bench.until(lambda: "reading the prompt" not in bench.text, "stopped")


async def test_a_training_says_what_is_wrong_with_its_gate(workbench: Opener) -> None:
    world = World()
    world.train_report = train_report(gate_error="The gate file cannot be written.")
    async with workbench(world=world) as bench:
        await bench.press("ctrl+t")
        await bench.until(lambda: any("cannot be written" in toast for toast in bench.toasts), "error")
        await bench.idle()
        world.train_report = train_report(gate_warning="The gate collapsed onto [tone].")
        await bench.press("ctrl+t")
        await bench.until(lambda: any("collapsed onto [tone]" in toast for toast in bench.toasts), "warning")
        await bench.idle()
        shown = [toast for toast in bench.app._notifications if "collapsed" in toast.message]
        assert shown and all(toast.timeout > 3600 for toast in shown), "it stays until it is read"
        await bench.press("escape")
        await bench.until(lambda: not any("collapsed" in toast for toast in bench.toasts), "read")


async def test_training_starts_by_itself_when_asked(workbench: Opener) -> None:
    world = World(trained=False)
    world.hold.clear()
    async with workbench(world=world, train_if_untrained=True, wait=False) as bench:
        await bench.until(lambda: bench.context.board.running("train"), "training by itself")
        assert bench.context.state.page == "jobs"
        await bench.until(lambda: "training knowledge" in bench.text, "shown")
        world.hold.set()
        await bench.idle()
        assert bench.context.state.page == "answers"
    async with workbench(world=world, train_if_untrained=True) as bench:
        await bench.idle()
        assert bench.jobs == []


async def test_one_training_at_a_time_and_escape_twice_stops_it(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        await bench.press("ctrl+t")
        assert len(bench.jobs) == 1
        await bench.leave_prompt()
        await bench.press("escape")
        assert any("Esc again stops" in toast for toast in bench.toasts)
        assert bench.context.board.running("train")
        await bench.press("escape")
        await bench.until(lambda: not bench.context.board.running(), "stopped")
        assert any("stopped when asked" in toast for toast in bench.toasts)
        assert bench.context.board.records[0].state == "cancelled"


async def test_cancel_from_the_jobs_pane(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        bench.panes.go_to("jobs")
        await bench.until(lambda: bench.panes.focused_pane == "jobs", "the jobs have the focus")
        await bench.press("x")
        await bench.until(lambda: not bench.context.board.running(), "stopped")
        assert "what was in force stays" in bench.context.board.records[0].summary
        assert "– train 3 adapters" in bench.text


async def test_gate_alone_trains_in_the_engine_and_shows_what_moved(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what rim is")
        await bench.idle()
        before = dict(bench.routing.weights or {})
        await bench.press("f5")
        await bench.idle()
        assert requests(bench, TrainGate) and bench.jobs == []
        assert bench.routing.weights != before
        assert bench.routing.ghost == before
        assert bench.controllers.comparison.moved[0].before == before
        bench.controllers.comparison.show()
        await bench.until(lambda: "What the last training moved" in bench.text, "moved screen")
        assert "what rim is" in bench.text and "→" in bench.text


async def test_label_shows_the_diff_writes_it_retrains_and_undoes(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        original = bench.path.read_bytes()
        await bench.type("please hand me the oar")
        await bench.idle()
        await bench.press("ctrl+l")
        await bench.until(lambda: "Label this prompt" in bench.text, "label screen")
        assert "+ ::prose#" in bench.text and "+ please hand me the oar" in bench.text
        await bench.press("home", "down")
        await bench.press("tab")
        await bench.type("Here it is")
        await bench.until(lambda: "+ ::instruction#" in bench.text and "+ Here it is" in bench.text, "diff follows")
        await bench.press("ctrl+g")
        await bench.until(lambda: requests(bench, TrainGate), "gate retrained")
        await bench.idle()
        added = bench.path.read_bytes()
        assert added.startswith(original.rstrip(b"\n")) and b"::instruction#tone::" in added[len(original) - 2 :]
        (toast,) = bench.toasts
        assert toast.startswith("Labelled as tone Added at line ") and "→" in toast and toast.endswith("takes it back.")
        await bench.leave_prompt()
        await bench.press("u")
        await bench.idle()
        assert bench.path.read_bytes() == original
        assert len(requests(bench, TrainGate)) == 2
        await bench.press("u")
        await bench.until(lambda: any("Nothing in the document was changed" in t for t in bench.toasts), "said")


async def test_label_from_an_answer(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        await bench.type("what is")
        await bench.press("ctrl+g")
        await bench.idle()
        bench.panes.focus_pane("answers")
        await bench.press("l")
        await bench.until(lambda: "Label this prompt" in bench.text, "label screen")
        assert "gated word0" in bench.text
        await bench.press("escape")
        assert requests(bench, TrainGate) == []


async def test_a_label_never_overwrites_a_newer_save(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.type("please")
        await bench.press("ctrl+l")
        await bench.until(lambda: "Label this prompt" in bench.text, "label screen")
        newer = bench.path.read_text().replace("tide table", "tide chart")
        bench.path.write_text(newer)
        await bench.press("ctrl+g")
        await bench.until(lambda: any("Labelled as" in toast for toast in bench.toasts), "added")
        assert bench.path.read_text().startswith(newer.rstrip()) and bench.path.read_text() != newer


async def test_export_by_one_key_and_by_the_dialog(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.press("f8")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        assert isinstance(bench.jobs[0].request, ExportJob) and bench.jobs[0].request.target == "peft"
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "Last export" in bench.text, "dialog")
        assert "vllm serve" in bench.text
        await bench.press("down", "tab", "down", "down", "tab", "down", "ctrl+g")
        await bench.until(lambda: len(bench.jobs) == 2, "second export")
        request = bench.jobs[1].request
        assert isinstance(request, ExportJob)
        assert (request.target, request.quant, request.mix) == ("ollama", "q4_k_s", "uniform")
        await bench.idle()
        await bench.press("e")
        await bench.until(lambda: len(bench.jobs) == 3, "third export")
        again = bench.jobs[2].request
        assert isinstance(again, ExportJob) and again.target == "ollama"
        await bench.idle()
        await bench.press("y")
        await bench.idle()
        assert "vllm serve" in bench.app.clipboard
        assert any("OSC 52" in toast for toast in bench.toasts)


async def test_what_is_said_over_a_dialog_leaves_its_result_and_keys_in_view(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("f8")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "Last export" in bench.text, "dialog")
        await bench.press("f8")
        await bench.until(lambda: any("OSC 52" in toast for toast in bench.toasts), "copied")
        bench.context.ui.say("A sentence that is so long that it takes several lines of a toast.", title="A title")
        shown = await bench.settled()
        assert "A title" in shown
        for words in ("vllm serve base --lora-modules mix=exports/peft", "F8 Copy command", "esc Cancel"):
            assert words in shown


async def test_a_format_is_chosen_from_what_each_costs(workbench: Opener) -> None:
    world = World()
    figures = {"size": 3_000_000, "bits": 5.07, "mean_kl": 0.036, "max_kl": 0.12, "changed_answers": 0.6, "prompts": 25}
    world.comparison = [
        FormatCost(quant="q8_0", form="apart", gate_moved=0.001, gate_changed=0.0, tokens_per_second=565, **figures),
        FormatCost(quant="q4_k_m", form="merged", gate_moved=None, gate_changed=None, tokens_per_second=831, **figures),
    ]
    async with workbench(world=world, size=(120, 45)) as bench:
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "Number format" in bench.text, "dialog")
        assert not bench.app.screen.query("#export-costs")
        bench.app.screen.query_one("#export-compare", Checkbox).focus()
        await bench.press("space", "ctrl+g")
        await bench.until(lambda: any("Compared" in toast for toast in bench.toasts), "compared")
        asked = bench.jobs[0].request
        assert isinstance(asked, ExportJob) and asked.compare and asked.quant is None
        assert not bench.context.state.export.compare
        await bench.press("E")
        await bench.until(lambda: "Q4_K_M  merged" in bench.text, "the table")
        costs = bench.app.screen.query_one("#export-costs", PickList)
        costs.focus()
        await bench.press("end", "enter", "ctrl+g")
        await bench.until(lambda: len(bench.jobs) == 2, "the export")
        chosen = bench.jobs[1].request
        assert isinstance(chosen, ExportJob)
        assert (chosen.target, chosen.quant, chosen.compare) == ("ollama", "q4_k_m", False)
        assert chosen.comparison == world.comparison


async def test_without_a_gate_nothing_of_it_is_counted_or_exported(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path, sections=1)
    path.write_text(path.read_text().replace("enabled: true", "enabled: false"))
    async with workbench(size=(100, 34)) as bench:
        bench.panes.show_page("outline")
        await bench.until(lambda: "1 tagged section" in bench.text, "the outline")
        assert "needs" not in bench.text
        bench.panes.show_page("runs")
        await bench.until(lambda: "The document has no gate to train" in " ".join(bench.text.split()), "the runs")
        await bench.press("f8")
        await bench.until(lambda: any("no gate to freeze: E chooses a mix" in toast for toast in bench.toasts), "said")
        assert bench.jobs == []
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "Number format" in bench.text, "dialog")
        assert "static mean" not in bench.text and "best fixed" not in bench.text
        await bench.press("ctrl+g")
        await bench.until(lambda: len(bench.jobs) == 1, "exported")
        request = bench.jobs[0].request
        assert isinstance(request, ExportJob) and request.mix == "uniform"
        await bench.idle()


def test_a_title_is_cut_by_cells_and_says_so() -> None:
    assert first_words("word " * 30) == "word " * 15 + "word\u2026"
    marked = "e\u0301\u0302" * 60 + " behind"
    assert first_words(f"### Q\n{marked}\n") == marked, "67 cells"
    assert cell_len(first_words("\u6f6e" * 60)) == 79 and first_words("\u6f6e" * 60).endswith("\u2026")


async def test_the_export_dialog_says_what_freezing_cost(workbench: Opener) -> None:
    world = World()
    world.parity = ParityFigures(
        runtime="llama.cpp", prompts=8, max_abs_logprob_diff=2e-5, mean_kl=1e-9, greedy_agree=1.0
    )
    world.drift = DriftFigures(
        kl=0.21,
        changed_answers=0.3,
        uniform=FrozenCost(kl=0.25, changed_answers=0.36),
        best_static=FrozenCost(kl=0.17),
        verdict="Freezing keeps 16% of what the gate learned.",
    )
    async with workbench(world=world, size=(100, 34)) as bench:
        await bench.press("f8")
        await bench.until(lambda: any("Exported" in toast for toast in bench.toasts), "exported")
        await bench.leave_prompt()
        await bench.press("E")
        await bench.until(lambda: "Last export" in bench.text, "dialog")
        bench.app.clear_notifications()
        await bench.pilot.pause()
        text = " ".join(bench.text.replace("│", " ").split())
        assert "Freezing the gate costs 0.210 nats" in text and "30% of greedy answers change" in text
        assert "A uniform mix: 0.250 nats, 36% of answers" in text and "The best fixed mix: 0.170 nats" in text
        assert "Freezing keeps 16%" in text


async def test_what_an_export_warns_of_is_said_where_it_ended_and_of_its_row(workbench: Opener) -> None:
    world, note = World(), "the export is further from the workbench (0.093 nats) than the base: choose a finer --quant"
    world.notes = [note]
    world.drift = DriftFigures(
        kl=0.21, uniform=FrozenCost(kl=0.25), best_static=FrozenCost(kl=0.17), verdict="Freezing loses most of it."
    )
    async with workbench(world=world, size=(120, 40)) as bench:
        await bench.press("f8")
        await bench.until(lambda: any("Exported" in toast and note in toast for toast in bench.toasts), "warned")
        bench.app.clear_notifications()
        bench.panes.go_to("jobs")
        await bench.until(lambda: bench.panes.focused_pane == "jobs" and "1 note" in bench.text, "its row")
        await bench.press("enter")
        said = "".join(bench.toasts)
        assert note in said and "0.2100 nats at the next token" in said and "Freezing loses most of it." in said


async def test_judging_the_gate_opens_sections(
    workbench: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workbench(size=(100, 40)) as bench:
        sets = bench.path.with_name("harbour.prompts.json")
        sets.write_text('{"greetings": ["Say good morning", "Hello"], "tides": ["Hello", "When is high water?"]}')
        await bench.leave_prompt()
        opened: list[int] = []
        monkeypatch.setattr(bench.controllers.documents, "edit", lambda path, line: opened.append(line))
        await bench.press("v")
        await bench.until(lambda: "92%" in bench.text, "report")
        await bench.press("down", "enter")
        await bench.until(lambda: "tone routed to knowledge: 1" in bench.text, "cell")
        await bench.press("enter")
        assert opened == [9]
        await bench.press("escape")
        await bench.press("d")
        await bench.until(lambda: "static mean" in bench.text and "0.21" in bench.text, "drift")
        assert requests(bench, Drift)[-1].prompts == ["Say good morning", "Hello", "When is high water?"]
        await bench.press("escape")
        sets.write_text("[")
        await bench.press("d")
        await bench.until(lambda: len(requests(bench, Drift)) == 2, "measured without them")
        assert requests(bench, Drift)[-1].prompts == []
        assert any("harbour.prompts.json" in toast for toast in bench.toasts)


async def test_saves_are_picked_up_and_broken_ones_keep_the_last_good_state(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        text = bench.path.read_text()
        bench.path.write_text(text + "::instruction#tone::\n### Q\nA new one?\n\n### A\nYes.\n")
        await bench.until(lambda: len(bench.context.document.sections) == 14, "picked up")
        bench.path.write_text(text.replace("dlm_version: 15", "dlm_version: [", 1))
        await bench.until(lambda: bench.context.document_error is not None, "broken")
        assert len(bench.context.document.sections) == 14
        await bench.press("f2", "d")
        await bench.until(lambda: "last good state" in bench.text, "shown")
        replacement = bench.path.with_suffix(".new")
        replacement.write_text(text)
        replacement.replace(bench.path)
        await bench.until(lambda: bench.context.document_error is None, "good again")
        assert len(bench.context.document.sections) == 13


async def test_engine_death_is_shown_and_the_prompt_stays(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.idle()
        before = dict(bench.routing.weights or {})
        bench.engines[0].die()
        await bench.until(lambda: len(bench.engines) == 2 and bench.context.link.ready, "restarted")
        assert any("SIGKILL" in toast and "your prompt is kept" in toast for toast in bench.toasts)
        assert bench.screen.prompt_pane.text == "what is"
        await bench.idle()
        assert bench.routing.weights == before
        await bench.press("ctrl+g")
        await bench.idle()
        assert requests(bench, Generate)


async def test_an_engine_that_keeps_dying_is_not_started_for_ever(workbench: Opener) -> None:
    async with workbench() as bench:
        for count in range(3):
            await bench.until(lambda count=count: len(bench.engines) == count + 1 and bench.context.link.ready, "up")  # type: ignore[misc]
            bench.engines[-1].die("SIGSEGV")
        await bench.until(lambda: bench.context.link.state.phase == "failed", "given up")
        assert "3 times in a row" in bench.text
        await bench.leave_prompt()
        await bench.press("R")
        await bench.until(lambda: bench.context.link.ready, "started by hand")


async def test_a_missing_model_is_one_sentence_and_can_be_tried_again(workbench: Opener) -> None:
    world = World()
    world.fail_open = "the base smollm2-135m is not here; `hf download HuggingFaceTB/SmolLM2-135M-Instruct` fetches it"
    async with workbench(world=world) as bench:
        assert "hf download" in bench.text
        await bench.type("kept")
        world.fail_open = None
        await bench.leave_prompt()
        await bench.press("R")
        await bench.until(lambda: bench.context.link.ready, "opened")
        assert bench.screen.prompt_pane.text == "kept"


async def test_typed_text_survives(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("never lost")
        await bench.until(lambda: bench.context.setup.state_file.load().prompt == "never lost", "written while typing")
    async with workbench() as bench:
        assert bench.screen.prompt_pane.text == "never lost"
        await bench.press("ctrl+n")
        assert bench.screen.prompt_pane.text == ""
        await bench.press("ctrl+r")
        await bench.type("lost")
        await bench.press("enter")
        assert bench.screen.prompt_pane.text == "never lost"


async def test_prompt_sets_are_kept_beside_the_document(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.type("what is")
        await bench.press("f9")
        await bench.until(lambda: "Prompt sets" in bench.text, "sets")
        await bench.press("enter")
        await bench.until(lambda: "Saved in saved." in bench.text, "saved")
        file = bench.path.with_name("harbour.prompts.json")
        assert "what is" in file.read_text()
        await bench.press("escape", "ctrl+n", "f9")
        await bench.until(lambda: "Prompt sets" in bench.text, "sets")
        await bench.press("down", "down", "enter")
        await bench.until(lambda: bench.screen.prompt_pane.text == "what is", "taken")
        await bench.press("f9")
        await bench.until(lambda: "Prompt sets" in bench.text, "sets")
        await bench.press("down", "down", "delete")
        await bench.until(lambda: "Removed." in bench.text, "removed")
        assert file.read_text().strip() == "{}"


async def test_what_another_process_saved_meanwhile_stays(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        sets, mixes = PromptSets(bench.path), NamedMixes(bench.path)
        await bench.type("what is")
        await bench.press("f9")
        await bench.until(lambda: "Prompt sets" in bench.text, "sets")
        sets.update(lambda found: found.update(theirs=[PromptCase("imported")]))
        await bench.press("enter")
        await bench.until(lambda: "Saved in saved." in bench.text and "theirs" in bench.text, "saved, and theirs shown")
        assert sets.load() == {"theirs": ["imported"], "saved": ["what is"]}
        await bench.press("escape")
        bench.panes.go_to("desk")
        await bench.press("n")
        await bench.until(lambda: isinstance(bench.app.screen, NamedMixesScreen), "the mixes")
        mixes.update(lambda found: found.update(theirs={"tone": 1.0}))
        await bench.press(*"mine", "enter")
        await bench.until(lambda: "mine" in mixes.load(), "saved")
        assert list(mixes.load()) == ["theirs", "mine"]


async def test_prompt_sets_that_cannot_be_read_are_set_aside_by_the_next_save(workbench: Opener) -> None:
    async with workbench(size=(120, 34)) as bench:
        file = bench.path.with_name("harbour.prompts.json")
        file.write_text('{"mine": ["kept')
        await bench.type("what is")
        await bench.press("f9")
        await bench.until(lambda: "Saving sets it aside." in bench.text, "said")
        assert file.read_text() == '{"mine": ["kept'
        await bench.press("enter")
        await bench.until(lambda: "harbour.prompts.damaged.json" in bench.text, "saved")
        assert json.loads(file.read_text()) == {"saved": ["what is"]}
        assert file.with_name("harbour.prompts.damaged.json").read_text() == '{"mine": ["kept'


async def test_quit_asks_once_while_a_job_runs(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        await bench.press("f10")
        await bench.until(lambda: "Are you sure?" in bench.text, "asked")
        await bench.press("escape")
        assert bench.app._exit is False
        await bench.press("f10")
        await bench.until(lambda: "Are you sure?" in bench.text, "asked")
        await bench.click("#yes")
        await bench.until(lambda: bench.app._exit, "left")
