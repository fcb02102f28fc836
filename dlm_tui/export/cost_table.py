"""What a number format costs, as a line of a table. Plain data, so that the screen may import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Form = Literal["apart", "merged"]


class FormatCost(msgspec.Struct, kw_only=True, frozen=True):
    """One line of the table.

    `size` is in bytes of the model file, `bits` per weight of it, `mean_kl` and `max_kl` in nats at the next token
    against float32, `changed_answers` the share of greedy answers (of 24 tokens) that differ. `gate_moved` is the mean
    over the prompts of the largest change of a gate weight, `gate_changed` the share of prompts with another first
    choice; None where there is no trained gate or the adapters are merged. `tokens_per_second` on one thread.
    """

    quant: str
    form: Form
    size: int
    bits: float
    mean_kl: float
    max_kl: float
    changed_answers: float
    gate_moved: float | None
    gate_changed: float | None
    tokens_per_second: float | None
    prompts: int


HEAD = ("format", "adapters", "size", "bits", "mean KL", "max KL", "answers", "gate moved", "choice", "tokens/s")
"""The columns of `cells`."""


def cells(line: FormatCost) -> tuple[str, ...]:
    """A line in the words of `HEAD`: MB, bits per weight, nats, shares that changed."""
    moved = "-" if line.gate_moved is None else f"{line.gate_moved:.4f}"
    changed = "-" if line.gate_changed is None else f"{line.gate_changed:.0%}"
    speed = "-" if line.tokens_per_second is None else f"{line.tokens_per_second:.0f}"
    return (
        line.quant.upper(),
        line.form,
        f"{line.size / 1e6:.1f} MB",
        f"{line.bits:.2f}",
        f"{line.mean_kl:.5f}",
        f"{line.max_kl:.4f}",
        f"{line.changed_answers:.0%}",
        moved,
        changed,
        speed,
    )


def table(lines: Sequence[FormatCost]) -> str:
    """The lines in columns, for people."""
    rows = [HEAD, *(cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]

    def aligned(row: Sequence[str]) -> str:
        pairs = list(zip(row, widths, strict=True))
        left = [cell.ljust(width) for cell, width in pairs[:2]]
        return "  ".join([*left, *(cell.rjust(width) for cell, width in pairs[2:])]).rstrip()

    return "\n".join(aligned(row) for row in rows)
