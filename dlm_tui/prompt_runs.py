"""A whole set of prompts under several views: routed, answered in batches of rows, and scored."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dlm_tui.errors import UsageError
from dlm_tui.model import MixedModel, Sampling, View
from dlm_tui.model.generation import Generated, generate
from dlm_tui.progress import Progress, map_steps
from dlm_tui.session import Session

ROWS = 16
"""Prompts times views that decode together: enough to read the weights seldom, few enough to be stopped soon."""
Former = Mapping[tuple[int, str], Sequence[int]]
"""(index of the prompt, name of the view) → token ids of the answer before."""


@dataclass(frozen=True, kw_only=True)
class PromptAnswer:
    """One prompt (its index) under one view, as `store.SetAnswer` describes the fields."""

    prompt: int
    view: str
    seed: int
    text: str
    token_ids: list[int]
    reason: str
    weights: dict[str, float]
    mix: dict[str, float]
    logprob: float | None
    former_logprob: float | None


@dataclass(frozen=True, kw_only=True)
class _Row:
    prompt: int
    view: View
    seed: int
    ids: list[int]
    weights: dict[str, float]
    mix: dict[str, float]


def run_prompts(
    session: Session,
    prompts: Sequence[str],
    views: Sequence[View],
    sampling: Sampling,
    former: Former,
    seeds: Sequence[int] | None = None,
) -> Generator[Progress | PromptAnswer, None, None]:
    """Answer every prompt under every view, prompt after prompt, up to 16 rows at a time.

    Each row draws from a stream started with its view's seed in `seeds`, else with the sampling's, so it does not
    depend on its neighbours. Yields
    Progress("prompts", rows, all rows) and a PromptAnswer per row in order. Raises UsageError for a null view and what
    routing and generating raise.
    """
    if any(view.kind == "null" for view in views):
        raise UsageError("a set is not run under random adapters")
    if seeds is not None and len(seeds) != len(views):
        raise UsageError(f"{len(seeds)} seeds for {len(views)} views")
    asked = list(zip(views, seeds or [sampling.seed] * len(views), strict=True))
    total = len(prompts) * len(views)
    rows: list[_Row] = []
    done = 0
    yield Progress("prompts", 0, total)
    for index, prompt in enumerate(prompts):
        rows += yield from map_steps(_routed(session, index, prompt, asked), partial(_at, done, total))
        while len(rows) >= ROWS or (rows and index == len(prompts) - 1):
            batch, rows = rows[:ROWS], rows[ROWS:]
            yield from (yield from _answered(session, batch, sampling, former, done, total))
            done += len(batch)
            yield Progress("prompts", done, total)


def _at(done: int, total: int, _: object) -> Progress:
    return Progress("prompts", done, total)


def _routed(
    session: Session, index: int, prompt: str, asked: Sequence[tuple[View, int]]
) -> Generator[Progress, None, list[_Row]]:
    weights: dict[str, float] = {}
    if session.model.names and session.document.adapter_names:
        weights = dict((yield from session.router.route(prompt)).weights)
    ids = list(session.base.chat(prompt, session.document.system_prompt))
    return [
        _Row(prompt=index, view=view, seed=seed, ids=ids, weights=weights, mix=session.mix_of(view, weights or None))
        for view, seed in asked
    ]


def _answered(
    session: Session, rows: Sequence[_Row], sampling: Sampling, former: Former, done: int, total: int
) -> Generator[Progress, None, list[PromptAnswer]]:
    model = session.model_for([row.mix for row in rows])
    at = partial(_at, done, total)

    def scored(row: _Row, token_ids: Sequence[int]) -> Generator[Progress, None, float | None]:
        return map_steps(answer_logprob(model, row.ids, token_ids, row.mix), at)

    work = generate(
        model, [row.ids for row in rows], [row.mix for row in rows], sampling, seeds=[row.seed for row in rows]
    )
    answers: list[Generated] = yield from map_steps(work, at)
    found = []
    for row, answer in zip(rows, answers, strict=True):
        before = former.get((row.prompt, row.view.name))
        logprob = yield from scored(row, answer.token_ids)
        found.append(
            PromptAnswer(
                prompt=row.prompt,
                view=row.view.name,
                seed=row.seed,
                text=answer.text,
                token_ids=answer.token_ids,
                reason=answer.reason,
                weights=row.weights,
                mix=row.mix,
                logprob=logprob,
                former_logprob=(yield from scored(row, before)) if before else None,
            )
        )
    return found


def answer_logprob(
    model: MixedModel, prompt_ids: Sequence[int], answer_ids: Sequence[int], mix: Mapping[str, float]
) -> Generator[Progress, None, float | None]:
    """Log-probability of the answer's tokens after the prompt under a mix, nats; the end token does not count.

    None for no tokens, for more than the base reads, and for ids that it does not have.
    """
    from dlm_tui.scoring.rows import last_hidden, log_probabilities

    ids = [*prompt_ids, *answer_ids[:-1]]
    fits = bool(answer_ids) and len(ids) < model.base.context_length
    if not fits or not all(0 <= token < len(model.base.tokenizer) for token in answer_ids):
        return None
    coefficients = model.coefficients(mix)[None]
    hidden = yield from last_hidden(model.backbone, ids, coefficients, len(answer_ids))
    logprobs = log_probabilities(model.backbone, hidden[0], "answer")
    return float(logprobs[torch.arange(len(answer_ids)), torch.tensor(answer_ids, dtype=torch.long)].sum())
