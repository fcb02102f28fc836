"""What one adapter does to its own sections: cheap enough to be measured after every training.

The effect is KL(adapter ‖ base) of the next token at each token of an answer that the adapter learned from, in nats,
averaged over the tokens and then over the sections. Noise is what null adapters of its own size (see `nulls`) do at the
same places; z is `zscore`'s, of the mean over the sections of ln effect.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.model import Adapter, Backbone, Base, MixedModel
from dlm_tui.model.information import kl_divergence
from dlm_tui.progress import Progress
from dlm_tui.scoring.nulls import matched_nulls, null_seeds
from dlm_tui.scoring.rows import last_hidden, log_probabilities
from dlm_tui.scoring.zscore import log_effect, z_of_effects
from dlm_tui.store import OwnEffect

SECTIONS, PROMPT_TOKENS, ANSWER_TOKENS, NULLS = 4, 32, 16, 8
"""At most 4 sections of 48 tokens under 10 rows: 1,920 tokens without gradients, as many as some steps of training."""


@dataclass(frozen=True)
class Passage:
    """Token ids of a question (or the beginning of a text) and of what the adapter learned to say behind it."""

    prompt: list[int]
    answer: list[int]

    @classmethod
    def cut(cls, ids: Sequence[int], question: int) -> Passage | None:
        """The end of the first `question` ids and the beginning of the others; None where there is nothing to say."""
        prompt, answer = list(ids[:question])[-PROMPT_TOKENS:], list(ids[question:])[:ANSWER_TOKENS]
        return cls(prompt, answer) if prompt and answer else None


def spread(items: Sequence[Passage], most: int = SECTIONS) -> list[Passage]:
    """At most `most` of them, evenly over the whole."""
    return [items[number * len(items) // most] for number in range(most)] if len(items) > most else list(items)


def own_effect(
    base: Base, adapter: Adapter, passages: Sequence[Passage], seed: int
) -> Generator[Progress, None, OwnEffect]:
    """The effect of `adapter` alone on `passages`, at least one; the nulls grow from `seed`.

    Raises NonFiniteScores.
    """
    model = MixedModel(base, {adapter.name: adapter})
    nulls = matched_nulls(model, null_seeds(seed, NULLS))
    kls, gains, changed = list[list[float]](), list[float](), list[float]()
    with model.with_extra(nulls) as backbone:
        rows = torch.cat([torch.zeros(1, backbone.columns), torch.eye(backbone.columns)])
        for number, passage in enumerate(passages):
            yield Progress("effect", number, len(passages), scope=adapter.name)
            logprobs = yield from _answers(backbone, passage, rows)
            kls.append([float(kl_divergence(row, logprobs[0]).mean()) for row in logprobs[1:]])
            answer = torch.tensor(passage.answer)[:, None]
            gains.append(float((logprobs[1] - logprobs[0]).gather(1, answer).mean()))
            changed.append(float((logprobs[1].argmax(-1) != logprobs[0].argmax(-1)).double().mean()))
    yield Progress("effect", len(passages), len(passages), scope=adapter.name)
    effects = [statistics.fmean(map(log_effect, column)) for column in zip(*kls, strict=True)]
    return OwnEffect(
        kl=statistics.fmean(row[0] for row in kls),
        gain=statistics.fmean(gains),
        changed=statistics.fmean(changed),
        z=z_of_effects(effects[0], effects[1:]),
        sections=len(passages),
    )


def _answers(backbone: Backbone, passage: Passage, rows: Tensor) -> Generator[Progress, None, list[Tensor]]:
    """Per row: log-probabilities [A, V] at the places of the answer's tokens. The steps are not passed on."""
    ids = [*passage.prompt, *passage.answer[:-1]]
    hidden = yield from _quietly(last_hidden(backbone, ids, rows, len(passage.answer)))
    return [log_probabilities(backbone, row, "null" if number > 1 else "solo") for number, row in enumerate(hidden)]


def _quietly(work: Generator[Progress, None, Tensor]) -> Generator[Progress, None, Tensor]:
    yield from ()
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: Tensor = stop.value
            return result
