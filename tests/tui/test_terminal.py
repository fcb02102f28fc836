"""The workbench's driver on a terminal of its own: odd bytes, old mice, signals, redirected streams."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual import events
from textual._xterm_parser import XTermParser

from dlm_tui.app.keys import KEYS, keys_of
from dlm_tui.app.terminal import TerminalText
from tests.tui.document import write_document

APP = """
import sys
from textual.app import App
from textual.widgets import Input
from dlm_tui.app.terminal import TerminalDriver

class Small(App):
    def compose(self):
        yield Input()
    def on_ready(self):
        self.log_file = open(sys.argv[1], "w", buffering=1)
        print("ready", file=self.log_file)
    def on_input_changed(self, event):
        print("text", ascii(event.value), file=self.log_file)
    def on_mouse_down(self, event):
        print("mouse", event.screen_x, event.screen_y, event.button, file=self.log_file)
    def on_mouse_up(self, event):
        print("up", event.screen_x, event.screen_y, file=self.log_file)
    def on_key(self, event):
        if event.key == "f10":
            self.exit(return_code=0)

app = Small(driver_class=TerminalDriver)
app.run()
sys.exit(app.return_code)
"""


class Terminal:
    """A small app on a pseudo-terminal; `log` is what it saw, `screen` what it drew."""

    def __init__(self, folder: Path, **streams: int) -> None:
        self.leader, follower = pty.openpty()
        self._log = folder / "log"
        self.screen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", APP, str(self._log)],
            **{"stdin": follower, "stdout": follower, "stderr": follower, **streams},
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"},
            start_new_session=True,
        )
        os.close(follower)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until(self, words: str) -> None:
        """Read what is drawn until the log holds `words`."""
        deadline = time.monotonic() + 120
        while words not in self.log:
            assert time.monotonic() < deadline and self.process.poll() is None, (self.log, self.screen[-2000:])
            self._drain(0.05)

    def end(self) -> int:
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log
            self._drain(0.05)
        self._drain(0)
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.leader >= 0:
            os.close(self.leader)

    def send(self, data: bytes) -> None:
        os.write(self.leader, data)

    def _drain(self, seconds: float) -> None:
        while self.leader >= 0 and select.select([self.leader], [], [], seconds)[0]:
            try:
                piece = os.read(self.leader, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self.screen += piece
            seconds = 0


class Program(Terminal):
    """The real program, at home in `folder`."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.leader, follower = pty.openpty()
        self._log = folder / "log"
        self.screen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dlm_tui", *arguments],
            stdin=follower, stdout=follower, stderr=follower, start_new_session=True, cwd=folder,
            env={**os.environ, "COLUMNS": "120", "LINES": "40", **_homes(folder), **env},
        )  # fmt: skip
        os.close(follower)

    def until_drawn(self, words: str) -> None:
        deadline = time.monotonic() + 120
        while words.encode() not in self.screen:
            assert time.monotonic() < deadline and self.process.poll() is None, self.screen[-2000:]
            self._drain(0.05)


def _homes(folder: Path) -> dict[str, str]:
    """The user's directories, all of them in `folder`."""
    return {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "STATE", "CACHE")}


def test_without_a_document_too_the_terminal_is_taken_and_left_properly(tmp_path: Path) -> None:
    shown = Program(tmp_path, TERM="xterm-256color")
    try:
        shown.until_drawn("How do you want to begin?")
        shown.send(b"\xff\xfe")
        shown.send(b"\r")
        shown.until_drawn("Or learn from a folder")
        shown.process.send_signal(signal.SIGTERM)
        assert shown.end() == 128 + signal.SIGTERM
        assert shown.screen.rfind(b"\x1b[?1049l") > shown.screen.rfind(b"\x1b[?1049h")
        assert b"Traceback" not in shown.screen
    finally:
        shown.kill()


def test_the_program_without_colours_on_a_terminal_of_sixteen(tmp_path: Path) -> None:
    """Every colour that reaches the terminal is one of its greys; the document's base is not here."""
    document = str(write_document(tmp_path))
    shown = Program(tmp_path, "open", document, "--home", str(tmp_path / "home"), TERM="xterm", NO_COLOR="1")
    try:
        shown.until_drawn("is not on this machine")
        shown.send(b"\x1bOS\x1bOS")  # F4, the next page, twice
        shown.until_drawn("Nothing is running")
        shown.send(b"\x1bOS")
        shown.until_drawn("tagged sections")
        codes = {int(code) for codes in re.findall(rb"\x1b\[([\d;]+)m", shown.screen) for code in codes.split(b";")}
        greys = {30, 37, 39, 40, 47, 49, 90, 97, 100, 107}
        assert {code for code in codes if code >= 30} <= greys, codes
        shown.send(b"\x1b[21~")
        assert shown.end() == 0 and b"Traceback" not in shown.screen
    finally:
        shown.kill()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    shown = Terminal(tmp_path)
    shown.until("ready")
    yield shown
    shown.kill()


