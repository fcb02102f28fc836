"""An adapter trained without some of its sections and judged on them: the unit of work of a sweep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from safetensors.torch import save_file

from dlm_tui.document import Document, route_sections, sources
from dlm_tui.files import json_bytes, temporary_folder
from dlm_tui.progress import run_to_end
from dlm_tui.store.adapter_kind import AdapterKind
from dlm_tui.system_errors import naming
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.checkpoints import fingerprint
from dlm_tui.training.commit import pinned_versions
from dlm_tui.training.memory import fitting_rows
from dlm_tui.training.phases import Finetuned, Step
from dlm_tui.training.plan import PlannedRows, plan_training, planned_rows
from dlm_tui.training.rows import tokenised

if TYPE_CHECKING:
    from dlm_tui.model import Adapter, Base

_MEASURE = 2  # goes into the key: figures of another way of measuring are not these


@dataclass(frozen=True)
class JudgedRow:
    """A held-out row: token ids, and how many of them are the prompt whose next token is compared with the base's."""

    ids: list[int]
    asked: int


@dataclass(frozen=True, kw_only=True)
class FoldWork:
    """One adapter of one trial in one fold. `key` is of all that decides the result, so that it is done once."""

    key: str
    fold: int
    work: AdapterWork
    judged: list[JudgedRow]

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.work.adapter.name


class FoldResult(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the held-out rows: −log p of adapter and base over `tokens` tokens, KL(adapter ‖ base) over `prompts`
    next tokens, all in nats; `steps` optimiser steps were trained."""

    nll: float
    base_nll: float
    tokens: int
    kl: float
    prompts: int
    steps: int


def fold_works(
    document: Document,
    base: Base,
    folds: int,
    weights: sources.Weights | None = None,
    before: Mapping[str, AdapterKind] | None = None,
) -> list[FoldWork]:
    """Every adapter of the document in every fold; an adapter with fewer sections than `folds` has fewer folds.

    `before` is how the versions in force were trained, which a training would take up. An adapter with a single
    section, or without rows that have a loss, has none: nothing of it can be held out.
    """
    plan = plan_training(document, base_modules=base.source.target_modules, before=before, weights=weights)
    routed = route_sections(document)
    found = []
    for adapter in plan.adapters:
        fold_of = _folds(document, routed[adapter.name], folds)
        for fold in range(max(fold_of.values(), default=-1) + 1):
            inside = [index for index in fold_of if fold_of[index] != fold]
            outside = [index for index in fold_of if fold_of[index] == fold]
            given = planned_rows(document, inside, weights)
            own = replace(adapter, rows=replace(given, train=[*given.train, *given.validation], validation=[]))
            rows = tokenised(own.rows, plan.sequence_len, base)
            judged = _judged(planned_rows(document, outside), rows.limit, base)
            if not judged or not any(rows.of(phase) for phase in own.phases):
                continue
            alone = replace(plan, adapters=())
            checkpointing = plan.trainer.activation_checkpointing
            alone = alone.within(
                fitting_rows(base.model, base.config, rows.longest, plan.micro_batch, checkpointing=checkpointing)
            )
            settings = {key: value for key, value in vars(own).items() if key != "rows"}
            key = fingerprint(
                _MEASURE,
                alone.deciding(),
                settings,
                vars(rows),
                [(row.ids, row.asked) for row in judged],
                base.identity.key,
                pinned_versions(),
            )
            work = AdapterWork(plan=alone, adapter=own, rows=rows)
            found.append(FoldWork(key=key, fold=fold, work=work, judged=judged))
    return found


def train_and_judge(base: Base, work: FoldWork, on_step: Callable[[Step], None]) -> FoldResult:
    """Train one adapter on the other folds and judge it on this one. Raises Diverged, and what `on_step` raises."""
    result = train_adapter(base, work.work, on_step)
    return judge(base, _adapter(result, work.name), work.judged, sum(result.steps.values()))


def judge(base: Base, adapter: Adapter, rows: Sequence[JudgedRow], steps: int) -> FoldResult:
    """The adapter alone, at coefficient 1, on rows that it has not seen."""
    from dlm_tui.model import MixedModel
    from dlm_tui.scoring import score_text, score_views

    model = MixedModel(base, {adapter.name: adapter}, fast=False)
    view = {"adapter": {adapter.name: 1.0}}
    nll = base_nll = kl = 0.0
    tokens = 0
    for row in rows:
        text = run_to_end(score_text(model, row.ids, view))
        nll -= text["adapter"].logprob
        base_nll -= text["base"].logprob
        tokens += text["adapter"].tokens
        kl += run_to_end(score_views(model, row.ids[: row.asked], view, nulls=0)).views["adapter"].kl
    return FoldResult(nll=nll, base_nll=base_nll, tokens=tokens, kl=kl, prompts=len(rows), steps=steps)


def _adapter(result: Finetuned, name: str) -> Adapter:
    """The trained weights as they would be read from the store."""
    from dlm_tui.model import load_peft_adapter

    with temporary_folder("trial") as folder:
        with naming(folder):
            save_file(result.tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_bytes(json_bytes(result.config))
        return load_peft_adapter(folder, name)


def _folds(document: Document, indices: Sequence[int], folds: int) -> dict[int, int]:
    """Section index -> fold: equal parts in an order that depends on the seed and the sections' ids alone.

    Equal sections share a fold. Empty for fewer than two different sections.
    """
    seed = document.training.seed
    ids = {document.sections[index].section_id for index in indices}
    order = sorted(ids, key=lambda item: hashlib.sha256(f"{seed}\0fold\0{item}".encode()).digest())
    count = min(folds, len(order))
    if count < 2:
        return {}
    place = {item: number % count for number, item in enumerate(order)}
    return {index: place[document.sections[index].section_id] for index in indices}


def _judged(rows: PlannedRows, limit: int, base: Base) -> list[JudgedRow]:
    found = []
    for row in [*rows.train, *rows.validation]:
        if row.kind == "text":
            ids = base.passage(row.text)[:limit]
            asked = len(ids) // 2
        else:
            ids, asked = base.conversation([{"role": role, "content": content} for role, content in row.messages])
            ids = ids[:limit]
        if len(ids) > 1:
            found.append(JudgedRow(ids, min(max(1, asked), len(ids) - 1)))
    return found


def encoded(result: FoldResult | str) -> str:
    """As it is kept in the metrics; a text says why there are no figures."""
    return msgspec.json.encode(result).decode()


def decoded(text: str) -> FoldResult | str | None:
    """What `encoded` made; None for anything else, which is then measured again."""
    try:
        return msgspec.json.decode(text, type=FoldResult | str)
    except msgspec.MsgspecError:
        return None
