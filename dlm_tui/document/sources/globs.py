"""The path patterns of sources and folder configurations (formats-2.md section 1.4), matched in bounded time.

`**` and one `/` directly behind it are any run without a line feed, `*` any run without `/`, `?` one character
but `/`, everything else is itself. A pattern covers the whole path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_token = re.compile(r"\*\*/?|\*|\?|[^*?]+", re.DOTALL)
_REGEX = {"*": "[^/]*", "?": "[^/]"}
# With more stars a backtracking matcher may need time that grows with the star count as an exponent.
_REGEX_STARS = 2
_LONGEST_PATH = 1 << 15
"""Characters that no path on any system has; a pattern that asks for more matches none."""

Matches = Callable[[str], bool]


def compile_any(patterns: Iterable[str]) -> Matches:
    """Whether any of the patterns matches; never, where there is none."""
    plain: set[str] = set()
    simple: dict[str, None] = {}
    others: list[Matches] = []
    for pattern in patterns:
        if pattern == "**/*":
            others.insert(0, _matches_default)
            continue
        tokens = _tokens(pattern)
        stars = sum(token.startswith("*") for token in tokens)
        if sum(len(token) for token in tokens if not token.startswith("*")) > _LONGEST_PATH:
            continue
        if not stars and "?" not in tokens:
            plain.add(pattern)
        elif stars > _REGEX_STARS:
            others.append(_automaton(tokens))
        else:
            simple[_regex(tokens)] = None
    if simple:
        fullmatch = re.compile("|".join(simple)).fullmatch
        others.append(lambda text: fullmatch(text) is not None)
    if plain:
        others.insert(0, plain.__contains__)
    if len(others) == 1:
        return others[0]
    return lambda text: any(matches(text) for matches in others)


def _matches_default(text: str) -> bool:
    """`**/*`: everything but what lies below a folder whose name holds a line feed."""
    return "\n" not in text or "\n" not in text[: text.rfind("/") + 1]


def _tokens(pattern: str) -> list[str]:
    """The parts of a pattern; of several `**` in a row one is left, which matches the same."""
    found: list[str] = []
    for token in _token.findall(pattern):
        if not (token.startswith("**") and found and found[-1].startswith("**")):
            found.append(token)
    return found


def _regex(tokens: list[str]) -> str:
    return "".join(".*" if token.startswith("**") else _REGEX.get(token) or re.escape(token) for token in tokens)


def _automaton(tokens: list[str]) -> Matches:
    """The same by stepping a set of positions through the text: one bit per position, no backtracking."""
    literal: dict[str, int] = {}
    single = loop_any = loop_part = 0
    position = 0
    for token in tokens:
        if token.startswith("**"):
            loop_any |= 1 << position
        elif token == "*":
            loop_part |= 1 << position
        elif token == "?":
            single |= 1 << position
        else:
            for offset, character in enumerate(token):
                literal[character] = literal.get(character, 0) | 1 << (position + offset)
            position += len(token) - 1
        position += 1
    loops, final = loop_any | loop_part, 1 << position

    def passing(states: int) -> int:
        # A star may match nothing; the two that may follow each other are passed one after the other.
        while (more := (states & loops) << 1 & ~states) != 0:
            states |= more
        return states

    def matches(text: str) -> bool:
        states = passing(1)
        for character in text:
            steps = literal.get(character, 0)
            stays = loops
            if character == "/":
                stays = loop_any
            else:
                steps |= single
                if character == "\n":
                    stays = loop_part
            states = passing((states & steps) << 1 | states & stays)
            if not states:
                return False
        return bool(states & final)

    return matches
