"""Looks at an adapter while it trains: its loss on held-out rows and a few greedy answers, before and now.

A look changes nothing of the training: it draws no random number, keeps no gradient and puts every module back into
the mode in which it was. It is taken behind fixed steps, so that it can be repeated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch

from dlm_tui.progress import EarlyAnswer, EarlyLook
from dlm_tui.training.plan import AdapterPlan, PlannedRows, TrainingPlan
from dlm_tui.training.rows import AdapterRows, collate_sequences, filler_id

if TYPE_CHECKING:
    from dlm_tui.document import Row
    from dlm_tui.model import Base

ANSWER_TOKENS = 24
_FEWEST_TOKENS = 8
_PROMPTS = 3
_BEGINNING = 12
"""Tokens of a text that has no question: it is to be continued."""
_SHARE, _SHORT_SHARE = 0.05, 0.1
"""The part of a training's time that looks may take, and the two that the shortest one has all the same: one before it
and one behind it."""
_MOST = 20
_BACKWARD = 3
"""A trained token costs about three forward passes of one (Kaplan et al. 2020, section 2.1)."""
_DECODED = 10
"""A token decoded for every prompt reads all weights: about as long as a forward pass over so many tokens."""


@dataclass(frozen=True)
class EarlyPrompt:
    """A prompt as a person knows it, and its token ids as the adapter is trained to continue them."""

    text: str
    ids: list[int]


def early_prompts(planned: PlannedRows, rows: AdapterRows, base: Base) -> list[EarlyPrompt]:
    """At most three different prompts of an adapter's rows that leave room for an answer.

    One that is held out, where there is one, then the first ones it trains on; questions before texts to continue.
    """
    given = [*planned.validation[:1], *planned.train, *planned.preference, *planned.validation[1:]]
    given.sort(key=lambda row: row.kind == "text")
    room = min(rows.limit, base.context_length - ANSWER_TOKENS)
    found: dict[str, EarlyPrompt] = {}
    for row in given:
        prompt = _prompt(row, base)
        if prompt.text and 0 < len(prompt.ids) <= room:
            found.setdefault(prompt.text, prompt)
        if len(found) == _PROMPTS:
            break
    return list(found.values())


def _prompt(row: Row, base: Base) -> EarlyPrompt:
    if row.kind == "text":
        ids = base.passage(row.text)
        ids = ids[: min(_BEGINNING, len(ids) // 2)]
        return EarlyPrompt(base.tokenizer.decode(ids, skip_special_tokens=True), ids)
    turns = row.messages or (("user", row.prompt), ("assistant", row.chosen))
    ids, asked = base.conversation([{"role": role, "content": content} for role, content in turns])
    question = next((content for role, content in reversed(turns) if role == "user"), "")
    return EarlyPrompt(question, ids[:asked])


@dataclass(frozen=True)
class LookPlan:
    """The optimiser steps of all phases together behind which to look, and the tokens that an answer may have."""

    steps: frozenset[int]
    tokens: int


def plan_looks(plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows, asked: Sequence[EarlyPrompt]) -> LookPlan:
    """Looks behind equal parts, the last step among them.

    As many as cost a twentieth of the training by an estimate in tokens, the one before it counted, but at least the
    one behind the last step and at most twenty. Where even these two would cost more than a tenth, answers are shorter,
    down to eight tokens.
    """
    trained, total = 0, 0
    for phase in adapter.phases:
        pairs = ([*pair.chosen, *pair.rejected] for pair in rows.preference)
        tokens = sum(map(len, rows.train if phase.name == "sft" else pairs))
        trained += _BACKWARD * phase.epochs * tokens
        total += plan.steps(rows.of(phase), phase)
    read = sum(map(len, chain(rows.validation, (prompt.ids for prompt in asked))))
    tokens = max(_FEWEST_TOKENS, min(ANSWER_TOKENS, int((_SHORT_SHARE * trained / 2 - read) / _DECODED)))
    look = read + (tokens * _DECODED if asked else 0)
    count = max(1, min(_MOST, int(_SHARE * trained / max(1, look)) - 1))
    return LookPlan(frozenset(math.ceil(total * part / count) for part in range(1, count + 1)), tokens)


class Looker:
    """Takes the looks at one adapter. `first` is the one at the untrained adapter, None before it was taken."""

    def __init__(
        self,
        model: Any,
        base: Base,
        plan: TrainingPlan,
        adapter: AdapterPlan,
        rows: AdapterRows,
        asked: Sequence[EarlyPrompt],
        adapter_off: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        """`model` is what is trained, on top of the base's own modules; `adapter_off` makes it the base."""
        self._model, self._base, self._plan, self._rows = model, base, plan, rows
        self._asked, self._adapter_off = asked, adapter_off
        self._total = sum(plan.steps(rows.of(phase), phase) for phase in adapter.phases)
        looks = plan_looks(plan, adapter, rows, asked)
        self.steps, self._tokens = looks.steps, looks.tokens
        self.first: EarlyLook | None = None

    def look_before(self) -> EarlyLook:
        """The untrained adapter, also where its training goes on behind a checkpoint."""
        with _untouched(self._model), self._adapter_off():
            loss, told = self._loss(), self._answers()
        self.first = self._look_of(0, loss, loss, told, told)
        return self.first

    def look(self, step: int) -> EarlyLook:
        """The adapter as it is behind optimiser step `step` of all phases. Needs the look before."""
        first = self.first or self.look_before()
        with _untouched(self._model):
            loss, told = self._loss(), self._answers()
        return self._look_of(step, first.held_out, loss, [answer.before for answer in first.answers], told)

    def _look_of(
        self, step: int, before: float | None, now: float | None, told: Sequence[str], tells: Sequence[str]
    ) -> EarlyLook:
        return EarlyLook(
            step=step,
            total=self._total,
            rows=len(self._rows.validation),
            held_out_before=before,
            held_out=now,
            answers=[
                EarlyAnswer(prompt=prompt.text, before=old, now=new)
                for prompt, old, new in zip(self._asked, told, tells, strict=True)
            ],
        )

    def _loss(self) -> float | None:
        return held_out_loss(self._model, self._base, self._plan, self._rows)

    def _answers(self) -> list[str]:
        prompts = [prompt.ids for prompt in self._asked]
        return greedy_answers(self._base, prompts, self._tokens) if prompts else []


