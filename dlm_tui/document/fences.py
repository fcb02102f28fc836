"""Fence lines (formats.md section 7)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dlm_tui.document.errors import shortened
from dlm_tui.document.names import ADAPTER_NAME_RULE, MEDIA_TYPES, SECTION_TYPES, is_adapter_name

CODE_TOGGLE = "```"
_ATTRIBUTES = r'(?:\s++[a-z][a-z0-9_]*+="[^"]*+")++'
_attribute_fence = re.compile(rf"::([a-z][a-z0-9_]*+)({_ATTRIBUTES})\s*+::").fullmatch
_bare_fence = re.compile(r"::([A-Za-z0-9_#-]+)::").fullmatch
_attribute = re.compile(r'([a-z][a-z0-9_]*)="([^"]*)"')
attributes_only = re.compile(_ATTRIBUTES).fullmatch

_REQUIRED = {"image": ("path",), "audio": ("path", "transcript")}
_ALLOWED = {"image": ("path", "alt"), "audio": ("path", "transcript")}


@dataclass(frozen=True, slots=True)
class Fence:
    """What a fence line opens."""

    type: str
    adapter: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)


class BadLine(ValueError):
    """A fence or marker line that is one, but a wrong one; the caller knows the place."""


def attribute_pairs(text: str) -> list[tuple[str, str]]:
    """All `key="value"` of a matched fence or marker, left to right."""
    return _attribute.findall(text)


def read_fence(line: str) -> Fence | None:
    """The fence that `line` is, or None for ordinary text. Raises BadLine."""
    if not line.startswith("::"):
        return None
    if match := _attribute_fence(line):
        return _with_attributes(match[1], match[2])
    if match := _bare_fence(line):
        return _bare(match[1])
    return None


def _bare(name: str) -> Fence:
    section_type, hash_sign, suffix = name.partition("#")
    if hash_sign and not suffix:
        raise BadLine(f"the fence ::{shortened(name)}:: has an empty adapter name after #")
    if hash_sign and not is_adapter_name(suffix):
        raise BadLine(
            f"the fence ::{shortened(name)}:: names {shortened(suffix)!r}, which is not a legal adapter name"
            f" ({ADAPTER_NAME_RULE})"
        )
    if section_type not in SECTION_TYPES:
        raise BadLine(f"unknown section type {shortened(section_type)!r}; there are {', '.join(SECTION_TYPES)}")
    if section_type in MEDIA_TYPES:
        raise BadLine(f'an {section_type} fence needs attributes such as path="..."')
    return Fence(section_type, suffix if hash_sign else None)


def _with_attributes(name: str, text: str) -> Fence:
    if name not in SECTION_TYPES:
        raise BadLine(f"unknown section type {shortened(name)!r}; there are {', '.join(SECTION_TYPES)}")
    if name not in MEDIA_TYPES:
        raise BadLine(f"a {name} fence takes no attributes")
    attributes: dict[str, str] = {}
    for key, value in attribute_pairs(text):
        if key in attributes:
            raise BadLine(f"the {name} fence repeats the attribute {key!r}")
        if key not in _ALLOWED[name]:
            raise BadLine(f"the {name} fence has an unknown attribute {shortened(key)!r}")
        if not value.isascii():
            raise BadLine(f"the attribute {key!r} of the {name} fence must be ASCII")
        attributes[key] = value
    missing = [key for key in _REQUIRED[name] if key not in attributes]
    if missing:
        raise BadLine(f"the {name} fence lacks the attribute {', '.join(missing)}")
    return Fence(name, None, attributes)
