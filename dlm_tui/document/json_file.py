"""Reading JSON that a person writes and the program changes: what a reading would drop, the next writing would lose."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decode_whole(data: bytes, kind: type[T]) -> T:
    """The value in the bytes of a JSON file, in which no object has a name twice: of two, a reader keeps one.

    Raises msgspec.DecodeError, also for a doubled name; UnicodeDecodeError, RecursionError.
    """
    value = msgspec.json.decode(data, type=kind)
    json.loads(data, object_pairs_hook=_refuse_doubled)  # msgspec has nothing to ask which names it has seen
    return value


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise msgspec.ValidationError(f"the name {name[:80]!r} stands twice in it; rename or remove one of them")
        seen.add(name)
