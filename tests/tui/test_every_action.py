"""Every binding does what it says, by each of its keys and by the mouse alone.

A scenario of `actions.py` leads to a settled state, in which the effect is not there; then one key is pressed, or the
mouse is used, and the effect comes and stays.
"""

from __future__ import annotations

import pytest
from textual import events

from dlm_tui.app.keys import BY_ID, KEYS, Key, is_text, keys_of
from tests.tui import mouse
from tests.tui.actions import ACTIONS, Scenario, compared, focus_of, view, written
from tests.tui.conftest import Bench, Opener

PRESSES = [(key.id, pressed) for key in KEYS for pressed in keys_of(key, {})]


def test_every_binding_has_a_scenario() -> None:
    assert set(ACTIONS) == set(BY_ID)


@pytest.mark.parametrize(("key_id", "pressed"), PRESSES)
async def test_by_key(workbench: Opener, key_id: str, pressed: str) -> None:
    key, scenario = BY_ID[key_id], ACTIONS[key_id]
    async with workbench(size=scenario.size, world=scenario.world(), line=scenario.line) as bench:
        await begin(bench, scenario, usual_focus(key, scenario, pressed))
        before = scenario.note(bench)
        assert not scenario.seen(bench, before), "there already"
        await bench.press(pressed)
        await end(bench, scenario, before)


@pytest.mark.parametrize("key_id", [key.id for key in KEYS])
async def test_by_mouse(workbench: Opener, key_id: str) -> None:
    key, scenario = BY_ID[key_id], ACTIONS[key_id]
    async with workbench(size=scenario.size, world=scenario.world(), line=scenario.line) as bench:
        await begin(bench, scenario, scenario.focus or (None if key.where == "dialog" else "prompt"))
        before = scenario.note(bench)
        assert not scenario.seen(bench, before), "there already"
        if scenario.hand is not None:
            await scenario.hand(bench)
        elif mouse.button(bench, key.action):
            await mouse.press_button(bench, key.action)
        else:
            await mouse.by_palette(bench, key)
        await end(bench, scenario, before)


def usual_focus(key: Key, scenario: Scenario, pressed: str) -> str | None:
    """The pane in which a key is pressed: its own; for the program's keys the prompt, unless they type text."""
    if key.where == "dialog":
        return None
    return scenario.focus or (key.where if key.where != "app" else "desk" if is_text(pressed) else "prompt")


async def begin(bench: Bench, scenario: Scenario, focus: str | None) -> None:
    """Lead to the scenario's state, give a pane the focus, and wait until nothing changes any more."""
    if scenario.begin is not None:
        await scenario.begin(bench)
    await rest(bench)
    if focus is not None:
        assert bench.panes.focus_pane(focus)
        await bench.until(lambda: bench.panes.focused_pane == focus, f"focus in {focus}")
    bench.app.clear_notifications()
    await bench.until(lambda: not bench.toasts and not bench.context.saver.is_due, "toasts gone, state saved")
    for _ in range(2):
        await bench.quiet()
        assert focus is None or bench.panes.focused_pane == focus


async def rest(bench: Bench) -> None:
    """Until nothing runs any more, unless the scenario holds something back."""
    await (bench.idle() if bench.world.hold.is_set() else bench.quiet())


async def end(bench: Bench, scenario: Scenario, before: object) -> None:
    """The effect comes, and is still there when everything that was held back has ended."""
    await bench.until(lambda: scenario.seen(bench, before), "the effect")
    bench.world.hold.set()
    if not bench.app._exit:
        await bench.idle()
    assert scenario.seen(bench, before), "the effect went away again"


async def test_quick_keys_are_all_counted(workbench: Opener) -> None:
    async with workbench() as bench:
        await compared(bench)
        bench.panes.focus_pane("answers")
        for pressed in ("n", "n", "right", "n"):
            bench.app.post_message(events.Key(pressed, pressed if len(pressed) == 1 else None))
        await bench.until(lambda: view(bench) == "style", "four on")
        bench.panes.focus_pane("prompt")
        assert view(bench) == "style", "the answer that was gone to stays the current one"


async def test_new_answers_leave_the_focus_where_it_is(workbench: Opener) -> None:
    async with workbench() as bench:
        await compared(bench)
        bench.panes.focus_pane("answers")
        bench.screen.action_answer()
        await written(bench, 1)
        assert focus_of(bench) == "answers" and view(bench) == "gated"
        bench.panes.focus_pane("desk")
        bench.screen.action_compare()
        await written(bench, 5)
        assert focus_of(bench) == "desk"
