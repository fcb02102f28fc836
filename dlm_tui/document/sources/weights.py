"""How often a row trains: the weights that folder configurations give to tags (formats-2.md section 1.7)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from dlm_tui.document.document import Document
from dlm_tui.document.routing import Row
from dlm_tui.errors import DlmTuiError

Weights = Mapping[str, Mapping[str, float]]


def tag_factor(tags: Iterable[tuple[str, str]], weights: Weights) -> float:
    """The product of the factors of all tags; a tag without one counts 1."""
    return math.prod(weights.get(tag, {}).get(value, 1.0) for tag, value in tags)


def copies(factor: float, seed: int, section_id: str) -> int:
    """How many times a row of weight `factor` is there.

    The whole part, and one more with the probability of the rest, drawn from seed and section id alone: a section of
    equal text is always drawn alike. Raises DlmTuiError for a factor that is no finite number.
    """
    if not math.isfinite(factor):
        raise DlmTuiError(f"the weights of the source folders multiply to {factor}: they must be finite numbers")
    if factor <= 0:
        return 0
    whole = math.floor(factor)
    digest = hashlib.blake2b(f"{seed}:{section_id}".encode(), digest_size=8).digest()
    return whole + (int.from_bytes(digest, "big") / 2**64 < factor - whole)


def weighted_rows(rows: Iterable[Row], document: Document, weights: Weights) -> list[Row]:
    """The rows as often as their sections' tags say, numbered anew per section so that each copy is split by itself.

    Raises DlmTuiError if the weights drop all of them.
    """
    given = list(rows)
    if not weights:
        return given
    kept: list[Row] = []
    numbers: dict[str, int] = {}
    for row in given:
        origin = document.sections[row.section_index].origin
        factor = tag_factor(origin.tags, weights) if origin is not None else 1.0
        for _ in range(copies(factor, document.training.seed, row.section_id)):
            number = numbers.get(row.section_id, 0)
            numbers[row.section_id] = number + 1
            kept.append(replace(row, sub_index=number))
    if given and not kept:
        raise DlmTuiError("the weights of the source folders drop every row: nothing is left to train")
    return kept


def weight_distribution(rows: Iterable[Row], document: Document, weights: Weights) -> dict[str, dict[str, int]] | None:
    """Rows per tag and value before weighting, as the manifest records them; None where nothing has a weight."""
    if not weights:
        return None
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        origin = document.sections[row.section_index].origin
        for tag, value in origin.tags if origin is not None else ():
            values = counts.setdefault(tag, {})
            values[value] = values.get(value, 0) + 1
    return counts