def test_bytes_that_are_not_utf8_become_replacement_characters(terminal: Terminal) -> None:
    terminal.send(b"a\xffb")
    terminal.until(r"text 'a\ufffdb'")
    terminal.send("ü".encode())
    terminal.until(r"'a\ufffdb\xfc'")
    terminal.send(b"\x1b[21~")
    assert terminal.end() == 0


def test_an_old_mouse_reports_beyond_column_95(terminal: Terminal) -> None:
    terminal.send(b"\x1b[M" + bytes([32, 32 + 120, 32 + 10]) + b"\x1b[M" + bytes([35, 32 + 120, 32 + 10]))
    terminal.until("mouse 119 9 1")
    terminal.until("up 119 9")
    terminal.send(b"k")
    terminal.until("'k'")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM])
def test_a_signal_restores_the_terminal(terminal: Terminal, number: signal.Signals) -> None:
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    last = {
        code: terminal.screen.rfind(code) for code in (b"\x1b[?1049l", b"\x1b[?1003l", b"\x1b[?25h", b"\x1b[?2004l")
    }
    assert all(place > terminal.screen.rfind(b"\x1b[?1049h") for place in last.values()), last
    assert b"Traceback" not in terminal.screen


def test_a_terminal_that_is_gone_ends_the_program(terminal: Terminal) -> None:
    os.close(terminal.leader)
    terminal.leader = -1
    assert terminal.process.wait(20) in (128 + signal.SIGHUP, -signal.SIGHUP)


def test_stderr_may_go_into_a_file(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        shown = Terminal(tmp_path, stderr=errors.fileno())
    shown.until("ready")
    shown.send(b"x")
    shown.until("'x'")
    shown.send(b"\x1b[21~")
    assert shown.end() == 0
    os.close(shown.leader)
    assert b"\x1b[?1049h" in shown.screen
    assert (tmp_path / "errors").read_bytes() == b""


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_what_is_pasted_is_text_in_its_order(size: int) -> None:
    """However it arrives; the keys around it are keys."""
    pasted = b"one\x1bk two\x1b[31m three\x07\x1b[M !!\x1b[<0;3;3M\x1b[A \xc3\xbc\tend\r\n\x1b"
    sent = b"a\x1b[A\x1b[200~" + pasted + b"\x1b[201~b\x1b[B\x1b[200~x\x1b[201~"
    text, parser, seen = TerminalText(), XTermParser(), list[str]()
    for at in range(0, len(sent), size):
        shown = text.feed(sent[at : at + size], more=True)
        for event in parser.feed(shown) if shown else ():
            assert isinstance(event, events.Key | events.Paste)
            seen.append(event.text if isinstance(event, events.Paste) else event.key)
    assert seen == ["a", "up", "onek two[31m three[M !![<0;3;3M[A \u00fc\tend\r\n", "b", "down", "x"]


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_keys_with_alt_are_keys_in_a_burst(size: int) -> None:
    """Whatever comes behind them: another one, an arrow, the mouse, what is typed."""
    sent = b"\x1bw\x1ba\x1b[A\x1bu\x1b[<35;3;3M\x1bfx\x1bcy"
    text, parser, seen = TerminalText(), XTermParser(), list[str]()
    for at in range(0, len(sent), size):
        shown = text.feed(sent[at : at + size], more=True)
        seen += [event.key for event in parser.feed(shown) if isinstance(event, events.Key)] if shown else []
    assert seen == ["alt+w", "alt+a", "up", "alt+u", "ctrl+right", "x", "alt+c", "y"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_reports_are_whole_however_they_arrive(size: int) -> None:
    data = b"a\x1b[M" + bytes([32, 252, 255]) + b"\xff" + "é".encode() + b"\x1b[M" + bytes([96, 33, 33]) + b"\x1b"
    text, pieces = TerminalText(), [data[at : at + size] for at in range(0, len(data), size)]
    found = "".join(text.feed(piece, more=number + 1 < len(pieces)) for number, piece in enumerate(pieces))
    assert found == "a\x1b[<0;220;223M\ufffdé\x1b[<64;1;1M\x1b"


@pytest.mark.parametrize("pressed", sorted({one for key in KEYS for one in keys_of(key, {}) if one.startswith("alt+")}))
def test_a_terminal_can_send_every_alt_key(pressed: str) -> None:
    """Some terminals send the way of a word as Esc and a letter, and that letter is then no key of its own."""
    letter = pressed.removeprefix("alt+")
    if len(letter) == 1:
        parser = XTermParser()
        sent = [*parser.feed(f"\x1b{letter}")]
        while not sent:  # it waits for what else an Esc may begin
            sent = [*parser.tick()]
        assert [event.key for event in sent if isinstance(event, events.Key)] == [pressed]
