"""Rows that are decoded together: each with its own mix, sampling and limits; they come and go between steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.adapters import Adapter
from dlm_tui.model.backbone import Backbone, KVCache
from dlm_tui.model.generation import DecodingRow, GenerationEvent, accept_token, choose_token
from dlm_tui.model.prefix_reuse import Key, PrefilledBatch, family
from dlm_tui.model.sampling import Sampling
from dlm_tui.serving.backend import NotFinite, Piece, TokenLogprob

_DEAD_SHARE = 4
"""Ended rows are taken out of the batch when they are this part of it: taking out copies the cache, keeping costs time
in every step."""


@dataclass(eq=False)
class ServedRow:
    """One choice of one request. `key` is its prompt and mix; `fed` the tokens run behind the prompt so far."""

    decoding: DecodingRow
    sampling: Sampling
    key: Key
    deliver: Callable[[Piece], None]
    fail: Callable[[DlmTuiError], None]
    wanted: Callable[[], bool]
    logprobs: bool = False
    top_logprobs: int = 0
    gone: bool = False

    @property
    def fed(self) -> list[int]:
        """The tokens whose keys and values the cache holds behind the prompt: all but the last one."""
        return self.decoding.tokens[:-1]


class RunningBatch:
    """The rows of one backbone. A row that joins is sampled from in the next step; one that has ended is dropped."""

    def __init__(self, engine: Backbone, tokenizer: Any, stops: Collection[int], context_length: int) -> None:
        self.engine = engine
        self._context_length = context_length
        self._tokenizer = tokenizer
        self._stops = frozenset(stops)
        self._rows: list[ServedRow] = []
        self._coefficients: Tensor | None = None
        self._cache: KVCache | None = None
        self._hidden: Tensor | None = None
        self._feed: list[int] = []

    @property
    def rows(self) -> list[ServedRow]:
        """The rows that still answer."""
        return [row for row in self._rows if not row.gone]

    def join(self, rows: Sequence[ServedRow], filled: PrefilledBatch) -> None:
        """Take in rows whose prompts `filled` holds."""
        self._compact()
        places = [filled.keys.index(row.key) for row in rows]
        cache, hidden = filled.cache.select(places), filled.hidden[places]
        coefficients = torch.stack([row.decoding.coefficients for row in rows])
        if self._cache is None or self._hidden is None or self._coefficients is None:
            self._rows, self._cache, self._hidden, self._coefficients = list(rows), cache, hidden, coefficients
            return
        self._rows = [*self._rows, *rows]
        self._cache = self._cache.joined([cache])
        self._hidden = torch.cat([self._hidden, hidden])
        self._coefficients = torch.cat([self._coefficients, coefficients])

    def step(self) -> list[ServedRow]:
        """One token for every row; returns those that ended with it, still in the cache for `remembered`."""
        if self._hidden is None or self._cache is None or not self.rows:
            return []
        logits = self.engine.logits(self._hidden)
        largest = logits.max(dim=-1).values.tolist()
        ended: list[ServedRow] = []
        feed = [0] * len(self._rows)
        for place, row in enumerate(self._rows):
            if row.gone:
                continue
            if not math.isfinite(largest[place]):  # what is drawn from these is no answer, often an end token
                row.gone = True
                row.fail(NotFinite())
                continue
            feed[place] = self._sample(row, logits[place])
            if row.decoding.reason:
                row.gone = True
                ended.append(row)
        self._feed = feed
        return ended

    def advance(self) -> None:
        """Run the sampled tokens of the rows that go on. Does nothing when there are none."""
        if self._cache is None:
            return
        dead = [place for place, row in enumerate(self._rows) if row.gone]
        full = any(self._cache.lengths[place] >= self._context_length for place in dead)
        if dead and (full or len(dead) * _DEAD_SHARE >= len(self._rows)):
            self._feed = [token for place, token in enumerate(self._feed) if place not in dead]
            self._compact()
        if self._cache is None or not self._rows:
            return
        ids = torch.tensor(self._feed, dtype=torch.long)[:, None]
        self._hidden = self.engine.forward(ids, self._cache, self._coefficients)[:, -1]

    def remembered(self, row: ServedRow) -> PrefilledBatch | None:
        """What the cache holds of a row that has just ended: its prompt and all of its answer that was run."""
        if self._cache is None or self._hidden is None or row not in self._rows:
            return None
        place = self._rows.index(row)
        ids, mix = row.key
        adapters: tuple[Adapter, ...] = self.engine.mixer.adapters
        said = row.decoding.tokens if row.decoding.reason == "stop" else row.fed
        key: Key = ((*ids, *said), mix)
        if self._cache.lengths[place] != len(key[0]):
            return None
        return PrefilledBatch(
            family(self.engine), adapters, (key,), self._cache.select([place]), self._hidden[[place]].clone()
        )

    def _sample(self, row: ServedRow, logits: Tensor) -> int:
        decoding = row.decoding
        token = choose_token(logits, row.sampling, decoding.random)
        logprob = 0.0
        told: tuple[TokenLogprob, ...] = ()
        if row.logprobs:
            distribution = torch.log_softmax(logits, dim=-1)
            logprob = float(distribution[token])
            told = (self._told(token, logprob, distribution, row.top_logprobs),)
        event = accept_token(decoding, token, logprob, None, self._stops)
        row.deliver(_piece(event, told))
        return token

    def _told(self, token: int, logprob: float, distribution: Tensor, count: int) -> TokenLogprob:
        top: tuple[tuple[int, str, float], ...] = ()
        if count:
            values, ids = distribution.topk(min(count, len(distribution)))
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            top = tuple((number, self._text(number), value) for number, value in pairs)
        return TokenLogprob(token, self._text(token), logprob, top)

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def _compact(self) -> None:
        """Take the rows that have ended out of the batch."""
        kept = [place for place, row in enumerate(self._rows) if not row.gone]
        if len(kept) == len(self._rows):
            return
        if not kept or self._cache is None or self._hidden is None or self._coefficients is None:
            self._rows, self._cache, self._hidden, self._coefficients = [], None, None, None
            return
        self._rows = [self._rows[place] for place in kept]
        self._cache = self._cache.select(kept)
        self._hidden = self._hidden[kept]
        self._coefficients = self._coefficients[kept]


def _piece(event: GenerationEvent, told: tuple[TokenLogprob, ...]) -> Piece:
    """The wire's names for why a row ended; an end token is not counted and its probability not told."""
    finish = None if not event.done else ("stop" if event.reason == "stop" else "length")
    ends = event.reason == "stop"
    return Piece(event.row, event.text_delta, 0 if ends else 1, () if ends else told, finish)
