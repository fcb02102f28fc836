"""A conversation as a file for other programs and readers. No torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dlm_tui.errors import UsageError
from dlm_tui.given_files import write_given
from dlm_tui.input import with_home
from dlm_tui.store import KeptAnswer
from dlm_tui.system_errors import cause

STOPPED = " [cancelled]"
"""What the `dlm` tool puts behind an answer that was stopped (formats-2 §4)."""
_FIRST_SECTION = b"## 1\n\n> "


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an array of role and content consists of."""

    role: str
    content: str


def messages_of(turns: Sequence[KeptAnswer]) -> list[dict[str, str]]:
    """The turns as role and content, as the `dlm` tool saves them (formats-2 §4)."""
    messages = []
    for turn in turns:
        mark = STOPPED if turn.reason == "stopped" else ""
        messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": f"{turn.text}{mark}"}]
    return messages


def save_conversation(name: str, turns: Sequence[KeptAnswer], *, replace: bool = False) -> Path:
    """Write the turns to the file called `name` and return its path; folders that are missing are made.

    `.md` is a text to read, with the mix of each turn; `.jsonl` has one line per turn with everything that is known of
    it; every other name is a JSON array of role and content. Another conversation that stands there is replaced with
    `replace`, what is no saved conversation never. Raises UsageError, NameTaken among them.
    """
    try:
        path = with_home(name)
        write_given(path, _bytes(path.suffix.lower(), turns), "saved conversation", _is_saved, replace=replace)
    except (OSError, RuntimeError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"{name} cannot be written: {why}") from error
    return path


def _is_saved(data: bytes) -> bool:
    """Whether the bytes of a file are a conversation in one of the forms, also as the `dlm` tool saves it."""
    if data.startswith(_FIRST_SECTION):
        return True
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        return bool(msgspec.json.decode(data, type=list[_Message]))
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        return bool(msgspec.json.Decoder(KeptAnswer).decode_lines(data))
    return False


def _bytes(form: str, turns: Sequence[KeptAnswer]) -> bytes:
    if form == ".md":
        return "\n".join(_section(number, turn) for number, turn in enumerate(turns, start=1)).encode()
    if form == ".jsonl":
        return b"".join(msgspec.json.encode(turn) + b"\n" for turn in turns)
    return (json.dumps(messages_of(turns), indent=2) + "\n").encode()


def _section(number: int, turn: KeptAnswer) -> str:
    """One turn; quoting keeps what is in it from becoming part of the text around it."""
    mix = ", ".join(f"{name} {value:.2f}" for name, value in turn.mix.items() if value) or "the base alone"
    stopped = ", stopped" if turn.reason == "stopped" else ""
    return (
        f"## {number}\n\n{_quoted(turn.prompt)}\n\n{turn.view or 'unknown'} ({mix}){stopped}:\n\n{_quoted(turn.text)}\n"
    )


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines() or [""])
