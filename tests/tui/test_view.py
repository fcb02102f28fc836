"""Arrangement, keys, help, palette, configuration, themes, clipboard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from textual.widgets import Input

from dlm_tui.app.config import Config, check_keys, config_path, parse_config
from dlm_tui.app.keys import KEYS, WHERE_TEXT, keys_of
from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.screens.help import help_content, help_width
from dlm_tui.app.screens.jump import JumpScreen
from dlm_tui.engine.protocol import Progress, Stopped
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.page_tabs import PageTabs
from dlm_widgets.splitter import Splitter
from tests.tui.conftest import Bench, Opener


def visible(bench: Bench) -> set[str]:
    return {pane.id or "" for pane in bench.screen.query(Pane) if pane.region.area and pane.display}


async def test_arrangements_follow_the_size(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        assert visible(bench) == {"prompt", "desk", "answers"}
        await bench.pilot.resize_terminal(60, 18)
        await bench.until(lambda: bench.screen.has_class("-narrow"), "narrow")
        assert visible(bench) == {"prompt", "desk", "answers"}
        await bench.pilot.resize_terminal(120, 40)
        await bench.until(lambda: bench.screen.has_class("-wide"), "wide")
        assert visible(bench) == {"prompt", "desk", "answers", "insight"}
        await bench.pilot.resize_terminal(200, 60)
        await bench.until(lambda: bench.screen.has_class("-ultra"), "ultra")
        assert visible(bench) == {"prompt", "desk", "answers", "insight", "runs", "outline"}


async def test_pages_by_key_and_mouse(workbench: Opener) -> None:
    async with workbench() as bench:
        for page in ("insight", "runs", "jobs", "outline", "answers"):
            await bench.press("f4")
            assert page in visible(bench)
        await bench.leave_prompt()
        await bench.press("left_square_bracket")
        assert "outline" in visible(bench)
        tabs = bench.screen.query_one("#tabs-top", PageTabs)
        at = {page.id: place for place, _, page in tabs.tabs()}
        await bench.click("#tabs-top", offset=(at["runs"] + 1, 0))
        await bench.pilot.pause()
        assert "runs" in visible(bench) and bench.panes.focused_pane == "runs"


async def test_jump_reaches_every_pane(workbench: Opener) -> None:
    async with workbench() as bench:
        for letter, pane in (("m", "desk"), ("d", "outline"), ("j", "jobs"), ("r", "runs"), ("p", "prompt")):
            await bench.press("f2")
            assert isinstance(bench.app.screen, JumpScreen)
            await bench.press(letter)
            await bench.until(lambda pane=pane: bench.panes.focused_pane == pane, pane)  # type: ignore[misc]
        await bench.press("f2", "escape")
        assert bench.app.screen is bench.screen


async def test_a_jump_out_of_a_zoom_shows_where_the_keys_act(workbench: Opener) -> None:
    async with workbench() as bench:
        for zoomed, letter, pane in (("prompt", "m", "desk"), ("desk", "p", "prompt")):
            bench.panes.go_to(zoomed)
            await bench.until(lambda zoomed=zoomed: bench.panes.focused_pane == zoomed, zoomed)
            await bench.press("f3")
            assert visible(bench) == {zoomed}
            await bench.press("f2", letter)
            await bench.until(lambda pane=pane: bench.panes.focused_pane == pane, pane)
            assert bench.panes.zoom is None and pane in visible(bench)


async def test_the_page_turns_also_from_a_zoom(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("f3")
        assert visible(bench) == {"prompt"}
        page = bench.context.state.page
        await bench.press("f4")
        assert bench.panes.zoom is None and bench.context.state.page != page
        assert {"prompt", bench.context.state.page} <= visible(bench)


async def test_the_first_line_leaves_out_whole_pieces(workbench: Opener) -> None:
    async with workbench() as bench:
        record = bench.context.board.begin("train", "train 3 adapters and the gate")
        step = Progress(stage="sft", scope="knowledge", done=5, total=10, eta=75.0, loss=1.5, entropy=0.5)
        bench.context.board.note(record, step)
        words = bench.controllers.status.words
        whole = words(200).plain
        assert whole.endswith("\u25b8 training knowledge \u00b7 50% \u00b7 75 s left \u00b7 loss 1.500 "
                              "\u00b7 entropy 0.50 nats")  # fmt: skip
        for width in range(60, len(whole)):
            shown = words(width).plain
            assert len(shown) <= width and set(shown.split()) <= set(whole.split()), "no word is cut"
            assert "training knowledge \u00b7 50%" in shown and shown.startswith(" harbour.dlm")
        assert "75 s left" in words(70).plain and "loss" not in words(70).plain
        bench.context.board.note(record, Stopped(reason="cancelled"))


async def test_zoom_and_sizes_are_remembered(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.press("f3")
        assert visible(bench) == {"prompt"}
        await bench.press("escape")
        before = bench.screen.query_one("#side").size.width
        height = bench.screen.query_one("#prompt").size.height
        await bench.press("alt+right", "alt+right", "alt+down")
        assert bench.screen.query_one("#side").size.width == before - 4
        assert bench.screen.query_one("#prompt").size.height == height + 1
        split = bench.screen.query_one("#split-width", Splitter)
        x, y = split.region.x, split.region.y + 5
        await bench.pilot.mouse_down("#split-width", offset=(0, 5))
        await bench.pilot.hover(offset=(x - 6, y))
        await bench.pilot.mouse_up(offset=(x - 6, y))
        await bench.quiet()
        assert bench.screen.query_one("#side").size.width == before + 2
    async with workbench(size=(120, 40)) as bench:
        assert bench.screen.query_one("#side").size.width == before + 2
        await bench.leave_prompt()
        await bench.press("0")
        assert bench.screen.query_one("#side").size.width == before


async def test_help_lists_every_binding(workbench: Opener) -> None:
    async with workbench(size=(120, 60)) as bench:
        await bench.press("f1")
        await bench.until(lambda: "Answer the prompt with the mix" in bench.text, "help")
        await bench.press("escape")
        await bench.leave_prompt()
        await bench.press("question_mark")
        await bench.until(lambda: "Answer the prompt with the mix" in bench.text, "help")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_help_names_every_id_at_every_width(columns: int) -> None:
    width = help_width(columns)
    shown = help_content({}, "config.toml", width).plain
    for key in KEYS:
        assert any(line.endswith(f" {key.id}") for line in shown.splitlines()), key.id
        assert key.description.split()[0] in shown
    body = shown.split("\n\n", 1)[1]
    assert max(len(line) for line in body.splitlines()) <= width


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40), (200, 60)], ids=str)
async def test_words_on_edges_never_touch_the_titles(workbench: Opener, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        bench.screen.prompt_pane.set_text("what is the zzz tide at noon?")
        await bench.idle()
        rows = bench.text.splitlines()
        seen = 0
        for edge in (*bench.screen.query(Pane), *bench.screen.query(PageTabs)):
            if not edge.display or not edge.region.area:
                continue
            row = rows[edge.region.y].ljust(size[0])[edge.region.x : edge.region.right]
            for at, border_button in edge.words():
                assert row[at - 2 : at + len(border_button.word) + 1] in {
                    f"\u2500 {border_button.word} ",
                    f"  {border_button.word} ",
                }, row
                seen += 1
        assert seen >= 4
        footer = rows[-1].rstrip()
        assert footer.endswith("^p More   F1 Help") and rows[0].rstrip().endswith("F10 Quit")


def reachable(bench: Bench) -> dict[str, set[str]]:
    """Where each binding of the table can be pressed in the running program: place -> keys that find an action."""
    found: dict[str, set[str]] = {}
    for pane in ("desk", "answers", "talk", "outline", "runs", "jobs"):
        node = bench.screen.query_one(f"#{pane}")
        found[pane] = {key for key, _ in node._bindings}
    found["app"] = {key for key, _ in bench.screen._bindings} | {key for key, _ in bench.app._bindings}
    return found


async def test_every_key_is_documented_unique_and_reachable(workbench: Opener) -> None:
    from textual.binding import BindingsMap

    from dlm_tui.app.screens.dialog import Dialog

    async with workbench(size=(200, 60)) as bench:
        found = reachable(bench)
        found["dialog"] = {key for key, _ in BindingsMap(Dialog.BINDINGS)}
        hosts = {
            "app": bench.screen,
            "dialog": Dialog(),
            **{p: bench.screen.query_one(f"#{p}") for p in found if p not in {"app", "dialog"}},
        }
        taken: set[tuple[str, str]] = set()
        normal = {"slash": "slash", "E": "E", "P": "P", "R": "R"}
        for key in KEYS:
            assert key.description and key.group and key.where in WHERE_TEXT, key.id
            for pressed in keys_of(key, {}):
                assert (key.where, pressed) not in taken, f"{pressed} twice in {key.where}"
                taken.add((key.where, pressed))
                assert normal.get(pressed, pressed) in found[key.where], f"{key.id} is not bound: {pressed}"
                # A pane's key hides the app's: that must not make an app binding unreachable.
                if key.where not in {"app", "dialog"} and ("app", pressed) in taken:
                    rival = next(k for k in KEYS if k.where == "app" and pressed in keys_of(k, {}))
                    assert len(keys_of(rival, {})) > 1 or rival.id == "mix.mode", f"{key.id} hides {rival.id}"
            place, _, name = key.action.partition("(")[0].rpartition(".")
            host = {"": hosts[key.where], "screen": bench.screen, "app": bench.app}[place]
            assert hasattr(host, f"action_{name}") or hasattr(bench.app, f"action_{name}"), key.id
        undocumented = {
            binding.action
            for _, binding in bench.screen._bindings
            if binding.id is None and "copy" not in binding.action
        } - {"app.focus_next", "app.focus_previous", "minimize"}
        assert undocumented == set()


def test_no_default_is_taken_twice() -> None:
    check_keys({}, "the defaults")


def test_no_default_clashes() -> None:
    from textual.widgets import TextArea

    check_keys({}, "the table")
    editing = {key.strip() for binding in TextArea.BINDINGS for key in binding.key.split(",")}  # type: ignore[union-attr]
    reserved = {
        "ctrl+b",
        "ctrl+s",
        "ctrl+q",
        "ctrl+c",
        "ctrl+h",
        "ctrl+i",
        "ctrl+j",
        "ctrl+m",
        "ctrl+z",
        "ctrl+a",
        "tab",
    }
    for key in KEYS:
        for pressed in keys_of(key, {}):
            assert pressed not in reserved, key.id
            if key.where == "app" and len(pressed) > 1:
                assert pressed not in editing, f"{key.id} clashes with text editing: {pressed}"


async def test_keys_can_be_remapped(workbench: Opener) -> None:
    config = parse_config({"keys": {"prompt.answer": "F6", "view.zoom": "Alt+i, ctrl+Y"}}, "config.toml")
    async with workbench(config=config) as bench:
        assert "F6 Answer" in bench.text
        await bench.type("what")
        await bench.press("ctrl+g")
        assert not bench.screen.answers.cards
        bench.panes.focus_pane("desk")
        await bench.press("f6")
        await bench.idle()
        assert bench.screen.answers.cards
        await bench.press("ctrl+y")
        assert visible(bench) == {"desk"}


async def test_palette_groups(workbench: Opener) -> None:
    async with workbench(size=(100, 40)) as bench:
        await bench.press("ctrl+p")
        for prefix in ("prompt:", "gate:", "train:", "export:", "view:", "theme:"):
            bench.app.screen.query_one(Input).value = prefix
            await bench.until(lambda prefix=prefix: bench.text.count(prefix) > 1, prefix)  # type: ignore[misc]
        bench.app.screen.query_one(Input).value = "theme: dlm-light"
        # hits of the search before are still shown while this one runs
        await bench.until(lambda: bench.text.count("theme:") == 2 == bench.text.count("theme: dlm-light"), "one hit")
        await bench.press("enter")
        await bench.until(lambda: bench.app.theme == "dlm-light", "theme")
        assert bench.context.state.theme == "dlm-light"
        light = bench.context.marks["knowledge"].color
        bench.app.choose_theme("ansi-dark")
        await bench.pilot.pause()
        assert bench.context.marks["knowledge"].color.startswith("ansi_") and light.startswith("#")


@pytest.mark.parametrize("theme", ["dlm-dark", "ansi-dark", "ansi-light"])
async def test_a_dialog_stands_over_the_workbench_in_every_theme(workbench: Opener, theme: str) -> None:
    async with workbench(size=(120, 40)) as bench:
        bench.app.choose_theme(theme)
        behind = next(line[:10] for line in bench.text.splitlines() if line.startswith("─ Answers"))
        await bench.press("f1")
        await bench.until(lambda: bench.app.screen is not bench.screen, "the dialog")
        await bench.until(lambda: any(line.startswith(behind) for line in bench.text.splitlines()), "what is behind it")


async def test_footer_follows_the_focus_and_can_be_clicked(workbench: Opener) -> None:
    async with workbench() as bench:
        assert "^g Answer" in bench.text and "s Solo" not in bench.text
        await bench.leave_prompt()
        assert "s Solo" in bench.text
        bar = bench.screen.query_one("#footer", KeyBar)
        at = next(place for place, hint in bar.placed() if hint.label == "Solo")
        await bench.click("#footer", offset=(at + 1, 0))
        assert bench.context.state.mix.solos == ["knowledge"]
        at = next(place for place, hint in bar.placed() if hint.label == "Help")
        await bench.click("#footer", offset=(at + 1, 0))
        await bench.until(lambda: bench.app.screen is not bench.screen, "help by mouse")


async def test_section_opens_in_the_editor(workbench: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen = tmp_path / "seen"
    script = f"import sys, pathlib; pathlib.Path({str(seen)!r}).write_text(' '.join(sys.argv[1:]))"
    config = Config(editor=f'{sys.executable} -c "{script}" {{file}} {{line}}')
    async with workbench(config=config) as bench:

        @contextmanager
        def suspended():  # type: ignore[no-untyped-def]
            yield

        monkeypatch.setattr(bench.app, "suspend", suspended)
        await bench.press("f2", "d")
        await bench.until(lambda: bench.panes.focused_pane == "outline", "outline")
        await bench.press("home", "down", "enter")
        await bench.until(seen.exists, "editor ran")
        assert seen.read_text() == f"{bench.path} {bench.context.document.sections[1].start_line}"


async def test_config_is_edited_from_the_program(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    async with workbench() as bench:

        @contextmanager
        def suspended():  # type: ignore[no-untyped-def]
            yield

        monkeypatch.setattr(bench.app, "suspend", suspended)
        monkeypatch.setenv("EDITOR", "true")
        bench.controllers.settings.edit()
        assert "max_tokens" in config_path().read_text()
        config_path().write_text("[generate]\nmax_tokens = 'many'\n")
        bench.controllers.settings.edit()
        await bench.until(lambda: any("generate.max_tokens" in toast for toast in bench.toasts), "refused")
        config_path().write_text("[generate]\nmax_tokens = 7\n")
        bench.controllers.settings.edit()
        assert bench.context.config.generate.max_tokens == 7
        monkeypatch.setenv("VISUAL", "vi '")
        bench.controllers.settings.edit()
        await bench.until(lambda: any("no closing quotation" in toast for toast in bench.toasts), "said")


async def test_screenshot_is_saved(workbench: Opener, tmp_path: Path) -> None:
    async with workbench() as bench:
        await bench.leave_prompt()
        await bench.press("P")
        assert [path.suffix for path in tmp_path.glob("*.svg")] == [".svg"]


async def test_ctrl_c_says_how_to_leave(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("ctrl+c")
        await bench.until(lambda: any("F10 leaves the program." in toast for toast in bench.toasts), "said")
        assert bench.app.is_running
