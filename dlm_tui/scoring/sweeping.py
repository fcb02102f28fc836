"""One adapter turned through a grid of coefficients: the answer and the effect at each."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from dlm_tui.errors import UsageError
from dlm_tui.model import GenerationEvent, MixedModel, Sampling
from dlm_tui.model.generation import generate
from dlm_tui.progress import Progress
from dlm_tui.scoring.effect import score_views

DEFAULT_GRID = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class SweepPoint:
    """At coefficient `c`: the answer, why it ended, and KL and JS of the next token to the base in nats.

    `chosen` and `rejected` are the log-probabilities (nats) of two given answers, where they were given.
    """

    c: float
    text: str
    tokens: int
    reason: str
    kl: float
    js: float
    chosen: float | None = None
    rejected: float | None = None


def sweep(
    model: MixedModel,
    prompt_ids: Sequence[int],
    adapter: str,
    grid: Sequence[float] = DEFAULT_GRID,
    sampling: Sampling | None = None,
    others: Mapping[str, float] | None = None,
    sides: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Generator[Progress | GenerationEvent, None, list[SweepPoint]]:
    """Answers at every c of `grid`, decoded as rows of one batch; `others` are the other faders, off by default.

    `sides` are the token ids of two answers, chosen and rejected, whose log-probability is followed over the grid.
    KL and JS are to the base with all adapters off. Sampling is greedy unless given. A GenerationEvent's row is the
    place in the grid. Raises UsageError for an unknown adapter or an empty grid, EmptyText for an empty prompt.
    """
    if not grid:
        raise UsageError("a sweep needs at least one coefficient")
    mixes = [{**(others or {}), adapter: float(c)} for c in grid]
    named = {str(place): mix for place, mix in enumerate(mixes)}
    chosen, rejected = sides or (None, None)
    scores = yield from score_views(model, prompt_ids, named, chosen, nulls=0)
    against = (yield from score_views(model, prompt_ids, named, rejected, nulls=0)) if rejected else scores
    answers = yield from generate(model, list(prompt_ids), mixes, sampling or Sampling(max_tokens=64))
    return [
        SweepPoint(
            float(c),
            answer.text,
            len(answer.token_ids),
            answer.reason,
            score.kl,
            score.js,
            score.logprob,
            other.logprob if rejected else None,
        )
        for c, answer, score, other in zip(grid, answers, scores.views.values(), against.views.values(), strict=True)
    ]
