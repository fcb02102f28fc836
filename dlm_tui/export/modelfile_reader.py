"""Reads a Modelfile by the rules of Ollama's own parser (parser/parser.go): what it says to the runtime.

A command is letters and a blank; its value is complete at the first line end (line feed or carriage return) at which it
is, with white space trimmed off both ends, unquoted, closed by one quote, or closed by three.
"""

from __future__ import annotations

_COMMANDS = {
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
}
_LINE_ENDS = "\n\r"
# Go's unicode.IsSpace, which is less than Python's str.isspace (that also has the separators U+001C to U+001F)
_SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _unquoted(value: str) -> str | None:
    if value.startswith('"""'):
        return value[3:-3] if len(value) >= 6 and value.endswith('"""') else None
    if value.startswith('"'):
        return value[1:-1] if len(value) >= 2 and value.endswith('"') else None
    return value


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands (lower case) and values in order. Raises ValueError where Ollama refuses the file."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] in _SPACE:
            at += 1
        elif text[at] == "#":
            while at < len(text) and text[at] not in _LINE_ENDS:
                at += 1
        else:
            start = at
            while at < len(text) and text[at].isalpha():
                at += 1
            name = text[start:at].lower()
            if name not in _COMMANDS or at == len(text) or text[at] not in " \t":
                raise ValueError(f"command must be one of {sorted(_COMMANDS)}, not {name!r}")
            value, at = _value(text, at)
            found.append((name, value))
    return found


def _value(text: str, start: int) -> tuple[str, int]:
    for end in range(start, len(text) + 1):
        if end == len(text) or text[end] in _LINE_ENDS:
            value = _unquoted(text[start:end].strip(_SPACE))
            if value:
                return value, end
    raise ValueError("unexpected end of file")
