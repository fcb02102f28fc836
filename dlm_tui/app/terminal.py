"""The terminal as textual's driver sees it, with what real terminals and real shells do to a program added.

* Bytes that are not UTF-8 (a key press in another encoding, a broken paste) become U+FFFD.
* Mouse reports in the old X10 form, three raw bytes behind `ESC [ M`, become those that textual reads.
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
HANG_UP = 128 + signal.SIGHUP
"""What the program returns when its terminal is gone."""
_LEAVING = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)


class TerminalText:
    """What a terminal sends, as text for textual's parser."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._kept = b""

    def feed(self, data: bytes, *, more: bool = False) -> str:
        """The text of `data`; the beginning of an X10 report is kept back while `more` is still to be read."""
        data = self._kept + data
        self._kept = b""
        if more and (cut := _X10_CUT.search(data)):
            data, self._kept = data[: cut.start()], data[cut.start() :]
        return self._decode(_X10.sub(_as_sgr, data))


def _as_sgr(report: re.Match[bytes]) -> bytes:
    """The SGR form of an X10 report: every value has 32 added; button 3 means that whichever it was is up again."""
    button, column, row = (value - 32 for value in report[1])
    released = button & 3 == 3 and not button & (32 | 64)
    return b"\x1b[<%d;%d;%d%c" % (button & ~3 if released else button, column, row, b"m" if released else b"M")


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
                    for event in parser.feed(text.feed(data, more=bool(selector.select(0)) or len(data) == 4096)):
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
