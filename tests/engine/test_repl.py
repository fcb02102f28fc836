"""`dlm-tui repl` on a real base: conversations by pipe and by keyboard, their commands, and what stays of them."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlm_tui.app.state import StateFile
from dlm_tui.cli import repl, repl_talk
from dlm_tui.cli.main import main
from dlm_tui.cli.repl_commands import Commands
from dlm_tui.cli.repl_talk import Talk
from dlm_tui.cli.repl_terminal import LineHistory, Words
from dlm_tui.engine.protocol import Open
from dlm_tui.model import Sampling
from dlm_tui.model.views import GATED
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import KeptAnswer, KeptAnswers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(routed: Open) -> Session:
    return run_to_end(Session.open(Path(routed.document), Path(routed.home), Path(str(routed.base))))


@pytest.fixture
def talk(session: Session, tmp_path: Path) -> Talk:
    return Talk(session, GATED, Sampling(max_tokens=10, seed=4), KeptAnswers(tmp_path / "answers.sqlite"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said on stderr."""
    lines: list[str] = []
    monkeypatch.setattr("dlm_tui.cli.repl_commands.say", lines.append)
    return lines


def quiet(talk: Talk, prompt: str) -> KeptAnswer:
    return talk.say_to(prompt, lambda text: None, stoppable=False)


# ---- by pipe -------------------------------------------------------------------------------------------------------


