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

Matches = Callable[[str], bool]


def compile_glob(pattern: str) -> Matches:
    """The predicate of one pattern."""
    if _star_count(pattern) > _REGEX_STARS:
        return _automaton(pattern)
    fullmatch = re.compile(_regex(pattern)).fullmatch
    return lambda text: fullmatch(text) is not None


def compile_any(patterns: Iterable[str]) -> Matches:
    """Whether any of the patterns matches; never, where there is none."""
    simple: list[str] = []
    others: list[Matches] = []
    for pattern in patterns:
        if pattern == "**/*":
            others.insert(0, _matches_default)
        elif _star_count(pattern) > _REGEX_STARS:
            others.append(_automaton(pattern))
        else:
            simple.append(_regex(pattern))
    if simple:
        fullmatch = re.compile("|".join(simple)).fullmatch
        others.append(lambda text: fullmatch(text) is not None)
    if len(others) == 1:
        return others[0]
    return lambda text: any(matches(text) for matches in others)


def _matches_default(text: str) -> bool:
    """`**/*`: everything but what lies below a folder whose name holds a line feed."""
    return "\n" not in text or "\n" not in text[: text.rfind("/") + 1]


def _tokens(pattern: str) -> list[str]:
    return _token.findall(pattern)


def _star_count(pattern: str) -> int:
    return sum(token.startswith("*") for token in _tokens(pattern))


def _regex(pattern: str) -> str:
    return "".join(
        ".*" if token.startswith("**") else _REGEX.get(token) or re.escape(token) for token in _tokens(pattern)
    )


def _automaton(pattern: str) -> Matches:
    """The same by stepping a set of positions through the text: one bit per position, no backtracking."""
    literal: dict[str, int] = {}
    single = loop_any = loop_part = 0
    position = 0
    for token in _tokens(pattern):
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
        # A star may match nothing; consecutive stars are passed one after the other.
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
