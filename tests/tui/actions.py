"""Every binding of the key table: how to get where it means something, and how to tell that it has done it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from textual.command import CommandPalette
from textual.widgets import OptionList

from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.screens.adapters import AdaptersScreen
from dlm_tui.app.screens.answer_diff import AnswerDiffScreen
from dlm_tui.app.screens.answers import AnswersScreen
from dlm_tui.app.screens.conversations import ConversationsScreen
from dlm_tui.app.screens.draw import DrawScreen
from dlm_tui.app.screens.expect import ExpectScreen
from dlm_tui.app.screens.export import ExportScreen
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.app.screens.history import HistoryScreen
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.app.screens.label import LabelScreen
from dlm_tui.app.screens.lesson import LessonScreen
from dlm_tui.app.screens.named_mixes import NamedMixesScreen
from dlm_tui.app.screens.pick import PickScreen
from dlm_tui.app.screens.prompt_sets import PromptSetsScreen
from dlm_tui.app.screens.report import ReportScreen
from dlm_tui.app.screens.run_details import RunDetailsScreen
from dlm_tui.app.screens.run_overlay import RunOverlayScreen
from dlm_tui.app.screens.sampling import SamplingScreen
from dlm_tui.app.screens.section import RetagScreen, SectionScreen
from dlm_tui.app.screens.set_file import SetFileScreen
from dlm_tui.app.screens.set_run import SetRunScreen
from dlm_tui.app.screens.settings_offer import SettingsOffer
from dlm_tui.app.screens.sweep import SweepScreen
from dlm_tui.app.screens.traffic import TrafficScreen
from dlm_tui.app.screens.train import TrainScreen
from dlm_tui.app.screens.trials import TrialsScreen
from dlm_tui.document.expectations import Expectation
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_sets import PromptCase, PromptSets
from dlm_tui.engine.protocol import Generate, Reload, TrainGate
from dlm_tui.store import KeptAnswer, MetricsWriter, current_version
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.splitter import Splitter
from tests.adapter_versions import finished_training
from tests.tui import mouse
from tests.tui.conftest import Bench
from tests.tui.overlaid import at_the_runs, click_chart, overlay, overlaying, saved
from tests.tui.recorded import World, swept

PROMPT = "what is the tide"
Step = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`begin` leads to where the binding means something; `note` takes down what `seen` compares with.

    `seen` must be false before the binding is used, and true and stay true afterwards. `focus` is the pane that has the
    focus (None: where the key usually works), `hand` the way of the mouse where it is more than a word or a menu.
    """

    seen: Callable[[Bench, Any], object]
    begin: Step | None = None
    note: Callable[[Bench], Any] = lambda bench: None
    size: tuple[int, int] = (80, 24)
    world: Callable[[], World] = World
    focus: str | None = None
    hand: Step | None = None
    line: bool = False


# ---- where a binding means something -------------------------------------------------------------------------------


async def trained_twice(bench: Bench) -> None:
    """Two finished trainings in the store of the document."""
    for run in (1, 2):
        finished_training(bench.context.store, *bench.context.names, run=run)


async def trained_elsewhere(bench: Bench) -> None:
    """Newer adapters are in force on disk than in the engine."""
    await bench.until(lambda: bench.controllers.elsewhere._used is not None, "looked at once")
    finished_training(bench.context.store, *bench.context.names, run=1)
    await bench.until(lambda: bench.context.news, "noticed")


async def runs_of_two_trainings(bench: Bench) -> None:
    await trained_twice(bench)
    await page("runs")(bench)


async def line_of_three(bench: Bench) -> None:
    """A training that is held, an export and a judgement behind it, the last one marked."""
    bench.world.hold.clear()
    bench.screen.action_train()
    await bench.until(lambda: bench.context.board.running("train"), "the training runs")
    bench.screen.action_export()
    await bench.until(lambda: len(bench.context.board.records) == 2, "the export waits")
    await bench.screen.action_evaluate()
    await bench.until(lambda: len(bench.context.board.records) == 3, "the judgement waits")
    await mark_job(bench, 2)


async def mark_job(bench: Bench, row: int) -> None:
    bench.panes.go_to("jobs")
    await bench.until(lambda: bench.screen.jobs_pane.query_one(OptionList).option_count == 3, "listed")
    bench.screen.jobs_pane.query_one(OptionList).highlighted = row
    await bench.until(lambda: bench.screen.jobs_pane.marked is bench.context.board.listed()[row], "marked")


