"""What an answer's card is told: plain data between controllers and the pane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class CardKey(NamedTuple):
    """Which answer of an asking: the view's name, and which of its samples."""

    view: str
    sample: int = 0


class FinishedCard(NamedTuple):
    """An answer that was given before: its pieces with their heat in nats, and what stands beside its name."""

    key: CardKey
    pieces: Sequence[tuple[str, float | None]]
    note: str
