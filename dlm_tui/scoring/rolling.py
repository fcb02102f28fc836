"""A held-out text, token by token, under many views at once: log-probability and perplexity."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from dlm_tui.model import MixedModel
from dlm_tui.progress import Progress
from dlm_tui.scoring.errors import EmptyText
from dlm_tui.scoring.nulls import matched_nulls
from dlm_tui.scoring.rows import last_hidden, log_probabilities


@dataclass(frozen=True)
class TextScore:
    """One view of a text: summed log-probability (nats) of its `tokens` predicted tokens."""

    view: str
    logprob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(−mean log-probability)."""
        return math.exp(-self.logprob / self.tokens)


def windows(count: int, longest: int) -> list[tuple[int, int, int]]:
    """(start, end, first predicted token) of windows of at most `longest` tokens over a text of `count`.

    Every token but the first is predicted once; in a text that is longer than a window each has at least half a window
    before it.
    """
    found, predicted = [], 1
    while predicted < count:
        start = 0 if predicted == 1 else predicted - longest // 2
        end = min(count, start + longest)
        found.append((start, end, predicted))
        predicted = end
    return found


def score_text(
    model: MixedModel,
    ids: Sequence[int],
    views_mixes: Mapping[str, Mapping[str, float]],
    null_views: Mapping[str, int] | None = None,
    rank_scale: float = 1.0,
) -> Generator[Progress, None, dict[str, TextScore]]:
    """The text under the base and every view, as rows of one batch.

    `views_mixes` gives each view's mix; a view of `null_views` (name → seed) is a random adapter as large as the
    trained ones, its standard deviation multiplied by √`rank_scale`. Raises EmptyText for fewer than two
    tokens, UsageError for unknown adapters, NonFiniteScores, NullScaleError.
    """
    if len(ids) < 2:
        raise EmptyText("a text needs at least two tokens: the first only begins it")
    own = dict(null_views or {}) if model.names else {}
    mixes = {"base": {}, **{name: mix for name, mix in views_mixes.items() if name not in own}}
    nulls = matched_nulls(model, list(own.values()), rank_scale)
    with model.with_extra(nulls) as backbone:
        rows = torch.zeros(len(mixes) + len(nulls), backbone.columns)
        for row, mix in enumerate(mixes.values()):
            rows[row, : len(model.names)] = model.coefficients(mix).cpu()
        for number in range(len(nulls)):
            rows[len(mixes) + number, len(model.names) + number] = 1.0
        names = [*mixes, *own]
        totals = dict.fromkeys(names, 0.0)
        for start, end, first in windows(len(ids), model.base.context_length):
            hidden = yield from last_hidden(backbone, ids[start : end - 1], rows, end - first, "text")
            wanted = torch.tensor(ids[first:end], dtype=torch.long)
            for row, name in enumerate(names):
                # a piece at a time: full distributions over a long window would not fit
                for low in range(0, len(wanted), _PIECE):
                    part = wanted[low : low + _PIECE]
                    logprobs = log_probabilities(backbone, hidden[row, low : low + _PIECE], name)
                    totals[name] += float(logprobs[torch.arange(len(part)), part].sum())
    return {name: TextScore(name, total, len(ids) - 1) for name, total in totals.items()}


_PIECE = 64
