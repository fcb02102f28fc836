"""Keys that come all at once act in the order in which they were pressed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.widgets import Input

from dlm_tui.app.config import Config
from dlm_tui.app.controllers import train_choice
from dlm_tui.app.welcome import WelcomeApp
from dlm_tui.engine.protocol import Generate
from dlm_tui.errors import DlmTuiError
from tests.tui.conftest import Bench, Opener

NAMES = {" ": "space", ".": "full_stop", "?": "question_mark"}


def at_once(app: App[Any], *keys: str) -> None:
    """What a terminal sends while the program is behind: every key is in the queue before the first one acts."""
    for key in keys:
        event = events.Key(NAMES.get(key, key), key if len(key) == 1 else None)
        event.set_sender(app)
        app.post_message(event)


def asked(bench: Bench) -> list[str]:
    """The prompts that answers were asked for."""
    return [request.prompt for request in bench.world.requests if isinstance(request, Generate)]


async def test_letters_behind_backspace_stay(workbench: Opener) -> None:
    async with workbench() as bench:
        at_once(bench.app, *"I cannot sleep.", *["backspace"] * 15, *"When does", "left", "home", *"So ", "end", "!")
        await bench.until(lambda: bench.screen.prompt_pane.text == "So When does!", "the order of the keys")


async def test_what_is_asked_is_what_stood_there(workbench: Opener) -> None:
    async with workbench() as bench:
        at_once(bench.app, *"one", "ctrl+g", *" two")
        await bench.until(lambda: asked(bench), "asked")
        assert asked(bench) == ["one"]


async def test_a_paste_waits_for_the_keys_before_it(workbench: Opener) -> None:
    async with workbench() as bench:
        at_once(bench.app, *"one", "home")
        bench.app.post_message(events.Paste("two "))
        at_once(bench.app, "!")
        await bench.until(lambda: bench.screen.prompt_pane.text == "two !one", "the order of keys and paste")


async def test_a_line_of_one_row(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("ctrl+r")
        field = bench.app.screen.query_one(Input)
        at_once(bench.app, *"abc", "backspace", "backspace", *"xyz", "home", "0")
        await bench.until(lambda: field.value == "0axyz", "the order of the keys")


async def test_keys_behind_a_dialog_that_closes(workbench: Opener) -> None:
    """Escape takes away the widget that the key was given to, and with it whatever follows the key there."""
    async with workbench() as bench:
        await bench.press("ctrl+r")
        at_once(bench.app, *"ab", "escape", *"hello", "backspace", *"!")
        await bench.until(lambda: bench.screen.prompt_pane.text.endswith("hell!"), "the keys after the dialog")


async def test_keys_that_a_dialog_takes_itself(workbench: Opener) -> None:
    """The help filters by what is typed and takes the keys on their way."""
    async with workbench() as bench:
        await bench.press("f1")
        at_once(bench.app, "down", "down", *"mix", "escape", *"then")
        await bench.until(lambda: bench.screen.prompt_pane.text == "then", "typed behind the help")


async def test_letters_behind_a_key_that_opens_a_dialog(workbench: Opener) -> None:
    async with workbench() as bench:
        at_once(bench.app, "ctrl+r", *"abc", "backspace", *"d")
        await bench.until(lambda: bench.app.screen is not bench.screen, "the dialog")
        await bench.until(lambda: bench.app.screen.query_one(Input).value == "abd", "what was typed behind it")
        assert bench.screen.prompt_pane.text == ""


@pytest.fixture
def may_read(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The dialog of the training looks into the store, in a thread, before it opens; here it waits for this."""
    event, read = threading.Event(), train_choice.training_records

    def slow(*given: Any) -> Any:
        event.wait(30)
        return read(*given)

    monkeypatch.setattr(train_choice, "training_records", slow)
    return event


async def test_keys_behind_one_whose_dialog_has_to_read_first(workbench: Opener, may_read: threading.Event) -> None:
    async with workbench() as bench:
        at_once(bench.app, "alt+p", "escape", *"then")
        bench.app.call_later(may_read.set)
        await bench.until(lambda: bench.screen.prompt_pane.text == "then", "typed behind the dialog")
        assert bench.app.screen is bench.screen


async def test_keys_do_not_wait_for_ever(workbench: Opener, may_read: threading.Event) -> None:
    """Where a dialog takes long to come, what is typed goes where it would go without it."""
    async with workbench() as bench:
        at_once(bench.app, "alt+p", *"then")
        await bench.until(lambda: bench.screen.prompt_pane.text == "then", "what was typed meanwhile")
        may_read.set()
        await bench.until(lambda: bench.app.screen is not bench.screen, "the dialog")


async def test_keys_behind_one_that_opens_no_dialog_after_all(
    workbench: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise DlmTuiError("The store cannot be read.")

    monkeypatch.setattr(train_choice, "_with_sources", broken)
    async with workbench() as bench:
        at_once(bench.app, "alt+p", *"then")
        await bench.until(lambda: bench.screen.prompt_pane.text == "then", "what was typed behind it")
        assert bench.app.screen is bench.screen


async def test_the_name_of_a_first_document(tmp_path: Path) -> None:
    """What asks for it is an app of its own."""
    app = WelcomeApp(Config(), tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        field = app.screen.query_one("#new-path", Input)
        at_once(app, "home", "a", "backspace", *"my")
        async with asyncio.timeout(30):
            while field.value != "mynotes.dlm":
                await pilot.pause(0.01)