def held_out_loss(model: Any, base: Base, plan: TrainingPlan, rows: AdapterRows) -> float | None:
    """The loss on the validation rows, nats per token, as the Trainer reports it after an epoch: the mean over batches
    in order, weighted by their rows. None without such rows, or where it is not finite."""
    held, size, filler = rows.validation, plan.micro_batch, filler_id(base)
    total = 0.0
    with _untouched(model):
        for start in range(0, len(held), size):
            batch = collate_sequences(held[start : start + size], filler)
            inputs = {name: tensor.to(base.device) for name, tensor in batch.items()}
            total += float(model(**inputs).loss) * len(batch["input_ids"])
    return total / len(held) if held and math.isfinite(total) else None


def greedy_answers(base: Base, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
    """The likeliest continuations of token ids under whatever is attached to the base now, at most `most` tokens each.

    All in one batch, padded at the left, as a decoded token costs about the same for three prompts as for one. Not by
    the library's `generate`, which takes up penalties from the checkpoint's own configuration.
    """
    model, longest, filler = cast("Any", base.model), max(map(len, prompts)), filler_id(base)
    feed = torch.tensor([[filler] * (longest - len(ids)) + list(ids) for ids in prompts], device=base.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=base.device)
    places, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    told: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for _ in range(most):
        step = model(input_ids=feed, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        tokens = step.logits[:, -1].argmax(-1)
        going -= {row for row in going if int(tokens[row]) in base.stop_ids}
        if not going:
            break
        for row in going:
            told[row].append(int(tokens[row]))
        feed, cache, places = tokens[:, None], step.past_key_values, places[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return [str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in told]


@contextlib.contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout and gradients; every module's mode and every parameter's part in the training stay."""
    modes = [(module, module.training) for module in model.modules()]
    learns = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in learns:
            weight.requires_grad_(flag)
