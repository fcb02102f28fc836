"""How many threads are quickest here: measured, not guessed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dlm_tui.model.backbone import Backbone

_ROUNDS = 9
_BUDGET = 0.5
"""Seconds after which a measurement ends early, on a machine that is busy or slow."""
_MARGIN = 1.05
"""More threads must be at least this much quicker: they take time from other processes."""


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def threads_for(backbone: Backbone, limit: int | None = None, rows: int = 1) -> int:
    """The thread count, at most `limit`, that runs one-token steps of `rows` rows of this very model quickest.

    One row waits for memory, several compute: they can use more threads.
    """
    cache = backbone.new_cache(rows, 64)
    backbone.forward(torch.zeros(rows, 32, dtype=torch.long), cache)
    token = torch.zeros(rows, 1, dtype=torch.long)

    def step() -> Tensor:
        hidden = backbone.forward(token, cache)
        cache.crop(32)
        return hidden

    return measure_threads(step, limit)


def measure_threads(step: Callable[[], Tensor], limit: int | None = None) -> int:
    """The thread count, at most `limit`, with which `step` is quickest: nine steps per count, about 0.5 s at most.

    The counts are timed in turns and judged by their best round, so that a busy moment hits all of them alike.
    `torch.set_num_threads` is left as it was.
    """
    cores = min(available_cores(), limit or available_cores())
    candidates = sorted({1, *(count for count in (2, 4, 8, 16, 32) if count < cores), cores})
    if len(candidates) == 1:
        return candidates[0]
    before = torch.get_num_threads()
    best = dict.fromkeys(candidates, float("inf"))
    try:
        for _ in _rounds():
            for count in candidates:
                torch.set_num_threads(count)
                best[count] = min(best[count], _seconds(step))
    finally:
        torch.set_num_threads(before)
    chosen = candidates[0]
    for count in candidates[1:]:
        if best[count] * _MARGIN < best[chosen]:
            chosen = count
    return chosen


def _rounds() -> Iterator[int]:
    start = time.perf_counter()
    for number in range(_ROUNDS):
        yield number
        if time.perf_counter() - start > _BUDGET:
            return


def _seconds(step: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