@pytest.fixture
def piped(
    session: Session, routed: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run `repl` with these lines on standard input; (code, stdout, stderr)."""
    monkeypatch.setattr("dlm_tui.cli.open_session.open_session", lambda args: session)

    def run(*lines: str, options: tuple[str, ...] = ()) -> Any:
        text = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
        monkeypatch.setattr(sys, "stdin", text)
        code = main(["repl", routed.document, "--max-tokens", "10", "--temperature", "0", *options])
        return code, *capsys.readouterr()

    return run


def test_a_pipe_gives_one_turn_a_line(piped: Callable[..., Any], routed: Open) -> None:
    code, out, err = piped("What is the tide?", "", "and then?", "/exit", "never asked", options=("--json",))
    turns = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [turn["prompt"] for turn in turns] == ["What is the tide?", "and then?"]
    assert [turn["turn"] for turn in turns] == [0, 1]
    assert turns[0]["view"] == "gated" and turns[0]["weights"] != turns[1]["weights"], "each is routed from its words"
    assert turns[1]["prompt_tokens"] > turns[0]["prompt_tokens"] + turns[0]["tokens"]
    plain = piped("What is the tide?", "and then?")[1]
    assert plain == "".join(f"{turn['text']}\n" for turn in turns)
    assert "the mix moved, so the history was run again; /hold" in err
    kept = StateFile(Path(routed.document)).answers.conversations()
    assert [(one.title, one.answers) for one in kept] == [("What is the tide?", 2)] * 2, "a conversation each"


def test_commands_in_a_pipe(piped: Callable[..., Any], tmp_path: Path) -> None:
    target = tmp_path / "deep" / "talk.json"
    code, out, err = piped(
        "one", "/HEPL", "/view tone", "two", "/fork 2", "three", f"/save {target}", "/history", "/quit",
        options=("--json",),
    )  # fmt: skip
    assert code == 0 and len(out.splitlines()) == 3
    assert "there is no command /HEPL: did you mean /help?" in err
    saved = json.loads(target.read_text())
    assert [(one["role"], one["content"]) for one in saved[::2]] == [("user", "one"), ("user", "three")]
    assert "  2 > two" in err and "* 3 > three" not in err and "*  3 (after 1) > three" in err


def test_no_model_is_asked_about_bytes_that_are_no_text(piped: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("dlm_tui.cli.repl.read_prompts", lambda _: iter(["\udcff"]))
    code, _, err = piped()
    assert code == 2 and "not UTF-8" in err


# ---- turns and commands --------------------------------------------------------------------------------------------


def test_a_turn_is_that_of_a_fresh_model_behind_the_same_words(talk: Talk, routed: Open) -> None:
    for prompt in ("What is the tide?", "Say good morning", "as a list"):
        last = quiet(talk, prompt)
    fresh = run_to_end(Session.open(Path(routed.document), Path(routed.home), Path(str(routed.base))))
    other = Talk(fresh, GATED, talk.sampling, talk.kept)
    other.conversation = talk.conversation
    other.conversation.fork(last.answer_id)
    again = quiet(other, "as a list")
    assert (again.text, again.token_ids) == (last.text, last.token_ids)
    assert again.mix == pytest.approx(last.mix, abs=1e-6)
    assert [turn.prompt for turn in again.turns] == ["What is the tide?", "Say good morning"]


def test_hold_keeps_the_first_mix_and_runs_only_what_is_new(talk: Talk, said: list[str]) -> None:
    commands = Commands(talk)
    commands.run("/hold")
    assert "no first turn yet" in said[-1]
    first = quiet(talk, "What is the tide?")
    moved = quiet(talk, "Say good morning")
    assert moved.run_tokens == moved.prompt_tokens and moved.mix != first.mix
    assert any("/hold" in line for line in talk.about(moved))
    commands.run("/fork 2")
    commands.run("/hold")
    held = quiet(talk, "Say good morning")
    assert held.mix == first.mix and held.view == "held"
    onwards = quiet(talk, "and then?")
    assert onwards.run_tokens < onwards.prompt_tokens - held.prompt_tokens
    assert not any("/hold" in line for line in talk.about(onwards))
    commands.run("/hold")
    assert quiet(talk, "more").view == "gated"


def test_ctrl_c_ends_the_answer_and_keeps_what_was_written(talk: Talk) -> None:
    heard: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def stop_soon(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            signal.raise_signal(signal.SIGINT)

    talk.sampling = Sampling(max_tokens=200, seed=4)
    told = talk.say_to("What is the tide?", stop_soon, stoppable=True)
    assert told.reason == "stopped" and told.text == "".join(heard) and 3 <= len(told.token_ids) < 200
    assert talk.kept.get(told.answer_id) == told
    assert quiet(talk, "go on").turns[0].answer == told.text
    assert signal.getsignal(signal.SIGINT) is before


def test_every_command_of_the_table(talk: Talk, said: list[str], tmp_path: Path) -> None:
    commands = Commands(talk)
    for line, words in (
        ("/history", "nothing has been asked yet"), ("/fork 1", "nothing has been asked yet"),
        ("/save", "needs a path"), (f"/save {tmp_path}/a.json", "nothing to save"), ("/open", "no conversation is"),
        ("/adapter tune", "did you mean tone?"), ("/adapter base", "no adapter 'base'"), ("/view", "base, gated, un"),
        ("/view uniform", "answered under uniform"), ("/view tome", "did you mean tone?"), ("/gate on", "auto or off"),
        ("/gate off", "under uniform"), ("/gate auto", "under gated"), ("/adapter style", "under style"),
        ("/mix tone:0.5,style:-0.2", "under tone 0.5, style -0.2"), ("/mix tune:1", "tune"),
        ("/mix", "needs a mix"), ("/adapter tone@9", "9"),
        ("/seed 11", "seed 11"), ("/seed x", "must be a number"), ("/seed ٣", "must be a number"),
        ("/params", "temperature 0  top_p 1"),
        ("/params temperature=0.5 top_p=0.8 max_new_tokens=12", "temperature 0.5  top_p 0.8  max_new_tokens 12"),
        ("/params temperature=0.1 top_p=7", "top-p must be"), ("/params top_k=3", "not used here"),
        ("/params temperatur=1", "did you mean temperature?"), ("/model", "under custom"), ("/help", "this list"),
        ("/turn 1", "nothing has been asked yet"), ("/clear", "a new conversation"), ("/exti", "did you mean /exit?"),
    ):  # fmt: skip
        commands.run(line)
        assert words in said[-1], (line, said[-1])
    assert talk.sampling == Sampling(max_tokens=12, temperature=0.5, top_p=0.8, seed=11), "all of a line or nothing"
    one = quiet(talk, "one")
    assert one.view == "custom" and one.mix == {"tone": 0.5, "style": -0.2}
    quiet(talk, "two")
    commands.run("/turn 1")
    assert talk.turns == [one]
    commands.run("/fork 9")
    assert "from 1 to 2" in said[-1]
    assert commands.run("/fork 2") == "two", "the next line begins with it"
    commands.run("/clear")
    assert talk.turns == []
    commands.run("/open")
    assert "2 turns  one" in said[-1]
    commands.run("/open 1")
    assert [turn.prompt for turn in talk.turns] == ["one", "two"]
    assert not commands.leaving
    commands.run("  /QUIT")
    assert commands.leaving


def test_a_turn_that_cannot_be_kept_is_said_once(talk: Talk, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    talk.kept = KeptAnswers(tmp_path / "file" / "answers.sqlite")
    quiet(talk, "one")
    assert quiet(talk, "two").turns[0].prompt == "one"
    assert capsys.readouterr().err.count("This conversation is not kept.") == 1


def test_an_answer_never_reaches_the_terminal_as_control_characters(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hostile(session: Session, question: Any, piece: Callable[[str, int], None]) -> Any:
        piece("\x1b[2J\x1b]0;title\x07", 5)
        return SimpleNamespace(text="\x1b[2J\x1b]0;title\x07", token_ids=[5], reason="stop", run_tokens=1,
                               prefill_seconds=0.0)  # fmt: skip

    monkeypatch.setattr(repl_talk, "answer", hostile)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    repl._take("hello", talk, Commands(talk), json=False, stoppable=False)
    Commands(talk).run("/history")
    out, err = capsys.readouterr()
    assert "\\x1b[2J" in out and "\x1b" not in out + err


# ---- by keyboard ---------------------------------------------------------------------------------------------------


class Terminal:
    """A program on a terminal of its own; what it draws is read until it says something."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **env}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )  # fmt: skip
        os.close(slave)
        self.raw = ""

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]", "", self.raw)

    def until(self, words: str, count: int = 1, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while self.text.count(words) < count:
            assert time.monotonic() < deadline, f"never said {words!r} {count} times:\n{self.text}"
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    self.raw += os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"ended without {words!r}:\n{self.text}") from None

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> int:
        """The exit status, once it has said everything; whoever says nothing for a minute is stuck."""
        while select.select([self._master], [], [], 60.0)[0]:
            try:
                if not os.read(self._master, 65536):
                    break
            except OSError:
                break
        return self.process.wait(5)


