"""Reads a Modelfile by the rules of Ollama's own parser (parser/parser.go): what it says to the runtime.

A command is letters, in any case, and a blank; behind PARAMETER and MESSAGE stands a name or a role. A value is
complete at the first line end (line feed or carriage return) at which it is, with white space trimmed off both ends,
unquoted, closed by one quote, or closed by three; single quotes are no quotes. Characters that cannot be seen are left
out of it, except blanks, tabs and line ends.
"""

from __future__ import annotations

_NAMED = {"parameter", "message"}
_ROLES = {"system", "user", "assistant"}
_COMMANDS = _NAMED | {
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "requires",
}
_LINE_ENDS = "\n\r"
_BLANKS = " \t"
# Go's unicode.IsSpace, which is less than Python's str.isspace (that also has the separators U+001C to U+001F)
_SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def keeps(char: str) -> bool:
    """Whether the parser takes the character into a value."""
    return char.isprintable() or char in _BLANKS or char in _LINE_ENDS


def _unquoted(value: str) -> str | None:
    if value.startswith('"""'):
        return value[3:-3] if len(value) >= 6 and value.endswith('"""') else None
    if value.startswith('"'):
        return value[1:-1] if len(value) >= 2 and value.endswith('"') else None
    return value


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands (lower case) and values in order; the value of a parameter begins with its name and a blank, that of a
    message with its role and ": ". Raises ValueError where Ollama refuses the file."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] in _BLANKS or text[at] in _LINE_ENDS:
            at += 1
        elif text[at] == "#":
            while at < len(text) and text[at] not in _LINE_ENDS:
                at += 1
        else:
            name, at = _word(text, at)
            name = name.lower()
            if name not in _COMMANDS:
                raise ValueError(f"command must be one of {sorted(_COMMANDS)}, not {name!r}")
            of = ""
            if name in _NAMED:
                of, at = _word(text, at, more="_0123456789" if name == "parameter" else "")
            if name == "message" and of not in _ROLES:
                raise ValueError(f"message role must be one of {sorted(_ROLES)}, not {of!r}")
            value, at = _value(text, at)
            found.append((name, {"parameter": f"{of} {value}", "message": f"{of}: {value}"}.get(name, value)))
    if "from" not in (name for name, _ in found):
        raise ValueError("no FROM line")
    return found


def _word(text: str, start: int, more: str = "") -> tuple[str, int]:
    """Letters, and `more`, up to a blank; and what stands behind that."""
    end = start
    while end < len(text) and ((text[end].isascii() and text[end].isalpha()) or text[end] in more):
        end += 1
    if end == len(text) or text[end] not in _BLANKS:
        raise ValueError(f"no blank behind {text[start:end]!r}")
    return text[start:end], end + 1


def _value(text: str, start: int) -> tuple[str, int]:
    for end in range(start, len(text) + 1):
        if end == len(text) or text[end] in _LINE_ENDS:
            value = _unquoted("".join(filter(keeps, text[start:end])).strip(_SPACE))
            if value is not None:
                return value, end
    raise ValueError("unexpected end of file")