async def second_of_three(bench: Bench) -> None:
    await line_of_three(bench)
    await mark_job(bench, 1)


async def paused_line(bench: Bench) -> None:
    await line_of_three(bench)
    bench.controllers.queue.toggle_pause()
    await bench.until(lambda: len(bench.context.board.waiting()) == 3, "paused")


async def line_worked_off(bench: Bench) -> None:
    await line_of_three(bench)
    bench.world.hold.set()
    await bench.until(lambda: all(record.over.is_set() for record in bench.context.board.records), "all over")
    await bench.idle()
    await mark_job(bench, 0)


def judged_before_exported(bench: Bench) -> bool:
    line = bench.controllers.queue.line
    numbers = [entry.number for entry in line.queue.read().entries] if line is not None else []
    return numbers.index(3) < numbers.index(2)


async def looking_at_versions(bench: Bench) -> None:
    await trained_twice(bench)
    bench.screen.action_adapters()
    await bench.until(lambda: showing(bench, AdaptersScreen), "the versions are listed")


async def earlier_version(bench: Bench) -> None:
    """The first version of the first adapter is highlighted."""
    await looking_at_versions(bench)
    bench.app.screen.query_one(PickList).highlighted = 1


def in_force(bench: Bench) -> set[int]:
    found = [current_version(bench.context.store, name) for name in bench.context.names]
    return {version.version for version in found if version is not None}


def version_note(bench: Bench) -> str:
    return str(bench.app.screen.query_one("#version-note", LiteralStatic).text)


async def prompt(bench: Bench) -> None:
    bench.screen.prompt_pane.set_text(PROMPT)
    await bench.until(lambda: bench.routing.routed and bench.routing.routed.prompt == PROMPT, "routed")


