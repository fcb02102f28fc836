"""Lines from a terminal: edited, completed and remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.output import create_output

from dlm_tui.files import write_through_links
from dlm_tui.small_files import read_file

_HISTORY_BYTES = 1 << 20


class LineHistory(FileHistory):
    """The lines typed before, in prompt-toolkit's form (a blank line, `# ` and the time, lines with `+`).

    A file that cannot be read or written is not in the way. Beyond one MiB the older half goes.
    """

    def __init__(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.stat().st_size > _HISTORY_BYTES:
                write_through_links(path, _newer_half(read_file(path)))
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Put a line behind the others."""
        with contextlib.suppress(OSError):
            super().store_string(string)


class Words(Completer):
    """The commands, and behind those that take a name the names that are there."""

    def __init__(self, commands: Sequence[str], names: Callable[[str], Sequence[str]]) -> None:
        self._commands, self._names = commands, names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the word before the cursor may become."""
        text = document.text_before_cursor.lstrip()
        command, blank, rest = text.partition(" ")
        words, begun = (self._names(command.lower()), rest) if blank else (self._commands, command)
        if text.startswith("/"):
            yield from (Completion(word, -len(begun)) for word in words if word.startswith(begun))


class Terminal:
    """`completed`: how many turns there are, for the prompt. `begun` is the text with which the next line begins."""

    def __init__(self, history: Path, words: Words, completed: Callable[[], int]) -> None:
        self.begun = ""
        self._completed = completed
        # what is typed belongs to the terminal, also where the answers go to a file
        self._session: PromptSession[str] = PromptSession(
            history=LineHistory(history),
            completer=words,
            complete_while_typing=False,
            output=create_output(always_prefer_tty=True),
        )

    def end(self, status: int) -> None:
        """Leave the program with this status, from a signal; a line that is being typed gives the terminal back."""
        app = self._session.app
        if not app.is_running or app.loop is None:
            raise SystemExit(status)
        app.loop.call_soon_threadsafe(partial(app.exit, exception=SystemExit(status)))

    def lines(self) -> Iterator[str]:
        """What is typed, line by line, until Ctrl-D. Ctrl-C clears the line."""
        while True:
            begun, self.begun = self.begun, ""
            count = self._completed()
            try:
                yield self._session.prompt(f"[{count}] > " if count else "> ", default=begun)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return


def _newer_half(data: bytes) -> bytes:
    cut = data.find(b"\n\n#", len(data) // 2)
    return data[cut:] if cut >= 0 else b""
