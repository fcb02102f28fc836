"""What of a prompt need not be run again: tokens that stand at its beginning under the very same mix."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm_tui.model.adapters import Adapter
from dlm_tui.model.backbone import Backbone, KVCache
from dlm_tui.progress import Progress, map_steps

Mix = tuple[tuple[int, float], ...]
"""The adapters that take part, by identity, each with its exact coefficient; () with all of them off."""
Key = tuple[tuple[int, ...], Mix]
"""The token ids of a prompt and its mix: what the keys and values of a row depend on."""

PIECE = 128
"""Tokens per prefill piece: small enough to be cancelled between two, large enough to cost little (13 % at 512)."""

_LEAST = 16
"""A forward pass costs about as much as one of so many tokens, since it reads all weights."""


@dataclass(frozen=True)
class CachedPrefix:
    """Token ids whose keys and values `cache` holds in its only row, run by `backbone` with the adapters off."""

    ids: tuple[int, ...]
    cache: KVCache
    backbone: Backbone


@dataclass(frozen=True)
class PrefilledBatch:
    """What the last prefill left: the backbone's family, the key of each row, the cache of these rows, and the hidden
    state [B, H] of every row's last token. Never written to: decoding works on a copy.

    `adapters` are those of the keys, kept so that no other object gets their identity. `run` is how many tokens of each
    key were run for it, () where nobody counted.
    """

    family: tuple[str, object]
    adapters: tuple[Adapter, ...]
    keys: tuple[Key, ...]
    cache: KVCache
    hidden: Tensor
    run: tuple[int, ...] = ()


@dataclass(frozen=True)
class Start:
    """Where a row begins: behind `length` tokens of row `row` of the last prefill, or of what the router knows
    (`row` None). `whole`: nothing has to be run."""

    length: int = 0
    row: int | None = None
    whole: bool = False


def family(backbone: Backbone) -> tuple[str, object]:
    """Backbones of one base and of the same family give the same keys and values under the same mix."""
    return backbone.tier, getattr(backbone, "weights", None)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many token ids at the beginning of both are the same."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    return next(index for index in range(limit) if first[index] != second[index])


def starts(
    keys: Sequence[Key], engine: Backbone, before: PrefilledBatch | None, off: CachedPrefix | None
) -> list[Start]:
    """The best start of every row. At least the last token is run, unless the very same row was prefilled before."""
    kin = family(engine)
    if before is not None and not _same(before.family, kin):
        before = None
    if off is not None and not _same(family(off.backbone), kin):
        off = None
    return [_start(key, before, off) for key in keys]


def divide(keys: Sequence[Key], found: Sequence[Start]) -> int:
    """From which length on it pays to run the rows that can begin there apart from the others; 0 if it never does.

    Rows run together take as long as the longest of them.
    """
    rows = [(len(ids), start.length) for (ids, _), start in zip(keys, found, strict=True) if not start.whole]
    best, cheapest = 0, _cost([size for size, _ in rows], 0)
    for length in sorted({length for _, length in rows if length}, reverse=True):
        later = [size for size, known in rows if known >= length]
        others = [size for size, known in rows if known < length]
        cost = _cost(later, length) + _cost(others, 0)
        if cost < cheapest:
            best, cheapest = length, cost
    return best


def prefilled(
    engine: Backbone,
    rows: Mapping[Key, Tensor],
    capacity: int,
    before: PrefilledBatch | None,
    known: CachedPrefix | None,
) -> Generator[Progress, None, PrefilledBatch]:
    """The prefill of these keys with their coefficients [N]; what `before` or `known` holds of them is not run."""
    keys = list(rows)
    found = starts(keys, engine, before, known)
    if before is not None and all(start.whole for start in found):
        return replace(before, run=(0,) * len(before.keys))
    pays = divide(keys, found)
    whole = [key for key, start in zip(keys, found, strict=True) if start.whole]
    begins = dict(zip(keys, found, strict=True))
    later = [key for key in keys if pays and key not in whole and begins[key].length >= pays]
    later.sort(key=lambda key: begins[key].row is None)
    fresh = [key for key in keys if key not in whole and key not in later]
    groups: list[tuple[list[Key], KVCache, int]] = []
    if later:
        groups.append((later, _resumed(engine, [begins[key] for key in later], pays, capacity, before, known), pays))
    if fresh:
        groups.append((fresh, engine.new_cache(len(fresh), capacity), 0))
    total = sum(max(len(ids) for ids, _ in part) for part, _, _ in groups)
    caches, states = [], []
    if before is not None and whole:
        places = [begins[key].row or 0 for key in whole]
        caches, states = [before.cache.select(places)], [before.hidden[places]]
    done = 0
    for part, cache, length in groups:
        coefficients = torch.stack([rows[key] for key in part])
        running = prefill(engine, [ids[length:] for ids, _ in part], cache, coefficients)
        states.append((yield from _counted_on(running, done + length, total)))
        caches.append(cache)
        done += max(len(ids) for ids, _ in part)
    cache = caches[0].joined(caches[1:]) if len(caches) > 1 else caches[0]
    run = (*(0 for _ in whole), *(len(ids) - pays for ids, _ in later), *(len(ids) for ids, _ in fresh))
    done_keys = (*whole, *later, *fresh)
    return PrefilledBatch(family(engine), engine.mixer.adapters, done_keys, cache, torch.cat(states), run)


def _resumed(
    engine: Backbone,
    begins: Sequence[Start],
    length: int,
    capacity: int,
    before: PrefilledBatch | None,
    known: CachedPrefix | None,
) -> KVCache:
    """A cache whose rows hold `length` tokens each: first those taken from `before`, then those from `known`."""
    rows = [begin.row for begin in begins if begin.row is not None]
    parts: list[KVCache] = []
    if before is not None and rows:
        taken = before.cache.select(rows)
        taken.crop(length)
        parts.append(taken)
    if known is not None and len(rows) < len(begins):
        adopted = engine.new_cache(len(begins) - len(rows), capacity)
        adopted.adopt(known.cache, length)
        parts.append(adopted)
    return parts[0].joined(parts[1:]) if len(parts) > 1 else parts[0]


def _counted_on(work: Generator[Progress, None, Tensor], before: int, total: int) -> Generator[Progress, None, Tensor]:
    """What `work` counts from 0, counted from `before` to the `total` of several."""
    return map_steps(work, lambda step: Progress(step.stage, before + step.done, total))


def prefill(
    engine: Backbone, prompts: Sequence[Sequence[int]], cache: KVCache, coefficients: Tensor | None
) -> Generator[Progress, None, Tensor]:
    """Append one prompt per row to `cache` in pieces of 128 tokens; yields after each, and before the first of several.

    Returns the hidden state [B, H] of every row's last token. The prompts may differ in length; none may be empty.
    """
    total = max(len(prompt) for prompt in prompts)
    last: Tensor | None = None
    if total > PIECE:
        yield Progress("prefill", 0, total)
    for start in range(0, total, PIECE):
        pieces = [list(prompt[start : start + PIECE]) for prompt in prompts]
        width = max(len(piece) for piece in pieces)
        lengths = [len(piece) for piece in pieces]
        ids = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces], dtype=torch.long)
        even = min(lengths) == max(lengths)
        hidden = engine.forward(ids, cache, coefficients, lengths=None if even else lengths)
        if last is None:
            last = hidden.new_zeros(hidden.shape[0], hidden.shape[2])
        for row, length in enumerate(lengths):
            if length:
                last[row] = hidden[row, length - 1]
        yield Progress("prefill", min(start + PIECE, total), total)
    assert last is not None
    return last


def _start(key: Key, before: PrefilledBatch | None, off: CachedPrefix | None) -> Start:
    ids, mix = key
    best = Start()
    for row, (other, same) in enumerate(before.keys if before is not None else ()):
        if same == mix and other == ids:
            return Start(len(ids), row, whole=True)
        if same == mix and (length := min(common_prefix(ids, other), len(ids) - 1)) > best.length:
            best = Start(length, row)
    if off is not None and not mix and (length := min(common_prefix(ids, off.ids), len(ids) - 1)) > best.length:
        best = Start(length)
    return best


def _cost(sizes: Sequence[int], length: int) -> int:
    return max(_LEAST, len(sizes) * (max(sizes) - length)) if sizes else 0


def _same(first: tuple[str, object], second: tuple[str, object]) -> bool:
    return first[0] == second[0] and first[1] is second[1]
