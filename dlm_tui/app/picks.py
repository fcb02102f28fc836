"""Answers drawn for a prompt, put into pairs in random order, and what was picked of them. Plain data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Drawn:
    """One answer: the view and seed that gave it, and the mix."""

    prompt: str
    view: str
    seed: int
    text: str
    mix: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, in the order in which they are shown."""

    first: Drawn
    second: Drawn


@dataclass(frozen=True)
class Picked:
    """The better and the worse answer of a pair."""

    chosen: Drawn
    rejected: Drawn


def pairs_of(drawn: Sequence[Drawn], seed: int) -> list[Pair]:
    """Pairs of different answers to the same prompt, each answer at most once, prompts and sides in random order.

    The order depends only on the answers and the seed. Of equal answers to a prompt the first one stands for all.
    """
    order = random.Random(seed)
    by_prompt: dict[str, dict[str, Drawn]] = {}
    for answer in drawn:
        if text := " ".join(answer.text.split()):
            by_prompt.setdefault(answer.prompt, {}).setdefault(text, answer)
    pairs = []
    for answers in by_prompt.values():
        shuffled = list(answers.values())
        order.shuffle(shuffled)
        pairs += [Pair(first, second) for first, second in zip(shuffled[::2], shuffled[1::2], strict=False)]
    order.shuffle(pairs)
    return pairs
