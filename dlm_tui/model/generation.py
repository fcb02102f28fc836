"""Decoding many views together: one batch row per mix, streamed, stopped and seeded independently."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from dlm_tui.errors import UsageError
from dlm_tui.model.backbone import Backbone, KVCache
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.prefix_reuse import CachedPrefix, Key, PrefilledBatch, family, prefilled
from dlm_tui.model.sampling import Sampling
from dlm_tui.model.streaming import TextStream
from dlm_tui.progress import Progress

_LIKELY = 256
"""Tokens among which the nucleus is looked for first."""


class GenerationEvent(msgspec.Struct, frozen=True):
    """One token of one row. `logprob` is the view's own, `base_logprob` the untouched base's for the same token after
    the same text (nats, temperature 1; None unless asked for). The event with `done` is a row's last: `reason` is
    `stop` (an end token, which is not part of the text), `length` (max_tokens) or `context` (no room left)."""

    row: int
    token_id: int
    text_delta: str
    logprob: float
    base_logprob: float | None = None
    done: bool = False
    reason: str = ""


class Generated(msgspec.Struct, frozen=True):
    """A finished row: its text without special tokens, and the token ids before the end token.

    Of its `prompt_tokens` `run_tokens` had to be run, which took `prefill_seconds` for all rows together; the others
    stood at the beginning of what had been run before under the very same mix.
    """

    row: int
    text: str
    token_ids: list[int]
    reason: str
    prompt_tokens: int = 0
    run_tokens: int = 0
    prefill_seconds: float = 0.0


@dataclass
class DecodingRow:
    """One answer in the making. `coefficients` [N]; `limit` tokens at most, `limit_reason` says what set it."""

    index: int
    prompt: list[int]
    coefficients: Tensor
    stream: TextStream
    random: torch.Generator
    limit: int
    limit_reason: str
    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    run_tokens: int = 0  # of the prompt, by the prefill
    # where the row, and its twin with the adapters off, stand in the running batch
    slot: int = 0
    twin: int | None = None


def generate(
    model: MixedModel,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    rows: Sequence[Mapping[str, float] | Tensor],
    sampling: Sampling,
    *,
    stop_ids: Collection[int] | None = None,
    heat: bool = False,
    seeds: Sequence[int] | None = None,
    backbone: Backbone | None = None,
    known: Callable[[], CachedPrefix | None] | None = None,
) -> Generator[Progress | GenerationEvent, None, list[Generated]]:
    """Answer under several mixes in one batch.

    `prompt_ids` is one prompt for all rows, or one per row. A row is a mix (adapter → coefficient) or a coefficient
    vector [N] for `backbone` (default: the model's `generation`). Rows with the same prompt and mix share one
    prefill; it begins behind the tokens that the last answer ran under the very same mix, or, for rows of the base
    alone, those that are `known`. All rows draw from a stream of their own started with `seeds[row]` (default
    `sampling.seed`), so a row's text does not depend on its neighbours, and views that agree stay together. With
    `heat` every row is followed by a twin with the adapters off, which gives `base_logprob`. What a single row has run
    of its answer is remembered too, so that a conversation goes on behind it.

    Yields Progress("prefill", tokens, total) around each piece of 128 tokens, then a GenerationEvent per token and
    row. Closing the generator stops it. Raises UsageError for an empty prompt or one that leaves no room to answer.
    """
    engine = backbone or model.generation
    work = _rows(model, engine, prompt_ids, rows, sampling, seeds)
    stops = frozenset(model.base.stop_ids if stop_ids is None else stop_ids)
    began = time.monotonic()
    batch, cache, hidden = yield from _prefill(model, engine, work, heat, known() if known is not None else None)
    prefill_seconds = time.monotonic() - began
    alive = list(work)
    while True:
        logits = engine.logits(hidden)
        logprobs = torch.log_softmax(logits, dim=-1)
        feed = [0] * cache.batch
        for row in alive:
            token = choose_token(logits[row.slot], sampling, row.random)
            logprob = float(logprobs[row.slot, token])
            base = float(logprobs[row.twin, token]) if row.twin is not None else None
            feed[row.slot] = token
            if row.twin is not None:
                feed[row.twin] = token
            yield accept_token(row, token, logprob, base, stops)
        alive = [row for row in alive if not row.reason]
        if not alive:
            break
        if 2 * len(alive) <= len({row.index for row in work if row.slot >= 0}):
            batch, cache, feed = _compact(work, alive, batch, cache, feed)
        ids = torch.tensor(feed, dtype=torch.long)[:, None]
        hidden = engine.forward(ids, cache, batch)[:, -1]
    if len(work) == 1:
        model.prefilled = _answered(engine, work[0], cache, hidden)
    return [
        Generated(row.index, row.stream.text, row.tokens, row.reason, len(row.prompt), row.run_tokens, prefill_seconds)
        for row in work
    ]


def _rows(
    model: MixedModel,
    engine: Backbone,
    prompt_ids: Sequence[int] | Sequence[Sequence[int]],
    rows: Sequence[Mapping[str, float] | Tensor],
    sampling: Sampling,
    seeds: Sequence[int] | None,
) -> list[DecodingRow]:
    if not rows:
        raise UsageError("no view to answer under was given")
    prompts = _prompts(prompt_ids, len(rows))
    context = model.base.context_length
    work: list[DecodingRow] = []
    for index, (prompt, mix) in enumerate(zip(prompts, rows, strict=True)):
        room = context - len(prompt)
        if not prompt:
            raise UsageError("the prompt is empty")
        if room < 1:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens but {model.base.source.title} reads at most {context}"
            )
        random = torch.Generator().manual_seed(seeds[index] if seeds is not None else sampling.seed)
        work.append(
            DecodingRow(
                index,
                prompt,
                _coefficients(model, engine, mix),
                TextStream(model.base.tokenizer),
                random,
                min(sampling.max_tokens, room),
                "length" if sampling.max_tokens <= room else "context",
            )
        )
    return work


def _prompts(prompt_ids: Sequence[int] | Sequence[Sequence[int]], count: int) -> list[list[int]]:
    several = [list(item) for item in prompt_ids if not isinstance(item, int)]
    if several and len(several) != count:
        raise UsageError(f"{len(several)} prompts for {count} rows")
    return several or [[int(item) for item in prompt_ids if isinstance(item, int)]] * count


def _coefficients(model: MixedModel, engine: Backbone, mix: Mapping[str, float] | Tensor) -> Tensor:
    if isinstance(mix, Tensor):
        return mix.detach().float()
    known = model.coefficients(mix)
    return torch.cat([known, known.new_zeros(engine.columns - len(known))])


def _prefill(
    model: MixedModel, engine: Backbone, work: Sequence[DecodingRow], heat: bool, known: CachedPrefix | None
) -> Generator[Progress, None, tuple[Tensor, KVCache, Tensor]]:
    """Run every distinct (prompt, mix) once and spread the result over the rows (and their twins).

    Returns coefficients [B, N], the cache of B rows, and the hidden state [B, H] of every row's last token.
    """
    keys: dict[Key, Tensor] = {}
    placed: list[Key] = []
    batch: list[Tensor] = []

    def place(row: DecodingRow, coefficients: Tensor) -> int:
        key = _key(engine, row.prompt, coefficients)
        keys.setdefault(key, coefficients)
        placed.append(key)
        batch.append(coefficients)
        return len(batch) - 1

    for row in work:
        row.slot = place(row, row.coefficients)
    if heat:
        for row in work:
            off = torch.zeros_like(row.coefficients)
            row.twin = place(row, off) if bool(row.coefficients.any()) else row.slot
    capacity = max(len(row.prompt) + row.limit for row in work)
    done = model.prefilled = yield from prefilled(engine, keys, capacity, model.prefilled, known)
    sources = [done.keys.index(key) for key in placed]
    for row in work:
        row.run_tokens = done.run[sources[row.slot]]
    return torch.stack(batch), done.cache.select(sources), done.hidden[sources]


def _key(engine: Backbone, ids: Sequence[int], coefficients: Tensor) -> Key:
    mix = zip(map(id, engine.mixer.adapters), coefficients.tolist(), strict=True)
    return tuple(ids), tuple((adapter, value) for adapter, value in mix if value)


def _answered(engine: Backbone, row: DecodingRow, cache: KVCache, hidden: Tensor) -> PrefilledBatch:
    """The only row of a batch that has ended, and its twin, with what was run of the answer: all but a last token
    that nothing follows. Takes the cache over."""
    said = row.tokens if row.reason == "stop" else row.tokens[:-1]
    ids = [*row.prompt, *said]
    keys = [_key(engine, ids, row.coefficients)]
    if row.twin not in (None, row.slot):
        keys.append(_key(engine, ids, torch.zeros_like(row.coefficients)))
    return PrefilledBatch(family(engine), engine.mixer.adapters, tuple(keys), cache, hidden.clone())


def choose_token(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """The next token of one row from logits [V].

    The draw inverts the cumulative distribution in the order of the vocabulary: in the order of probability, two tokens
    that are nearly as likely would change places with the lowest bits, which depend on how many rows run together.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double().cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        tokens = _nucleus(probabilities, sampling.top_p)
        probabilities = torch.zeros_like(probabilities).index_copy_(0, tokens, probabilities[tokens])
    cumulative = probabilities.cumsum(0)
    draw = torch.rand((), generator=random, dtype=torch.float64) * cumulative[-1]
    place = int(torch.searchsorted(cumulative, draw, right=True))
    return place if place < len(cumulative) else int(probabilities.argmax())


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens [k] up to the one with which they reach `top_p` together."""
    for size in (min(_LIKELY, len(probabilities)), len(probabilities)):
        # sorting all of a large vocabulary takes as long as a decode step; the nucleus is nearly always among a few
        values, tokens = probabilities.topk(size)
        cumulative = values.cumsum(0)
        if cumulative[-1] >= top_p:
            break
    return tokens[: min(int((cumulative < top_p).sum()) + 1, len(tokens))]


def accept_token(
    row: DecodingRow, token: int, logprob: float, base: float | None, stops: Collection[int]
) -> GenerationEvent:
    """Append the token to its row, or end the row with it; `logprob` and `base` in nats."""
    if token in stops:
        row.reason = "stop"
        return GenerationEvent(row.index, token, row.stream.finish(), logprob, base, True, "stop")
    row.tokens.append(token)
    delta = row.stream.push(token)
    if len(row.tokens) >= row.limit:
        row.reason = row.limit_reason
        delta += row.stream.finish()
    return GenerationEvent(row.index, token, delta, logprob, base, bool(row.reason), row.reason)


def _compact(
    work: Sequence[DecodingRow], alive: Sequence[DecodingRow], batch: Tensor, cache: KVCache, feed: list[int]
) -> tuple[Tensor, KVCache, list[int]]:
    """Drop the finished rows from the batch; they have slot -1 from then on."""
    slots = [row.slot for row in alive]
    slots += [row.twin for row in alive if row.twin is not None and row.twin != row.slot]
    place = {slot: number for number, slot in enumerate(slots)}
    for row in work:
        row.slot = place.get(row.slot, -1) if not row.reason else -1
        row.twin = place.get(row.twin, -1) if row.twin is not None and not row.reason else None
    return batch[slots], cache.select(slots), [feed[slot] for slot in slots]