@pytest.fixture
def terminal(routed: Open, tmp_path: Path) -> Iterator[Terminal]:
    words = [
        sys.executable,
        "-m",
        "dlm_tui",
        "repl",
        routed.document,
        "--home",
        routed.home,
        "--base",
        str(routed.base),
    ]
    env = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "DLM_HOME": ""}
    terminal = Terminal([*words, "--max-tokens", "8"], env)
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.kill()
        terminal.process.wait()


def test_a_conversation_by_keyboard(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("Ctrl-D leaves.")
    terminal.until(">")
    terminal.type("What is the tide?\r")
    terminal.until("[gated] ")
    terminal.until("[1] >")
    terminal.type("half a line\x03")  # Ctrl-C clears it
    terminal.until("[1] >", 2)
    terminal.type("\x1b[A\x1b[A")  # up: the line before is there to be edited
    terminal.type(" Really?\r")
    terminal.until("What is the tide? Really?")
    terminal.until("[2] >")
    terminal.type("/his\t")  # completed
    terminal.until("/history")
    terminal.type("\r")
    terminal.until("*  2 > What is the tide? Really?")
    terminal.type("/fork 2\r")
    terminal.until("asking in the place of: What is the tide? Really?")
    terminal.type(" Again.\r")
    terminal.until("[gated] ", 2 + 2 + 1)  # two answers, the history, and this one
    while "[2] >" not in terminal.text.rpartition("[gated] ")[2]:  # however often the line was drawn before
        terminal.until("[2] >", terminal.text.count("[2] >") + 1)
    terminal.type("\x04")
    assert terminal.ended() == 0
    (history,) = tmp_path.rglob("repl_history")
    assert history.read_text().count("\n+What is the tide?") == 3
    assert re.search(r"^\n# \d{4}-\d\d-\d\d .*\n\+What is the tide\?$", history.read_text(), re.M)
    (kept,) = tmp_path.rglob("*.answers.sqlite")
    (found,) = KeptAnswers(kept).conversations()
    assert found.answers == 3


def test_ending_it_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal._master)[3]
    terminal.until(">")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(60) == 143
    assert termios.tcgetattr(terminal._master)[3] == before


# ---- lines ---------------------------------------------------------------------------------------------------------


def test_old_lines_go_and_a_file_that_cannot_be_used_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "state" / "repl_history"
    path.parent.mkdir()
    path.write_text("".join(f"\n# 2026-01-01 00:00:00.000000\n+line {number}\n" for number in range(40_000)))
    history = LineHistory(path)
    lines = list(history.load_history_strings())
    assert lines[0] == "line 39999" and 15_000 < len(lines) < 25_000
    (tmp_path / "file").write_text("")
    nowhere = LineHistory(tmp_path / "file" / "history")
    nowhere.store_string("x")
    assert list(nowhere.load_history_strings()) == []


def test_commands_and_names_are_completed() -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    words = Words(("/save", "/seed"), lambda command: ("tone", "style") if command == "/view" else ())
    for typed, offered in (("/s", ["/save", "/seed"]), ("/view s", ["style"]), ("s", []), ("/save a", [])):
        assert [one.text for one in words.get_completions(Document(typed), CompleteEvent())] == offered
