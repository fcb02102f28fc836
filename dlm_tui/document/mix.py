"""Mix strings such as `tone:0.7,facts:0.3` (formats.md section 15.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from dlm_tui.document.errors import InvalidMixSpecError
from dlm_tui.document.names import ADAPTER_NAME_RULE, is_adapter_name, split_version
from dlm_tui.meant import meant


def parse_mix(
    spec: str, declared: Sequence[str] | None = None, signed: bool = False, versions: bool = False
) -> list[tuple[str, float]]:
    """Adapter weights in the order written; they need not sum to 1.

    `declared` lists the names that are allowed. Plain mixes are what exports take: weights of at least 0,
    where infinity and NaN pass as they do in the other tool. `signed` mixes are what a person dials: any
    finite number. With `versions` an entry may name a kept version, such as `knowledge@3:0.5`.
    Raises InvalidMixSpecError.
    """
    entries: list[tuple[str, float]] = []
    seen: set[str] = set()
    for entry in spec.strip().split(","):
        name, weight = _read_entry(entry.strip(), signed, versions)
        if name in seen:
            raise InvalidMixSpecError(f"the mix names {name!r} twice (duplicate)")
        seen.add(name)
        entries.append((name, weight))
    if declared is not None:
        unknown = [name for name, _ in entries if split_version(name)[0] not in declared]
        if unknown:
            raise InvalidMixSpecError(
                f"the mix names {', '.join(unknown)}, which the document does not declare; "
                f"it has {', '.join(declared) or 'no adapters'}{meant(unknown[0], declared)}"
            )
    return entries


def format_mix(entries: Iterable[tuple[str, float]] | Mapping[str, float]) -> str:
    """The shortest mix string that reads back to exactly these weights."""
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    return ",".join(f"{name}:{float(weight)!r}" for name, weight in pairs)


def _read_entry(entry: str, signed: bool, versions: bool) -> tuple[str, float]:
    shown = repr(entry[:80])
    if not entry:
        raise InvalidMixSpecError("the mix has an empty entry")
    name, colon, text = entry.rpartition(":")
    if not colon:
        raise InvalidMixSpecError(f"the mix entry {shown} has no weight; write name:weight")
    name = name.strip()
    if not is_adapter_name(split_version(name)[0] if versions else name):
        raise InvalidMixSpecError(f"the mix entry {shown} has no legal adapter name ({ADAPTER_NAME_RULE})")
    try:
        weight = float(text.strip())
    except ValueError:
        raise InvalidMixSpecError(f"the weight in the mix entry {shown} is not a number") from None
    if signed and not math.isfinite(weight):
        raise InvalidMixSpecError(f"the weight in the mix entry {shown} is not a finite number")
    if not signed and weight < 0:
        raise InvalidMixSpecError(f"the weight in the mix entry {shown} is negative; --signed allows that")
    return name, weight
