"""Provenance markers directly under a fence (formats.md section 8)."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

from dlm_tui.document.errors import shortened
from dlm_tui.document.fences import BadLine, attribute_pairs, attributes_only

_harvest = re.compile(r'<!-- dlm-auto-harvest: source="([^"]*)" -->').fullmatch
_SUFFIX = " -->"
_section_reference = re.compile("[0-9a-f]{16}").fullmatch

# Which marker may stand in which section: section type -> (kind, exact attributes).
_BY_TYPE = {
    "preference": (
        "mined",
        ("judge_name", "judge_score_chosen", "judge_score_rejected", "mined_at", "mined_run_id"),
    ),
    "instruction": ("synth", ("synth_teacher", "synth_strategy", "synth_at", "source_section_id")),
}


def read_markers(section_type: str, lines: list[str]) -> tuple[dict[str, Any], int]:
    """The marker fields at the head of a section's lines, and how many lines they take.

    Any order, the last of a kind wins, the first line that is no marker ends the scan. Raises BadLine.
    """
    fields: dict[str, Any] = {}
    if section_type not in _BY_TYPE:
        return fields, 0
    count = 0
    for line in lines:
        marker = _read_marker(section_type, line) if line.startswith("<!-- dlm-auto-") else None
        if marker is None:
            break
        fields.update(marker)
        count += 1
    return fields, count


def harvest_marker(source: str) -> str:
    """The marker of an instruction or preference section that came from `source`; what it cannot carry is left out."""
    return f'<!-- dlm-auto-harvest: source="{_attribute(source)}" -->'


def mined_marker(judge: str, chosen: float, rejected: float, at: datetime, run_id: int) -> str:
    """The marker of a preference that `judge` found by these scores, at a UTC time, after training run `run_id`."""
    return (
        f'<!-- dlm-auto-mined: judge_name="{_attribute(judge)}" judge_score_chosen="{chosen!r}" '
        f'judge_score_rejected="{rejected!r}" mined_at="{at:%Y-%m-%dT%H:%M:%SZ}" mined_run_id="{run_id}" -->'
    )


def _attribute(text: str) -> str:
    return "".join(character for character in text if character.isprintable() and character != '"')


def _read_marker(section_type: str, line: str) -> dict[str, Any] | None:
    if match := _harvest(line):
        return {"auto_harvest": True, "harvest_source": match[1]}
    kind, names = _BY_TYPE[section_type]
    prefix = f"<!-- dlm-auto-{kind}:"
    if not (line.startswith(prefix) and line.endswith(_SUFFIX)):
        return None
    text = line[len(prefix) : -len(_SUFFIX)]
    if not attributes_only(text):
        raise BadLine(f'the auto-{kind} marker has a syntax error: it must be a list of key="value"')
    values: dict[str, str] = {}
    for key, value in attribute_pairs(text):
        if key in values:
            raise BadLine(f"the auto-{kind} marker repeats {key}")
        if key not in names:
            raise BadLine(f"the auto-{kind} marker has an unknown attribute {shortened(key)}")
        values[key] = value
    missing = [key for key in names if key not in values]
    if missing:
        raise BadLine(f"the auto-{kind} marker lacks {', '.join(missing)}")
    return {f"auto_{kind}": True, **{key: _typed(kind, key, value) for key, value in values.items()}}


def _typed(kind: str, key: str, value: str) -> object:
    where = f"{key} of the auto-{kind} marker"
    if key.startswith("judge_score"):
        return _finite(where, value)
    if key in ("mined_at", "synth_at"):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise BadLine(f"{where} is not an ISO-8601 time") from None
        return value
    if key == "mined_run_id":
        return _run_id(where, value)
    if key == "source_section_id" and not _section_reference(value):
        raise BadLine(f"{where} must be 16 lower-case hex digits")
    if key in ("synth_teacher", "synth_strategy") and not value:
        raise BadLine(f"{where} is empty")
    return value


def _finite(where: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise BadLine(f"{where} is not a float") from None
    if not math.isfinite(number):
        raise BadLine(f"{where} is not finite")
    return number


def _run_id(where: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise BadLine(f"{where} is not an integer") from None
    if number < 1:
        raise BadLine(f"{where} must be at least 1")
    return number
