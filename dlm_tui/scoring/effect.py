"""What views do to a prompt: KL and JS of the next token to the base, against null adapters, and the log-probability
of an answer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.model import Backbone, MixedModel
from dlm_tui.model.information import js_divergence, kl_divergence
from dlm_tui.progress import Progress, map_steps
from dlm_tui.scoring.errors import EmptyText
from dlm_tui.scoring.nulls import matched_nulls, null_seeds
from dlm_tui.scoring.rows import check_length, last_hidden, log_probabilities
from dlm_tui.scoring.zscore import summarise_nulls, z_score

DEFAULT_NULLS = 32
"""Enough for a real effect to reach five sigmas on one prompt; see `zscore`."""


NULLS_AT_ONCE = 8


@dataclass(frozen=True)
class Score:
    """One view of a prompt, everything in nats: KL(view ‖ base) and JS of the next token; `z` as `z_score` defines
    it; the log-probability of the completion under the view and under the base; `heat` their difference per
    completion token."""

    view: str
    kl: float
    js: float
    z: float | None = None
    logprob: float | None = None
    base_logprob: float | None = None
    heat: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """Scores by view, in the order asked for, and the null adapters' KL to the base (nats): each, mean, deviation (n
    − 1).
    """

    views: dict[str, Score]
    null_kls: tuple[float, ...] = ()
    null_mean: float | None = None
    null_std: float | None = None


class _Meter:
    """Counts tokens and distributions over all batches of one scoring."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0.0, total

    def add(self, count: float) -> Progress:
        self._done += count
        return Progress("score", self._done, self._total)

    def of(self, work: Generator[Progress, None, Tensor]) -> Generator[Progress, None, Tensor]:
        """Count what `work` counts from 0."""
        before = self._done

        def counted(step: Progress) -> Progress:
            return self.add(before + step.done - self._done)

        return map_steps(work, counted)


def score_views(
    model: MixedModel,
    prompt_ids: Sequence[int],
    views_mixes: Mapping[str, Mapping[str, float]],
    completion_ids: Sequence[int] | None = None,
    nulls: int = DEFAULT_NULLS,
    seed: int = 0,
    null_views: Mapping[str, int] | None = None,
    rank_scale: float = 1.0,
) -> Generator[Progress, None, Scores]:
    """Score views of one prompt; the base and all views are rows of one batch, the nulls of others.

    `views_mixes` gives each view's mix (adapter → coefficient, {} is the base); a view in `null_views` (name → seed)
    is a null adapter instead, of the family that the `nulls` reference nulls grown from `seed` belong to. Nulls are
    as large as the trained adapters (see `nulls`), without trained adapters there are none and z is None; so is the
    z of a view that is the base. `rank_scale` makes the null views larger, not the reference nulls. Raises
    EmptyText for a prompt or completion of zero tokens, UsageError for unknown adapters and texts that are too
    long, NonFiniteScores.
    """
    if completion_ids is not None and not len(completion_ids):
        raise EmptyText("a completion of zero tokens has no log-probability")
    check_length(model, len(prompt_ids))
    answer = list(completion_ids or ())
    check_length(model, len(prompt_ids) + len(answer))
    own = dict(null_views or {}) if model.names else {}
    mixes = {name: mix for name, mix in views_mixes.items() if name not in own}
    names = ["base", *mixes]
    rows = torch.stack([model.coefficients(mix) for mix in ({}, *mixes.values())])
    length = len(prompt_ids) + max(0, len(answer) - 1)
    randoms = nulls if model.names else 0
    meter = _Meter((len(names) + len(own)) * (length + 1) + randoms * (len(prompt_ids) + 1))
    next_token, tokens = yield from _read(model.backbone, prompt_ids, answer, rows, names, meter)
    if own:
        seeds = list(own.values())
        read = yield from _read_nulls(model, prompt_ids, answer, seeds, list(own), meter, rank_scale)
        next_token, tokens, names = torch.cat([next_token, read[0]]), torch.cat([tokens, read[1]]), [*names, *own]
    reference = null_seeds(seed, nulls)
    labels = [f"null {number}" for number in range(nulls)]
    null_next, _ = yield from _read_nulls(model, prompt_ids, [], reference, labels, meter)
    base = next_token[0]
    null_kls = tuple(kl_divergence(null_next, base).tolist()) if len(null_next) else ()
    kls, jss = kl_divergence(next_token, base).tolist(), js_divergence(next_token, base).tolist()
    scores = {}
    for row, name in enumerate(names[1:], start=1):
        changed = name in own or bool(rows[row].any())
        scores[name] = Score(
            view=name,
            kl=kls[row],
            js=jss[row],
            z=z_score(kls[row], null_kls) if changed else None,
            logprob=float(tokens[row].sum()) if answer else None,
            base_logprob=float(tokens[0].sum()) if answer else None,
            heat=tuple((tokens[row] - tokens[0]).tolist()) if answer else None,
        )
    order = [name for name in {**views_mixes, **own} if name in scores]
    summary = summarise_nulls(null_kls)
    return Scores(
        {name: scores[name] for name in order},
        null_kls,
        summary.mean if summary else None,
        summary.std if summary else None,
    )


def token_heat(
    model: MixedModel, prompt_ids: Sequence[int], answer_ids: Sequence[int], mix: Mapping[str, float]
) -> Generator[Progress, None, list[float]]:
    """log p(view) − log p(base) of each token of an answer, nats, [len(answer_ids)]. Raises as `score_views`."""
    scores = yield from score_views(model, prompt_ids, {"view": mix}, answer_ids, nulls=0)
    return list(scores.views["view"].heat or ())


def _read_nulls(
    model: MixedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    seeds: Sequence[int],
    names: Sequence[str],
    meter: _Meter,
    rank_scale: float = 1.0,
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """`_read` of null adapters, each alone. Few at a time: every row pays for the ranks of all adapters in the
    mixer.
    """
    found = []
    for first in range(0, len(seeds), NULLS_AT_ONCE):
        group = matched_nulls(model, seeds[first : first + NULLS_AT_ONCE], rank_scale)
        if not group:
            break
        with model.with_extra(group) as backbone:
            rows = torch.zeros(len(group), backbone.columns)
            rows[torch.arange(len(group)), len(model.names) + torch.arange(len(group))] = 1.0
            labels = names[first : first + NULLS_AT_ONCE]
            found.append((yield from _read(backbone, prompt, answer, rows, labels, meter)))
    if not found:
        return torch.empty(0), torch.empty(0)
    return torch.cat([next_token for next_token, _ in found]), torch.cat([tokens for _, tokens in found])


def _read(
    backbone: Backbone,
    prompt: Sequence[int],
    answer: Sequence[int],
    rows: Tensor,
    names: Sequence[str],
    meter: _Meter,
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """Per row: log-probabilities [B, V] of the token after the prompt, and those [B, A] of the answer's tokens."""
    ids = [*prompt, *answer[:-1]]
    hidden = yield from meter.of(last_hidden(backbone, ids, rows, max(1, len(answer))))
    next_token, tokens = [], []
    # row by row: a whole batch of full distributions over a long answer would not fit
    for row, name in enumerate(names):
        logprobs = log_probabilities(backbone, hidden[row], name)
        next_token.append(logprobs[0])
        tokens.append(logprobs[torch.arange(len(answer)), torch.tensor(answer, dtype=torch.long)])
        yield meter.add(1)
    return torch.stack(next_token), torch.stack(tokens)
