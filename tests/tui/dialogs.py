"""Every dialog of the program: how it is opened in the real app, and words that it shows once it is whole."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from textual.screen import ModalScreen
from textual.widgets import OptionList

import dlm_tui.app.screens
from dlm_tui.app.screens.claim import ClaimScreen
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.leave import LeaveScreen
from dlm_tui.app.screens.welcome import WelcomeScreen
from dlm_widgets.pick_list import PickList
from tests.tui import actions
from tests.tui.conftest import Bench
from tests.tui.overlaid import record

Step = Callable[[Bench], Awaitable[None]]


def every_dialog() -> set[type[ModalScreen[object]]]:
    """All classes of dialogs that the program has, by looking through its modules."""
    package = dlm_tui.app.screens
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")

    def below(kind: type[ModalScreen[object]]) -> Iterator[type[ModalScreen[object]]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    ours = {one for one in below(ModalScreen) if one.__module__.startswith(package.__name__)}
    return {one for one in ours if not one.__subclasses__()}


def now(act: Callable[[Bench], object]) -> Step:
    async def step(bench: Bench) -> None:
        act(bench)

    return step


def show(make: Callable[[], ModalScreen[object]]) -> Step:
    """A dialog that the program shows before or after the workbench, over it."""
    return now(lambda bench: bench.app.push_screen(make()))


async def _sweep(bench: Bench) -> None:
    bench.panes.focus_pane("desk")
    await bench.press("w")


async def _drift(bench: Bench) -> None:
    await bench.screen.action_drift()


async def _judge(bench: Bench) -> None:
    await bench.screen.action_evaluate()


async def _compared_versions(bench: Bench) -> None:
    bench.screen.action_adapters()
    await bench.until(lambda: "knowledge@1" in bench.text, "the versions are listed")
    for row in (0, 1):
        bench.app.screen.query_one(PickList).highlighted = row
        await bench.press("c")


def _section(how: str) -> Step:
    async def step(bench: Bench) -> None:
        bench.panes.show_page("outline")
        await bench.quiet()
        bench.screen.outline.query_one(OptionList).highlighted = 1
        await bench.quiet()
        await bench.screen.outline.run_action(f"change_section('{how}')")

    return step


async def _file(bench: Bench) -> None:
    await actions.at_a_saved_prompt(bench)
    await bench.press("f7")


async def _expect(bench: Bench) -> None:
    await actions.at_a_saved_prompt(bench)
    await bench.press("e")


async def _review(bench: Bench) -> None:
    await actions.picking(bench)
    await bench.press("1", "1")


async def _overlay(bench: Bench) -> None:
    record(bench)
    bench.screen.runs.action_overlay_runs()


async def _import(bench: Bench) -> None:
    command = next(one for one in bench.app.palette_commands() if one.name == "train: import adapter")
    command.run()


async def _offer(bench: Bench) -> None:
    await actions.with_preferences(bench)
    bench.screen.action_train_preferences()


def _question() -> ConfirmScreen:
    return ConfirmScreen("Is it so?", "It is")


DIALOGS: dict[str, tuple[Step, str]] = {
    "jump": (now(lambda bench: bench.screen.action_jump()), " m "),
    "help": (now(lambda bench: bench.screen.action_help()), "Keys"),
    "history": (now(lambda bench: bench.screen.action_history()), "Prompts asked before"),
    "label": (now(lambda bench: bench.screen.action_label()), "Label this prompt"),
    "export": (now(lambda bench: bench.screen.action_export_dialog()), "Number format"),
    "conversations": (now(lambda bench: bench.screen.action_conversations()), "role and content"),
    "judge": (_judge, "92%"),
    "drift": (_drift, "static mean"),
    "sweep": (_sweep, "+2.0 word5"),
    "moved": (now(lambda bench: bench.controllers.comparison.show()), "What the last training moved"),
    "facts": (now(lambda bench: bench.controllers.engine.show_facts()), "About the engine"),
    "log": (now(lambda bench: bench.controllers.engine.show_log()), "Engine log"),
    "claim": (show(lambda: ClaimScreen("Two of them", "new id")), "an id of its own"),
    "leave": (show(lambda: LeaveScreen("It is running.")), "Work is not over"),
    "confirm": (show(_question), "Is it so?"),
    "welcome": (show(WelcomeScreen), "How do you want to begin?"),
    "new document": (now(lambda bench: bench.controllers.interrupts.begin_document()), "Made of"),
    "open document": (now(lambda bench: bench.controllers.interrupts.open_document()), "beside this one"),
    "sampling": (now(lambda bench: bench.screen.action_sampling()), "Top-p"),
    "answers": (now(lambda bench: bench.screen.action_answers()), "Found: 5"),
    "two answers": (now(lambda bench: bench.screen.action_compare_words()), "Words:"),
    "named mixes": (actions.among_named_mixes, "quiet"),
    "lesson": (now(lambda bench: bench.screen.answers.action_teach("keep")), "Will be added"),
    "import": (_import, "Import an adapter"),
    "training": (now(lambda bench: bench.screen.action_train_dialog()), "LoRA"),
    "traffic": (now(lambda bench: bench.screen.action_traffic()), "No server runs"),
    "add a section": (_section("add"), "### Q"),
    "retag a section": (_section("retag"), "tone"),
    "adapters": (actions.looking_at_versions, "knowledge@1"),
    "versions compared": (_compared_versions, "1.40"),
    "run details": (now(lambda bench: bench.screen.runs.action_run_details()), "knowledge@2"),
    "prompt sets": (actions.at_a_saved_prompt, "Prompt sets"),
    "file of a set": (_file, "smoke.csv"),
    "expectations": (_expect, "contains"),
    "set run": (actions.set_run, "1 of 2 answers changed"),
    "draw": (now(lambda bench: bench.screen.action_pick()), "Draw"),
    "pick": (actions.picking, "pair 1 of 2"),
    "review": (_review, "preferences to write"),
    "trials": (actions.trying, "learning_rate"),
    "overlay": (_overlay, "loss, nats per token"),
    "settings offer": (_offer, "Write and train"),
}
"""In an order in which none is in the way of those behind it; the last ones change store and document."""


async def open_each(bench: Bench) -> AsyncIterator[str]:
    """Open one dialog after the other, and close it when the caller goes on; yields their names."""
    for name, (step, words) in DIALOGS.items():
        bench.app.clear_notifications()
        await step(bench)
        await bench.until(lambda words=words: bench.app.screen is not bench.screen and words in bench.text, name)
        await bench.idle()
        yield name
        while bench.app.screen is not bench.screen:
            top = bench.app.screen
            await bench.press("escape")
            await bench.until(lambda top=top: bench.app.screen is not top, f"{name} is closed")
