"""The parts of the screen that need no screen: mix, layout, state, configuration, jobs, editor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import ANSI_COLOR_NAMES
from rich.color import Color as RichColor
from textual._color_constants import COLOR_NAME_TO_RGB
from textual.color import Color

from dlm_tui.app.config import ConfigError, load_config, parse_config
from dlm_tui.app.editor import editor_command
from dlm_tui.app.jobs import JobBoard, JobRecord
from dlm_tui.app.keys import KEYS, WHERE_TEXT, Where, display, key_name, keys_of
from dlm_tui.app.layout import _TABBED, PAGE_TITLES, PANES, arrange, size_class
from dlm_tui.app.mix import MixState
from dlm_tui.app.panes.insight import _by_text
from dlm_tui.app.screens.answers import _moment
from dlm_tui.app.state import State, StateFile, note_recent, recent_documents
from dlm_tui.app.themes import paint_color
from dlm_tui.engine.job_client import Job
from dlm_tui.engine.protocol import Exported, ExportReport, Failed, JobRequest, Progress, Stopped, TokenAttribution
from dlm_tui.model.views import resolve_view
from dlm_tui.moments import local_time
from dlm_widgets.adapter_palette import rich_color

NAMES = ("a", "b", "c")
WEIGHTS = {"a": 0.7, "b": 0.2, "c": 0.1}
PRESSES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["solo", "mute", "pin"]), st.sampled_from(NAMES)),
        st.tuples(st.just("fader"), st.sampled_from(NAMES), st.floats(-3, 3)),
        st.tuples(st.just("mode"), st.sampled_from(["gate", "uniform", "custom"])),
    ),
    max_size=12,
)


@given(PRESSES)
def test_the_view_asks_for_what_the_desk_shows(presses: list[tuple]) -> None:  # type: ignore[type-arg]
    mix = MixState()
    for press in presses:
        if press[0] == "fader":
            mix.move_fader(press[1], press[2], NAMES, WEIGHTS)
        elif press[0] == "mode":
            mix.set_mode(press[1], NAMES, WEIGHTS)
        else:
            mix.toggle(press[1], press[0], mix.coefficients(NAMES, WEIGHTS)[press[1]])
    shown = mix.coefficients(NAMES, WEIGHTS)
    asked = resolve_view(mix.view(NAMES, WEIGHTS), NAMES, WEIGHTS)
    assert {name: asked.get(name, 0.0) for name in NAMES} == pytest.approx(shown)
    assert all(-2.0 <= value <= 2.0 for value in shown.values())


def test_a_pin_holds_while_the_gate_moves() -> None:
    mix = MixState()
    mix.toggle("a", "pin", 0.7)
    assert mix.coefficients(NAMES, {"a": 0.1, "b": 0.8, "c": 0.1}) == {"a": 0.7, "b": 0.8, "c": 0.1}
    mix.keep_only(["b", "c"])
    assert mix.pins == {}


@given(
    st.integers(20, 400),
    st.integers(8, 120),
    st.sampled_from([*PANES, "?"]),
    st.sampled_from([None, *PANES]),
    st.booleans(),
)
def test_every_arrangement_is_usable(width: int, height: int, page: str, zoom: str | None, talk: bool) -> None:
    here = arrange(width, height, page, zoom, talk=talk)
    assert here.page in here.tabs
    if zoom:
        assert here.visible == {zoom}
    else:
        front, behind = ("talk", "answers") if talk else ("answers", "talk")
        assert {"prompt", "desk"} <= here.visible and behind not in here.visible
        assert (front if here.page == "answers" else here.page) in here.visible
        # Every pane is on the screen or one tab away; the conversation is in the place of the answers.
        assert {*PANES, "answers"} - {"talk"} == {"answers"} | here.visible - {"talk"} | set(here.tabs)


def test_breakpoints() -> None:
    sizes = [(60, 18), (79, 24), (80, 24), (119, 40), (120, 40), (200, 60), (200, 20)]
    assert [size_class(*size) for size in sizes] == ["narrow", "narrow", "normal", "normal", "wide", "ultra", "narrow"]


def test_state_survives_and_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "x.dlm", tmp_path / "state")
    state = State(prompt="hello \u202e", theme="dlm-light")
    state.remember("hello", {"a": 1.0}, 3)
    state.remember("other", {"a": 0.5}, 3)
    state.remember("hello", {"a": 0.2}, 4)
    file.write(file.encode(state))
    back = file.load()
    assert back == state and [entry.text for entry in back.history] == ["hello", "other"]
    file.path.write_text("{ broken")
    assert file.load() == State() and file.path.with_suffix(".damaged.json").exists()


def test_an_older_state_that_is_written_late_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "x.dlm", tmp_path / "state")
    old, new = file.encode(State(prompt="old")), file.encode(State(prompt="new"))
    file.write(new)
    file.write(old)
    assert file.load().prompt == "new"
    file.write(file.encode(State(prompt="old")))
    assert file.load().prompt == "old"


def test_the_clock_on_the_wall_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-9")  # nine hours before Greenwich
    time.tzset()
    try:
        assert local_time("2026-11-29T20:05:09.123Z", "%Y-%m-%d %H:%M") == "2026-11-30 05:05"
        assert local_time("2026-11-29T20:05:09", "%H:%M") == "05:05", "the store's moments are UTC, too"
        assert local_time("some day", "%H") == "some day" and local_time("9999-12-31T23:00:00Z", "%H").startswith(
            "9999"
        )
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["9999-12-31", "9999-12", "9999", "0000", "2026-02-30", "soon"])
def test_dates_that_cannot_be_looked_for_are_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no date such as 2026-11-30"):
        _moment(text, end=True)


@pytest.mark.parametrize(
    ("text", "end"), [("2026-11-30", "2026-12-01"), ("2026-12", "2027-01-01"), ("2026", "2027-01-01")]
)
def test_a_date_reaches_to_the_moment_after_it(text: str, end: str) -> None:
    assert _moment(text, end=True) == _moment(end, end=False)


def test_a_character_of_several_tokens_is_shown_once_with_all_that_it_pulls() -> None:
    spans = [(0, 1), (0, 1), (0, 1), (1, 3), (2, 4), (4, 5)]
    tokens = [
        TokenAttribution(text="\u9375abcd"[start:end], start=start, end=end, attribution={"a": 1.0, "b": -0.5})
        for start, end in spans
    ]
    found = _by_text(tokens)
    assert [(one.text, one.attribution["a"]) for one in found] == [("\u9375", 3.0), ("abc", 2.0), ("d", 1.0)]


async def test_what_runs_stays_on_the_board_whatever_came_after_it() -> None:
    async def no_child(request: JobRequest) -> Job:
        raise AssertionError("nothing runs here")

    board = JobBoard(no_child, lambda record, event: None)
    server = board.begin("serve", "Server")
    for number in range(60):
        board.note(board.begin("gate", f"the gate, {number}"), Stopped(reason="cancelled"))
    assert board.running("serve") is server and len(board.records) == 22  # one is over only now
    assert [record.title for record in board.listed()[:2]] == ["Server", "the gate, 59"]
    board.put(JobRecord("train", "of yesterday", state="done"))
    assert board.running("serve") is server and board.listed()[1].title == "the gate, 59"


@pytest.mark.parametrize(
    "data", [b"[" * 200_000, b'{"saved":' + b"[" * 100_000, b"\xff\xfe", b"", b'{"history": [{"text": 3}]}', b"\0" * 64]
)
def test_no_state_that_cannot_be_read_stops_the_start(tmp_path: Path, data: bytes) -> None:
    file = StateFile(tmp_path / "x.dlm", tmp_path / "state")
    recent = tmp_path / "state" / "recent.json"
    for _ in range(2):  # the second time beside what was set aside the first time
        for path in (file.path, recent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        assert file.load() == State()
        assert recent_documents(tmp_path / "state") == []
        assert not file.path.exists() and not recent.exists()
    assert len(list(file.path.parent.glob("*.damaged*.json"))) == 2
    (tmp_path / "x.dlm").touch()
    note_recent(tmp_path / "x.dlm", tmp_path / "state")
    file.write(file.encode(State(prompt="again")))
    assert file.load().prompt == "again" and recent_documents(tmp_path / "state") == [tmp_path / "x.dlm"]


def test_recent_documents(tmp_path: Path) -> None:
    for name in ("a.dlm", "b.dlm"):
        (tmp_path / name).touch()
        note_recent(tmp_path / name, tmp_path / "state")
    note_recent(tmp_path / "a.dlm", tmp_path / "state")
    (tmp_path / "b.dlm").unlink()
    assert recent_documents(tmp_path / "state") == [tmp_path / "a.dlm"]
    assert recent_documents(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"generate": {"max_tokens": 0}}, "generate.max_tokens"),
        ({"generate": {"max_token": 3}}, "generate"),
        ({"theme": 3}, "theme"),
        ({"look": {"palette": ["#12"]}}, "look.palette[0]: there is no colour '#12'"),
        ({"look": {"palette": ["red", "nosuch_colour"]}}, "look.palette[1]: there is no colour 'nosuch_colour'"),
        ({"look": {"palette": ["transparent"]}}, "look.palette[0]"),
        ({"theme": "nope"}, "theme: there is no theme 'nope'; there are dlm-dark, dlm-light, "),
        ({"theme": "DLM dark"}, "theme: there is no theme 'DLM dark': did you mean dlm-dark?"),
        ({"keys": {"app.help": "banana"}}, "keys.app.help: there is no key 'banana'; one is written as ctrl+y, "),
        ({"keys": {"app.help": "f1, page_down"}}, "keys.app.help: there is no key 'page_down': did you mean pagedown?"),
        ({"keys": {"app.help": "strg+y"}}, "keys.app.help: there is no key 'strg+y'"),
        ({"keys": {"app.help": "ctrl+"}}, "keys.app.help"),
        ({"keys": {"prompt.answer": "Ctrl+O"}}, "keys.prompt.answer: ^o already belongs to prompt.compare"),
        ({"editor": "vi '"}, "editor: no closing quotation"),
        ({"keys": {"no.such": "a"}}, "keys.no.such"),
        ({"keys": {"prompt.answer": ""}}, "keys.prompt.answer"),
        ({"keys": {"prompt.answer": "ctrl+o"}}, "keys.prompt.answer"),
    ],
)
def test_a_wrong_configuration_names_the_key(data: dict, names: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.toml")
    assert str(caught.value).startswith(f"config.toml: {names}")
    assert caught.value.exit_code == 2


def test_every_colour_that_is_taken_can_be_painted() -> None:
    names = [*COLOR_NAME_TO_RGB, *ANSI_COLOR_NAMES, "ansi_default", "default", "auto", "#ABCDEF", "Teal", "red\n"]
    colors = {name: color for name in names if (color := paint_color(name)) is not None}
    for color in colors.values():
        Color.parse(color)
        RichColor.parse(rich_color(color))
    assert set(COLOR_NAME_TO_RGB) <= {*colors, "transparent"}
    assert parse_config({"look": {"palette": ["Teal", "#ABCDEF", "ansi_red"]}}, "c").look.palette == [
        "#008080", "#abcdef", "ansi_red"
    ]  # fmt: skip


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert load_config(path).generate.max_tokens == 128
    path.write_text("theme = \nx = 1\n")
    with pytest.raises(ConfigError, match=r"config\.toml.*line 1"):
        load_config(path)


def test_job_records_say_how_it_went() -> None:
    record = JobRecord("train", "train")
    record.take(Progress(stage="sft", scope="tone", done=5, total=10, loss=1.5, eta=75.0))
    assert record.fraction == 0.5 and record.detail() == "training tone · 50% · 75 s left · loss 1.500"
    record.take(Stopped(reason="cancelled"))
    assert record.state == "cancelled" and "what was in force stays" in record.summary
    other = JobRecord("export", "export")
    other.take(Failed(kind="X", text="disk full"))
    assert (other.state, other.summary) == ("failed", "disk full")
    stopped = JobRecord("export", "export")
    stopped.take(Stopped(reason="cancelled"))
    assert "in force" not in stopped.summary and stopped.summary.endswith("what was exported before stays")
    done = JobRecord("export", "export")
    report = ExportReport(folder="f", next_command="run f")
    done.take(Exported(report=report))
    assert done.state == "done" and done.export == report


def test_editor_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/d/x.dlm")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "nano -w")
    assert editor_command("", path, 7) == ["nano", "-w", "+7", "/d/x.dlm"]
    assert editor_command("code", path, 7) == ["code", "--wait", "--goto", "/d/x.dlm:7"]
    assert editor_command("ed {file} {line}", path, 7) == ["ed", "/d/x.dlm", "7"]
    assert editor_command("hx", path, 7) == ["hx", "/d/x.dlm:7"]
    assert editor_command("gedit", path, 7) == ["gedit", "/d/x.dlm"]


def test_keys_are_shown_as_people_write_them() -> None:
    assert [display(key) for key in ("ctrl+g", "f8", "alt+left", "slash", "E")] == ["^g", "F8", "alt+←", "/", "E"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Ctrl+Y", "ctrl+y"), ("^y", "ctrl+y"), ("F6", "f6"), ("shift+ALT+Left", "alt+shift+left"), ("K", "K"),
        ("shift+k", "K"), ("?", "question_mark"), ("/", "slash"), ("+", "plus"), ("ctrl++", "ctrl+plus"),
        ("^", "circumflex_accent"),
        ("Esc", "escape"), ("\u2190", "left"), (" PageDown ", "pagedown"),
        ("\u00a7", "section_sign"), ("\u00e4", "\u00e4"),
        ("full_stop", "full_stop"), ("banana", None), ("ctrl+", None), ("strg+y", None),
        ("f25", None), ("", None),
    ],
)  # fmt: skip
def test_keys_are_understood_as_people_write_them(written: str, name: str | None) -> None:
    assert key_name(written) == name


def test_every_key_of_the_table_is_understood() -> None:
    for key in KEYS:
        for name in keys_of(key, {}):
            assert key_name(name) == name and key_name(display(name)) == name, key.id


def test_no_key_means_two_things_in_one_place() -> None:
    for where in {key.where for key in KEYS}:
        taken: dict[str, str] = {}
        for key in KEYS:
            if key.where == where:
                for pressed in keys_of(key, {}):
                    assert taken.setdefault(pressed, key.id) == key.id, f"{pressed} is {taken[pressed]} and {key.id}"


def test_every_place_of_keys_is_a_pane_or_a_dialog_and_has_its_words() -> None:
    assert set(get_args(Where)) == set(WHERE_TEXT)
    assert set(get_args(Where)) - {"app", "dialog"} <= set(PANES)
    assert set(PAGE_TITLES) == {page for tabs in _TABBED.values() for page in tabs} <= set(PANES)
