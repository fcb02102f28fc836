"""Text that grows token by token without ever showing half a character."""

from __future__ import annotations

from typing import Any

_HALF = "\ufffd"


class TextStream:
    """Decodes the tokens of one row. A character whose bytes are spread over tokens appears when it is complete.

    Joined, the pieces are the text of all tokens decoded at once, without special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding begins here: a few tokens back, since some tokenizers look at the one before
        self._shown = 0  # tokens before this one have been emitted
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        return self._emit(final=False)

    def finish(self) -> str:
        """What is left: an unfinished character shows as U+FFFD."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith(_HALF) and not final):
            return ""
        piece = now[len(before) :]
        self._start, self._shown = self._shown, len(self._ids)
        self._pieces.append(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
