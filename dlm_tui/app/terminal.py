"""The terminal as textual's driver sees it, with what real terminals and real shells do to a program added.

* Bytes that are not UTF-8 (a key press in another encoding, a broken paste) become U+FFFD.
* Mouse reports in the old X10 form, three raw bytes behind `ESC [ M`, become those that textual reads.
* Alt with a letter is that key, whatever comes behind it.
* What is pasted is text: of what stands between the marks of a paste nothing acts, nor changes its place.
* A hang-up, a plain kill or SIGQUIT leave through the door that restores the screen; so does a terminal that is gone.
* The screen is drawn on the terminal itself, wherever stderr goes.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import selectors
import signal
import sys
from typing import IO, TYPE_CHECKING, Any, cast

from textual._parser import ParseError
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from textual.app import App

_X10 = re.compile(rb"\x1b\[M(...)", re.DOTALL)
_X10_CUT = re.compile(rb"\x1b(\[(M.{0,2})?)?\Z", re.DOTALL)
_ALT = re.compile(rb"\x1b(?![bf])([a-z])")  # those two textual knows, as the ways of a word
_PASTE, _PASTED = b"\x1b[200~", b"\x1b[201~"
_ACTING = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})
HANG_UP = 128 + signal.SIGHUP
"""What the program returns when its terminal is gone."""
_LEAVING = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)


class TerminalText:
    """What a terminal sends, as text for textual's parser."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._kept = b""
        self._paste = _Paste()

    def feed(self, data: bytes, *, more: bool = False) -> str:
        """The text of `data`; the beginning of an X10 report is kept back while `more` is still to be read."""
        data = self._kept + self._paste.feed(data)
        self._kept = b""
        if more and (cut := _X10_CUT.search(data)):
            data, self._kept = data[: cut.start()], data[cut.start() :]
        return self._decode(_ALT.sub(_as_alt, _X10.sub(_as_sgr, data)))


class _Paste:
    """Takes the control characters out of what is pasted: textual's parser reads sequences there, too, gives parts of
    them out as keys, and those come before the text.

    A mark of the end within the pasted text ends the paste: terminals send both alike.
    """

    def __init__(self) -> None:
        self._within = False
        self._before = b""  # the end of what went through, or what is kept back: a mark may arrive in pieces

    def feed(self, data: bytes) -> bytes:
        """What of `data` textual's parser may see."""
        passed = b""
        while data:
            data, before = self._before + data, len(self._before)
            if self._within:
                pasted, end, data = data.partition(_PASTED)
                kept = b"" if end else _begun(pasted, _PASTED)
                passed += pasted[: len(pasted) - len(kept)].translate(None, _ACTING) + end
                self._within, self._before = not end, kept
            else:
                typed, mark, rest = data.partition(_PASTE)
                passed += (typed + mark)[before:]
                self._within, self._before, data = bool(mark), b"" if mark else _begun(typed, _PASTE), rest
        return passed


def _begun(data: bytes, mark: bytes) -> bytes:
    """The longest beginning of a mark at the end of `data`."""
    return next((mark[:size] for size in range(len(mark) - 1, 0, -1) if data.endswith(mark[:size])), b"")


def _as_sgr(report: re.Match[bytes]) -> bytes:
    """The SGR form of an X10 report: every value has 32 added; button 3 means that whichever it was is up again."""
    button, column, row = (value - 32 for value in report[1])
    released = button & 3 == 3 and not button & (32 | 64)
    return b"\x1b[<%d;%d;%d%c" % (button & ~3 if released else button, column, row, b"m" if released else b"M")


def _as_alt(key: re.Match[bytes]) -> bytes:
    """A key with Alt as kitty sends it: behind Esc and a letter textual waits for more, and where another Esc comes
    within a tenth of a second (a second key with Alt, an arrow, the mouse) it makes ^ and the letter of them."""
    return b"\x1b[%d;3u" % ord(key[1])


class _Screen:
    """A text file that goes on taking text when the terminal behind it is gone, so that the writer never stops."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


class TerminalDriver(LinuxDriver):
    """textual's driver, hardened as the module says."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._file = cast("Any", _Screen(_terminal_file()))

    def start_application_mode(self) -> None:
        """Also: signals that end a program end it by the front door."""
        for number in _LEAVING:
            with contextlib.suppress(RuntimeError, ValueError):  # not the main thread: then no signals arrive here
                self._loop.add_signal_handler(number, self._leave, number)
        cast("Any", super()).start_application_mode()

    def run_input_thread(self) -> None:
        """Read until told to stop, or until the terminal is gone."""
        parser = XTermParser(self._debug)
        text = TerminalText()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(0.1):
                    try:
                        data = os.read(self.fileno, 4096)
                    except OSError:
                        data = b""
                    if not data:
                        self._gone()
                        return
                    shown = text.feed(data, more=bool(selector.select(0)) or len(data) == 4096)
                    for event in parser.feed(shown) if shown else ():  # nothing at all ends the parser
                        self.process_message(event)
                for event in parser.tick():
                    self.process_message(event)
        with contextlib.suppress(EOFError, ParseError):
            for _ in parser.feed(""):
                pass

    def _leave(self, number: int) -> None:
        self._app.exit(return_code=128 + number)

    def _gone(self) -> None:
        self._loop.call_soon_threadsafe(self._leave, signal.SIGHUP)


def _terminal_file() -> IO[str]:
    """The terminal to draw on: stdout where it is one, else the controlling terminal, else stderr as textual does."""
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        return os.fdopen(os.dup(sys.__stdout__.fileno()), "w", encoding="utf-8", errors="replace")
    try:
        return open("/dev/tty", "w", encoding="utf-8", errors="replace")  # noqa: PTH123 - lives with the driver
    except OSError:
        assert sys.__stderr__ is not None
        return sys.__stderr__
