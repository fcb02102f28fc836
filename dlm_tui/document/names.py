"""Names and ids: adapter names, document ids, section types."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Sequence

from dlm_tui.errors import UsageError
from dlm_tui.meant import meant

ADAPTER_NAME = "[a-z][a-z0-9_]{0,31}"
ADAPTER_NAME_RULE = "a-z, then at most 31 of a-z, 0-9 and _"
DLM_ID = "[0-9A-HJKMNP-TV-Z]{26}"
SECTION_TYPES = ("prose", "instruction", "preference", "image", "audio")
MEDIA_TYPES = ("image", "audio")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_is_adapter_name = re.compile(ADAPTER_NAME).fullmatch
_is_dlm_id = re.compile(DLM_ID).fullmatch


def is_adapter_name(name: str) -> bool:
    """A lower-case ASCII letter, then at most 31 of `a-z 0-9 _`."""
    return _is_adapter_name(name) is not None


def split_version(name: str) -> tuple[str, int | None]:
    """`knowledge@3` as ("knowledge", 3), `knowledge` as ("knowledge", None).

    What follows the `@` must be a decimal number from 1 on; any other text is returned whole, and is no adapter name.
    """
    adapter, at, number = name.partition("@")
    if at and number.isascii() and number.isdigit() and len(number) <= 9 and int(number) > 0:
        return adapter, int(number)
    return name, None


def refuse_unknown_adapter(name: str, declared: Sequence[str], also: Iterable[str] = ()) -> None:
    """Raises UsageError for an adapter that is not among those of the document; `also` may have been meant."""
    if name not in declared:
        known, near = ", ".join(declared) or "none", meant(name, [*declared, *also])
        raise UsageError(f"the document declares no adapter {name!r}; it has {known}{near}")


def is_dlm_id(text: str) -> bool:
    """26 characters of Crockford's base 32, upper case."""
    return _is_dlm_id(text) is not None


def fresh_dlm_id() -> str:
    """A new document id: 48 bits of milliseconds since the epoch, then 80 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
