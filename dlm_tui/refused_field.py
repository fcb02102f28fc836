"""What a setting is refused for, in words: where it stands, and what it may be."""

from __future__ import annotations

import re

import msgspec
from msgspec import inspect

from dlm_tui.meant import meant

_EXPECTED = re.compile(r"Expected `([^`]*)`(?: (>=|<=|>|<) (\S+?))?(?:, got `([^`]*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_ENUM = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|(\[[^\]]*\])")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_BOUNDS = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}


def place_of(error: msgspec.ValidationError) -> str:
    """The dotted path of the field that was refused; empty for the whole."""
    return _parts(error)[1]


def refusal(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """Why a value of `kind` was refused, as one sentence about the field at `place_of`."""
    message, place = _parts(error)
    types = _types_at(inspect.type_info(kind), place)
    if unknown := _UNKNOWN.fullmatch(message):
        names = [field.encode_name for one in types if isinstance(one, inspect.StructType) for field in one.fields]
        near = meant(unknown[1], names) or f"; there are {', '.join(names)}"
        return f"there is no key {unknown[1]!r}{near}"
    if enum := _ENUM.fullmatch(message):
        choices = [str(value) for one in types if isinstance(one, inspect.LiteralType) for value in one.values]
        return f"it must be {' or '.join(choices)}, not {enum[1]}"
    if expected := _EXPECTED.fullmatch(message):
        wanted, sign, bound, got = expected.groups()
        limit = f" {_BOUNDS[sign]} {bound}" if sign else ""
        return f"it must be {_in_words(wanted)}{limit}{f', not {_in_words(got)}' if got else ''}"
    return message[:1].lower() + message[1:]


def _parts(error: msgspec.ValidationError) -> tuple[str, str]:
    message, at, place = str(error).rpartition(" - at `$")  # the last: what is refused may have it, too
    return (message, place.rstrip("`").lstrip(".")) if at else (str(error), "")


def _in_words(kinds: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds.split(" | "))


def _types_at(kind: inspect.Type, place: str) -> list[inspect.Type]:
    """What may stand at a place; the members of a union one by one."""
    found = _members(kind)
    for name, _ in _STEP.findall(f".{place}" if place else ""):
        found = [member for one in found for inner in _inside(one, name) for member in _members(inner)]
    return found


def _members(kind: inspect.Type) -> list[inspect.Type]:
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]


def _inside(kind: inspect.Type, name: str) -> list[inspect.Type]:
    """The type of a field, or with no name of an item; none where there is no such thing."""
    if isinstance(kind, inspect.StructType):
        return [field.type for field in kind.fields if field.encode_name == name]
    if isinstance(kind, inspect.DictType):
        return [kind.value_type]
    return [kind.item_type] if isinstance(kind, inspect.ListType) else []