async def answered(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.action_answer()
    await written(bench, 1)


async def compared(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.action_compare()
    await written(bench, 5)


async def written(bench: Bench, count: int) -> None:
    """Until that many cards are there, each with the end of its answer, drawn, and the request is over."""
    await bench.until(lambda: whole(bench, count), "answers written")
    await bench.idle()
    await bench.until(lambda: not any(card.is_behind for card in bench.screen.answers.cards), "drawn")


def whole(bench: Bench, count: int) -> bool:
    cards = bench.screen.answers.cards
    ended = all(not card.busy and card.text == "".join(f"{card.view} word{n} " for n in range(6)) for card in cards)
    return len(cards) == count and ended and not bench.controllers.generation.running


async def conversed(bench: Bench) -> None:
    """Two turns, the second one marked."""
    for count in (1, 2):
        await prompt(bench)
        bench.screen.action_follow_up()
        await bench.until(lambda count=count: turns_kept(bench, count), "a turn")
        await bench.idle()


async def at_first_turn(bench: Bench) -> None:
    await conversed(bench)
    bench.screen.talk.cards[0].focus()
    await bench.until(lambda: bench.screen.talk.marked == bench.screen.talk.cards[0].turn, "the first turn is marked")


async def branched(bench: Bench) -> None:
    """Two turns, and instead of the second one another."""
    await conversed(bench)
    bench.screen.talk.action_at_turn("fork")
    await bench.until(lambda: turns_kept(bench, 1) and bench.screen.prompt_pane.text, "forked")
    bench.screen.prompt_pane.set_text("otherwise")
    bench.screen.action_follow_up()
    await bench.until(lambda: turns_kept(bench, 2), "the other branch")


async def answered_otherwise(bench: Bench) -> None:
    """Two turns, and instead of the second one the same prompt under another view."""
    await conversed(bench)
    bench.screen.talk.action_at_turn("fork")
    await bench.until(lambda: turns_kept(bench, 1) and bench.screen.prompt_pane.text, "forked")
    bench.controllers.mixing.set_mode("uniform")
    bench.screen.action_follow_up()
    await bench.until(lambda: turns_kept(bench, 2), "the other answer")


async def looking_at_conversations(bench: Bench) -> None:
    await conversed(bench)
    bench.screen.action_conversations()
    await bench.until(lambda: showing(bench, ConversationsScreen), "conversations")


def turns_kept(bench: Bench, count: int) -> bool:
    """Whether so many turns are shown, each whole and kept."""
    cards = bench.screen.talk.cards
    return len(cards) == count and not bench.controllers.conversing.running and all(card.turn > 0 for card in cards)


def click_turn(number: int) -> Step:
    async def step(bench: Bench) -> None:
        holder, head = bench.screen.talk.query_one("#turns"), bench.screen.talk.cards[number].query_one(".turn--head")
        await mouse.wheel(bench, (holder.region.x + 3, holder.region.y + 1), -1 if number == 0 else 1)
        await mouse.click(bench, (head.region.x + 1, head.region.y), head)

    return step


def marked_turn(bench: Bench) -> int | None:
    return next((n for n, card in enumerate(bench.screen.talk.cards) if card.turn == bench.screen.talk.marked), None)


def last_prompt(bench: Bench) -> str:
    cards = bench.screen.talk.cards
    return cards[-1].prompt if cards else ""


async def at_second_answer(bench: Bench) -> None:
    await compared(bench)
    bench.screen.answers.cards[1].focus()
    await bench.until(lambda: view(bench) == "gated", "second answer")


async def warm(bench: Bench) -> None:
    """An answer at a temperature at which the seed is heard."""
    sampling = bench.controllers.sampling
    sampling.use(msgspec.structs.replace(sampling.settings, temperature=0.7, seed=3))
    await answered_twice(bench, 1)


async def answered_twice(bench: Bench, times: int = 2) -> None:
    """The prompt is answered, and answered again; every answer is kept."""
    await prompt(bench)
    for number in range(1, times + 1):
        bench.screen.action_answer()
        await bench.until(lambda number=number: len(kept(bench)) == number, "kept")  # type: ignore[misc]
        await bench.idle()


async def at_earlier_answers(bench: Bench) -> None:
    await answered_twice(bench)
    bench.controllers.recall.step(1)
    await bench.until(lambda: asked_at(bench) == kept(bench)[-1].at, "the earlier answer is shown")


async def among_kept_answers(bench: Bench) -> None:
    """The history of answers is open; the answer that is highlighted is not the one on the pane."""
    await answered_twice(bench)
    bench.screen.action_answers()
    await bench.until(lambda: showing(bench, AnswersScreen) and "Found: 2" in bench.text, "the answers are found")
    bench.app.screen.query_one(PickList).highlighted = 1


async def among_named_mixes(bench: Bench) -> None:
    """The dialog of named mixes is open on one of them."""
    NamedMixes(bench.path).save({"quiet": {"tone": 0.5}})
    await prompt(bench)
    bench.screen.action_named_mixes()
    await bench.until(lambda: showing(bench, NamedMixesScreen) and "quiet" in bench.text, "the mixes are listed")


def kept(bench: Bench) -> list[KeptAnswer]:
    """All kept answers, newest first."""
    return bench.context.archive.search()


def asked_at(bench: Bench) -> str | None:
    return bench.controllers.shown.asked_at


def seeds(bench: Bench) -> list[int]:
    return [request.seed for request in bench.world.requests if isinstance(request, Generate)]


async def labelled(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.action_label()
    await bench.until(lambda: showing(bench, LabelScreen), "label dialog")
    bench.app.screen.action_accept()  # type: ignore[attr-defined]
    await bench.until(lambda: sections(bench) == 14 and bench.app.screen is bench.screen, "labelled")
    await bench.idle()
    await bench.until(lambda: bench.context.board.records[0].state == "done", "retrained")


async def second_strip(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.desk.strips.cursor = 1


async def soloed(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.desk.strips.press("solo")
    await bench.until(lambda: bench.context.state.mix.solos == ["knowledge"], "soloed")


async def answering(bench: Bench) -> None:
    await prompt(bench)
    bench.world.hold.clear()
    bench.screen.action_answer()
    await bench.until(lambda: bench.controllers.generation.running and bench.screen.answers.cards, "answering")


async def training(bench: Bench) -> None:
    bench.world.hold.clear()
    bench.screen.action_train()
    await bench.until(lambda: bench.context.board.running("train"), "training")
    await bench.until(lambda: "knowledge: done" in bench.context.board.records[0].log, "at its first step")
    bench.panes.show_page("jobs")


async def resized(bench: Bench) -> None:
    bench.screen.action_resize("width", 6)
    bench.screen.action_resize("height", 2)
    await bench.until(lambda: prompt_height(bench) == 9, "resized")


def page(name: str) -> Step:
    async def show(bench: Bench) -> None:
        bench.panes.show_page(name)
        await bench.until(lambda: bench.screen.query_one(f"#{name}").region.area > 0, name)

    return show


async def at_a_section(bench: Bench) -> None:
    await page("outline")(bench)
    bench.screen.outline.query_one(OptionList).highlighted = 1


async def unreachable(bench: Bench) -> None:
    """The engine failed; what was in its way is gone."""
    assert bench.context.link.state.phase == "failed"
    bench.world.fail_open = None


def no_model() -> World:
    world = World()
    world.fail_open = "the base is not on this machine"
    return world


async def helping(bench: Bench) -> None:
    bench.screen.action_help()
    await bench.until(lambda: showing(bench, HelpScreen), "help")


async def remembering(bench: Bench) -> None:
    await prompt(bench)
    bench.screen.action_new_prompt()
    await bench.until(lambda: not bench.screen.prompt_pane.text, "a new prompt")
    bench.screen.action_history()
    await bench.until(lambda: showing(bench, HistoryScreen), "history")
    listing = bench.app.screen.query_one(OptionList)
    listing.focus()
    await bench.until(lambda: listing.has_focus and listing.highlighted == 0, "the list has the focus")


async def exporting(bench: Bench) -> None:
    bench.context.state.last_export = "vllm serve it"
    bench.screen.action_export_dialog()
    await bench.until(lambda: showing(bench, ExportScreen), "export dialog")


async def at_a_saved_prompt(bench: Bench) -> None:
    """A set of prompts is listed, its first prompt highlighted."""
    PromptSets(bench.path).save({"smoke": [PROMPT, PromptCase("Rime me", (Expectation("adapter", "style"),))]})
    bench.screen.action_prompt_sets()
    await bench.until(lambda: showing(bench, PromptSetsScreen), "sets")
    listing = bench.app.screen.query_one(PickList)
    listing.highlighted = 1
    listing.focus()
    await bench.until(lambda: listing.has_focus and listing.highlighted == 1, "the list has the focus")


async def set_run(bench: Bench) -> None:
    """A set was run before and after a training."""
    await at_a_saved_prompt(bench)
    for runs in (0, 1):
        bench.world.runs, bench.world.version = runs, runs + 1
        if showing(bench, PromptSetsScreen):
            bench.app.screen.action_run()  # type: ignore[attr-defined]
            await bench.until(lambda: showing(bench, SetRunScreen), "the set's dialog")
        bench.app.screen.action_accept()  # type: ignore[attr-defined]
        await bench.idle()
    await bench.until(lambda: "1 of 2 answers changed" in bench.text, "compared")


async def picking(bench: Bench) -> None:
    """The first of some pairs is shown."""
    await prompt(bench)
    bench.screen.action_pick()
    await bench.until(lambda: showing(bench, DrawScreen), "draw")
    bench.app.screen.action_accept()  # type: ignore[attr-defined]
    await bench.until(lambda: showing(bench, PickScreen) and "pair 1 of 2" in bench.text, "pairs")


def picked(number: int) -> Callable[[Bench, Any], object]:
    """The second pair is shown, and so many are picked; nothing is picked without a pair that was shown."""
    return lambda bench, _: f"pair 2 of 2 \u00b7 {number} picked" in bench.text


async def with_preferences(bench: Bench) -> None:
    """One adapter has enough preferences."""
    for number in range(4):
        text = f"::preference#tone::\n### Prompt\nSay {number}\n### Chosen\nPlease.\n### Rejected\nNo.\n\n"
        bench.path.write_text(bench.path.read_text() + text)
    await bench.until(lambda: sections(bench) == 17, "read")


async def trying(bench: Bench) -> None:
    """In the dialog of settings to try, after a sweep."""
    with MetricsWriter(bench.context.store.create()) as writer:
        writer.record_sweep(7, swept().as_json())
    bench.screen.action_try_settings()
    await bench.until(lambda: showing(bench, TrialsScreen), "settings to try")


# ---- what can be told ----------------------------------------------------------------------------------------------


def showing(bench: Bench, kind: type) -> bool:
    return isinstance(bench.app.screen, kind) and bench.app.screen.is_mounted


def shows(kind: type) -> Callable[[Bench, object], object]:
    return lambda bench, before: showing(bench, kind)


def panes(bench: Bench) -> list[Pane]:
    return [pane for pane in bench.screen.query(Pane) if pane.display and pane.region.area]


def view(bench: Bench) -> str | None:
    current = bench.screen.answers.current
    return current.view if current else None


def focus_of(bench: Bench) -> str | None:
    return bench.panes.focused_pane


def sections(bench: Bench) -> int:
    return len(bench.context.document.sections)


def fader(bench: Bench) -> float:
    return bench.controllers.mixing.coefficients()["knowledge"]


def moved(amount: float) -> Callable[[Bench, float], object]:
    return lambda bench, before: fader(bench) == pytest.approx(before + amount, abs=0.006)


def side_width(bench: Bench) -> int:
    return bench.screen.query_one("#side").outer_size.width


def prompt_height(bench: Bench) -> int:
    return bench.screen.query_one("#prompt").outer_size.height


def job(kind: str, state: str) -> Callable[[Bench, object], object]:
    return lambda bench, before: any(
        record.kind == kind and record.state == state for record in bench.context.board.records
    )


def said(words: str) -> Callable[[Bench, object], object]:
    return lambda bench, before: any(words in toast for toast in bench.toasts)


def pictures(bench: Bench) -> int:
    return len(list(bench.path.parent.glob("*.svg")))


# ---- where the mouse does more than click a word -------------------------------------------------------------------


def strip(row: int, column: str) -> Step:
    return lambda bench: mouse.click_strip(bench, row, column)


def turn(way: int, *, shift: bool = False) -> Step:
    return lambda bench: mouse.wheel(bench, mouse.strip_cell(bench, 0, "fader")[0], way, shift=shift)


def pull(name: str, right: int, down: int) -> Step:
    async def step(bench: Bench) -> None:
        region = bench.screen.query_one(f"#split-{name}", Splitter).region
        x, y = region.x + region.width // 2, region.y + region.height // 2
        await mouse.drag(bench, (x, y), (x + right, y + down))

    return step


async def click_editor(bench: Bench) -> None:
    editor = bench.screen.prompt_pane.editor
    await mouse.click(bench, (editor.region.x + 3, editor.region.y), editor)


async def close_and_quit(bench: Bench) -> None:
    await mouse.press_button(bench, "close")
    await bench.until(lambda: bench.app.screen is bench.screen, "closed")
    await mouse.press_button(bench, "quit")


def tab(name: str) -> Step:
    return lambda bench: mouse.click_tab(bench, name)


WIDE = (120, 40)

ACTIONS: dict[str, Scenario] = {
    "prompt.answer": Scenario(lambda bench, _: whole(bench, 1), prompt),
    "prompt.compare": Scenario(lambda bench, _: whole(bench, 5), prompt),
    "prompt.reroll": Scenario(
        lambda bench, _: seeds(bench) == [3, 4] and "gated 4 word5" in bench.text and len(kept(bench)) == 2, warm,
        size=WIDE,
    ),
    "prompt.sampling": Scenario(shows(SamplingScreen), prompt),
    "prompt.answers": Scenario(shows(AnswersScreen), answered),
    "talk.follow": Scenario(lambda bench, _: turns_kept(bench, 1), prompt),
    "talk.show": Scenario(lambda bench, _: bench.panes.is_shown("talk"), prompt),
    "talk.open": Scenario(shows(ConversationsScreen), conversed),
    "talk.up": Scenario(lambda bench, _: marked_turn(bench) == 0, conversed, hand=click_turn(0)),
    "talk.down": Scenario(lambda bench, _: marked_turn(bench) == 1, at_first_turn, hand=click_turn(1)),
    "talk.fork": Scenario(
        lambda bench, _: turns_kept(bench, 1) and bench.screen.prompt_pane.text == PROMPT, conversed
    ),
    "talk.next_branch": Scenario(lambda bench, _: last_prompt(bench) == PROMPT, branched),
    "talk.previous_branch": Scenario(lambda bench, _: last_prompt(bench) == PROMPT, branched),
    "talk.hold": Scenario(lambda bench, _: bench.context.state.talk.holds and "Held:" in bench.text, conversed),
    "talk.new": Scenario(lambda bench, _: bench.controllers.conversing.conversation is None, conversed),
    "talk.label": Scenario(lambda bench, _: showing(bench, LabelScreen) and "+ gated word0" in bench.text, conversed,
                           size=WIDE),
    "talk.keep": Scenario(shows(LessonScreen), conversed),
    "talk.better": Scenario(shows(LessonScreen), answered_otherwise),
    "talk.edit": Scenario(shows(LessonScreen), conversed),
    "talk.copy": Scenario(lambda bench, _: bench.app.clipboard.startswith("gated word0"), conversed),
    "prompt.label": Scenario(shows(LabelScreen), prompt),
    "prompt.undo_label": Scenario(
        lambda bench, _: sections(bench) == 13 and PROMPT not in bench.path.read_text(), labelled
    ),
    "prompt.new": Scenario(
        lambda bench, _: (
            not bench.screen.prompt_pane.text
            and bench.context.state.history[0].text == PROMPT
            and focus_of(bench) == "prompt"
        ),
        prompt,
    ),
    "prompt.history": Scenario(shows(HistoryScreen), prompt),
    "prompt.sets": Scenario(shows(PromptSetsScreen), prompt),
    "teach.pick": Scenario(shows(DrawScreen), prompt),
    "train.preferences": Scenario(shows(SettingsOffer), with_preferences),
    "prompt.focus": Scenario(lambda bench, _: focus_of(bench) == "prompt", focus="desk", hand=click_editor),
    "mix.mode": Scenario(lambda bench, _: bench.context.state.mix.mode == "uniform", prompt),
    "mix.reset": Scenario(lambda bench, _: bench.context.state.mix.solos == [], soloed),
    "mix.undo": Scenario(lambda bench, _: bench.context.state.mix.solos == [], soloed),
    "mix.named": Scenario(shows(NamedMixesScreen), prompt),
    "mix.up": Scenario(
        lambda bench, _: bench.screen.desk.strips.selected == "knowledge", second_strip, hand=strip(0, "name")
    ),
    "mix.down": Scenario(
        lambda bench, _: bench.screen.desk.strips.selected == "style", second_strip, hand=strip(2, "name")
    ),
    "mix.less": Scenario(moved(-0.1), prompt, fader, hand=turn(1)),
    "mix.more": Scenario(moved(0.1), prompt, fader, hand=turn(-1)),
    "mix.much_less": Scenario(moved(-0.5), prompt, fader, hand=turn(1, shift=True)),
    "mix.much_more": Scenario(moved(0.5), prompt, fader, hand=turn(-1, shift=True)),
    "mix.solo": Scenario(lambda bench, _: bench.context.state.mix.solos == ["knowledge"], prompt, hand=strip(0, "S")),
    "mix.mute": Scenario(lambda bench, _: bench.context.state.mix.mutes == ["knowledge"], prompt, hand=strip(0, "M")),
    "mix.pin": Scenario(lambda bench, _: [*bench.context.state.mix.pins] == ["knowledge"], prompt, hand=strip(0, "P")),
    "mix.sweep": Scenario(
        lambda bench, _: showing(bench, SweepScreen) and "+2.0 word5" in bench.text, prompt, size=WIDE
    ),
    "train.all": Scenario(job("train", "done")),
    "train.dialog": Scenario(shows(TrainScreen)),
    "train.gate": Scenario(
        lambda bench, _: (
            any(isinstance(request, TrainGate) for request in bench.world.requests) and job("gate", "done")(bench, _)
        ),
        prompt,
    ),
    "train.take_in": Scenario(
        lambda bench, _: not bench.context.news and any(isinstance(one, Reload) for one in bench.world.requests),
        trained_elsewhere,
    ),
    "train.adapters": Scenario(shows(AdaptersScreen), trained_twice),
    "train.sweep": Scenario(shows(TrialsScreen)),
    "trials.write": Scenario(
        lambda bench, _: job("sweep", "done")(bench, _) and said("held-out loss 1.87")(bench, _), trying, size=WIDE
    ),
    "train.evaluate": Scenario(lambda bench, _: showing(bench, ReportScreen) and "92%" in bench.text),
    "export.now": Scenario(lambda bench, _: bench.context.state.last_export),
    "export.dialog": Scenario(shows(ExportScreen)),
    "export.drift": Scenario(lambda bench, _: showing(bench, ReportScreen) and "static mean" in bench.text),
    "serve.toggle": Scenario(
        lambda bench, _: job("serve", "running")(bench, _) and bench.app.clipboard == "http://127.0.0.1:8321/v1"
    ),
    "serve.traffic": Scenario(shows(TrafficScreen)),
    "view.jump": Scenario(shows(JumpScreen)),
    "view.zoom": Scenario(lambda bench, _: bench.panes.zoom and len(panes(bench)) == 1),
    "view.next_page": Scenario(
        lambda bench, _: bench.screen.insight.region.area > 0 and bench.context.state.page == "insight",
        hand=tab("insight"),
    ),
    "view.previous_page": Scenario(
        lambda bench, _: bench.screen.outline.region.area > 0 and bench.context.state.page == "outline",
        hand=tab("outline"),
    ),
    "view.narrower": Scenario(
        lambda bench, before: side_width(bench) == before + 2, note=side_width, size=WIDE, hand=pull("width", -2, 0)
    ),
    "view.wider": Scenario(
        lambda bench, before: side_width(bench) == before - 2, note=side_width, size=WIDE, hand=pull("width", 2, 0)
    ),
    "view.shorter": Scenario(
        lambda bench, before: prompt_height(bench) == before - 1, note=prompt_height, size=WIDE,
        hand=pull("height", 0, -1),
    ),
    "view.taller": Scenario(
        lambda bench, before: prompt_height(bench) == before + 1, note=prompt_height, size=WIDE,
        hand=pull("height", 0, 1),
    ),
    "view.reset": Scenario(
        lambda bench, _: prompt_height(bench) == 7 and bench.context.state.sizes.width == 0, resized, size=WIDE
    ),
    "view.next_answer": Scenario(lambda bench, _: view(bench) == "gated", compared),
    "view.previous_answer": Scenario(lambda bench, _: view(bench) == "base", at_second_answer),
    "view.columns": Scenario(
        lambda bench, _: sum(card.display for card in bench.screen.answers.cards) == 1, compared
    ),
    "view.heat": Scenario(
        lambda bench, _: bench.context.state.heat and all(card.heat for card in bench.screen.answers.cards), compared
    ),
    "answers.temperature": Scenario(
        lambda bench, _: bench.controllers.sampling.settings.temperature == 1.0 and len(kept(bench)) == 2, warm
    ),
    "answers.diff": Scenario(shows(AnswerDiffScreen), answered_twice),
    "answers.find": Scenario(lambda bench, _: bench.screen.answers.finding, answered),
    "answers.older": Scenario(lambda bench, _: asked_at(bench) == kept(bench)[-1].at, answered_twice),
    "answers.newer": Scenario(lambda bench, _: asked_at(bench) == kept(bench)[0].at, at_earlier_answers),
    "answers.label": Scenario(lambda bench, _: showing(bench, LabelScreen) and "+ gated word0" in bench.text, answered,
                              size=WIDE),
    "answers.keep": Scenario(shows(LessonScreen), answered),
    "answers.better": Scenario(shows(LessonScreen), compared),
    "answers.edit": Scenario(shows(LessonScreen), answered),
    "view.copy": Scenario(lambda bench, _: bench.app.clipboard.startswith("gated word0"), answered),
    "outline.add": Scenario(shows(SectionScreen), at_a_section),
    "outline.edit": Scenario(shows(SectionScreen), at_a_section),
    "outline.retag": Scenario(shows(RetagScreen), at_a_section),
    "outline.delete": Scenario(lambda bench, _: sections(bench) == 12, at_a_section),
    "outline.open": Scenario(said("the place is harbour.dlm:"), at_a_section),
    "runs.details": Scenario(shows(RunDetailsScreen), runs_of_two_trainings),
    "runs.toggle": Scenario(lambda bench, _: bench.screen.runs.showing_loss, page("runs")),
    "runs.overlay": Scenario(shows(RunOverlayScreen), at_the_runs),
    "runs.curve": Scenario(lambda bench, _: overlay(bench).metric == "val_loss", overlaying, size=WIDE),
    "runs.smooth": Scenario(lambda bench, _: overlay(bench).smoothing == 1, overlaying, size=WIDE),
    "runs.log": Scenario(lambda bench, _: overlay(bench).logarithmic, overlaying, size=WIDE),
    "runs.earlier": Scenario(
        lambda bench, _: (overlay(bench).cursor or 99.0) < 15.0, overlaying, size=WIDE, hand=click_chart(0.2)
    ),
    "runs.later": Scenario(
        lambda bench, _: (overlay(bench).cursor or 0.0) > 15.0, overlaying, size=WIDE, hand=click_chart(0.8)
    ),
    "runs.csv": Scenario(lambda bench, _: saved(bench, "runs.csv").is_file(), overlaying, size=WIDE),
    "runs.svg": Scenario(lambda bench, _: saved(bench, "runs.svg").is_file(), overlaying, size=WIDE),
    "jobs.pause": Scenario(
        lambda bench, _: bench.controllers.queue.line is not None and not bench.controllers.queue.line.line.paused,
        paused_line,
        line=True,
    ),
    "jobs.earlier": Scenario(lambda bench, _: judged_before_exported(bench), line_of_three, line=True),
    "jobs.later": Scenario(lambda bench, _: judged_before_exported(bench), second_of_three, line=True),
    "jobs.result": Scenario(
        lambda bench, _: showing(bench, ReportScreen) and "92%" in bench.text, line_worked_off, line=True
    ),
    "jobs.cancel": Scenario(job("train", "cancelled"), training),
    "view.screenshot": Scenario(lambda bench, _: pictures(bench) == 1),
    "engine.restart": Scenario(lambda bench, _: bench.context.link.ready, unreachable, world=no_model),
    "app.cancel": Scenario(
        lambda bench, _: (
            any("Stopped the answer" in toast for toast in bench.toasts)
            and not (bench.world.hold.is_set() and bench.controllers.generation.running)
        ),
        answering,
    ),
    "app.palette": Scenario(lambda bench, _: CommandPalette.is_open(bench.app)),
    "app.quit": Scenario(lambda bench, _: bench.app._exit),
    "app.help": Scenario(shows(HelpScreen)),
    "dialog.close": Scenario(lambda bench, _: bench.app.screen is bench.screen, helping),
    "dialog.quit": Scenario(lambda bench, _: bench.app._exit, helping, hand=close_and_quit),
    "dialog.accept": Scenario(
        lambda bench, _: bench.screen.prompt_pane.text == PROMPT and bench.app.screen is bench.screen, remembering
    ),
    "dialog.delete": Scenario(
        lambda bench, _: showing(bench, HistoryScreen) and not bench.context.state.history, remembering
    ),
    "dialog.back": Scenario(lambda bench, _: in_force(bench) == {1}, looking_at_versions),
    "dialog.mark": Scenario(lambda bench, _: bench.context.state.desk_versions == ["knowledge@1"], earlier_version),
    "dialog.beside": Scenario(
        lambda bench, _: (
            showing(bench, AnswersScreen)
            and [card.view for card in bench.screen.answers.cards] == ["gated", "gated"]
        ),
        among_kept_answers,
    ),
    "dialog.compare": Scenario(
        lambda bench, _: (
            [card.view for card in bench.screen.answers.cards] == ["gated", "mix:quiet"] and whole(bench, 2)
        ),
        among_named_mixes,
    ),
    "dialog.export": Scenario(lambda bench, _: showing(bench, ExportScreen) and "quiet: tone" in bench.text,
                              among_named_mixes, size=WIDE),
    "dialog.keep": Scenario(lambda bench, _: "is kept" in version_note(bench), earlier_version),
    "dialog.moved": Scenario(lambda bench, _: "knowledge@1 is marked" in version_note(bench), earlier_version),
    "dialog.run": Scenario(shows(SetRunScreen), at_a_saved_prompt),
    "dialog.sort": Scenario(lambda bench, _: "moved weights" in bench.text, set_run, size=WIDE),
    "dialog.expect": Scenario(shows(ExpectScreen), at_a_saved_prompt),
    "dialog.file": Scenario(shows(SetFileScreen), at_a_saved_prompt),
    "dialog.first": Scenario(picked(1), picking),
    "dialog.second": Scenario(picked(1), picking),
    "dialog.skip": Scenario(picked(0), picking),
    "dialog.save": Scenario(
        lambda bench, _: bench.path.with_name("harbour.conversation.json").exists(), looking_at_conversations
    ),
    "dialog.copy": Scenario(lambda bench, _: bench.app.clipboard == "vllm serve it", exporting),
}  # fmt: skip
