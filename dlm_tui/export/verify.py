"""Trying what was written before it is put in its place: is it what was meant, and what does its form cost?

Two questions, kept apart. *Parity* asks whether the export computes what its own stored weights say: it has to, and
an export that does not is refused. The *cost* is how far the export, loaded exactly as its reader will load it, answers
from the workbench: rounding to a format has a price, which is told and not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from dlm_tui.export.export_context import ExportContext, Target, Trial
from dlm_tui.export.parity import (
    ANSWER_TOKENS,
    Answers,
    ParityJob,
    check_tokenizer,
    compare,
    judge,
    runtime_answers,
    runtime_installed,
    workbench_answers,
)
from dlm_tui.export.prompts import long_length, long_prompt, parity_prompts
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.weights_check import check_mix
from dlm_tui.files import temporary_folder
from dlm_tui.model.pages import drop_weight_pages, give_back_freed
from dlm_tui.progress import Progress, map_steps

WORKBENCH, STORED = "the workbench", "the weights as stored"
_CACHE = "a float16 cache"
"""What llama.cpp rounds to where nobody says otherwise; it may cost no more than quantised inputs do."""
_NO_CACHE = "the targets merged and peft keep the type of the base"
_COST = ("runtime", "dtype", "max_abs_logprob_diff", "mean_kl", "max_kl", "greedy_agree", "greedy_tokens")
_LOST_SILENTLY = 0.1
"""The share of a mix that rounding may take without a word."""


def verify(
    target: Target, context: ExportContext, folder: Path, notes: list[str]
) -> Generator[Progress, None, dict[str, Any]]:
    """The manifest's `parity` and `cost` blocks, both None when nothing was tried (a note says why).

    Raises ExportRefused when the export is not what was meant, or when verification was asked for and is impossible.
    """
    wanted = context.request.verify
    if wanted is False:
        return {"parity": None, "cost": None}
    target.check_files(folder)
    if context.session.base.is_offloaded:
        notes.append("not verified: the base has no room in memory")
        return {"parity": None, "cost": None}
    check_mix(context.session.model, context.mix.mapping(), context.pairs)
    window = min(target.window, context.session.base.context_length)
    tokens = min(ANSWER_TOKENS, window // 2)
    prompts = parity_prompts(context.session.document, context.session.base, window - tokens)
    with temporary_folder("parity") as workspace:
        trials = [_shortened(trial, tokens) for trial in target.trials(folder, workspace, prompts)]
        missing = [trial.export.runtime for trial in trials if not runtime_installed(trial.export.runtime)]
        if missing or not trials:
            absent = f"{missing[0]} is not installed (extra [llama])" if missing else None
            reason = absent or "the base has no folder of its own"
            if wanted:
                raise ExportRefused(f"the export cannot be verified: {reason}")
            notes.append(f"not verified: {reason}")
            return {"parity": None, "cost": None}
        weights = yield from target.check_weights(folder)
        coefficients = context.session.model.coefficients(context.mix.mapping())
        backbone, asked = context.session.model.backbone, trials[0].export
        count, none = len(asked.prompts), torch.zeros_like(coefficients)
        answering = workbench_answers(backbone, coefficients, asked)
        ours = yield from map_steps(answering, _behind(0, 2 * count))
        answering = workbench_answers(backbone, none, replace(asked, greedy=0))
        bare = yield from map_steps(answering, _behind(count, 2 * count))
        blocks = []
        drop_weight_pages()  # the trials are other processes, with weights of their own
        give_back_freed()
        long = _long_trial(target, context, folder, workspace, max(map(len, prompts)))
        runtimes = _Runtimes([*trials, *([long] if long is not None else [])])
        for trial in trials:
            blocks.append((yield from _try(trial, ours, context, runtimes)))
        if long is not None:
            blocks[0][0]["long_prompt"] = yield from _try_long(long, context, runtimes)
    parity, cost = blocks[0]
    cost["mean_kl_without_mix"] = compare(replace(ours, greedy=[]), bare, cost["dtype"])["mean_kl"]
    if cost["mean_kl"] > cost["mean_kl_without_mix"]:
        notes.append(
            f"as its reader loads it, the export is further from the workbench ({cost['mean_kl']:.2g} nats) than the"
            f" base without any adapter is ({cost['mean_kl_without_mix']:.2g} nats): choose a finer --quant"
        )
    if weights is not None:
        parity["weights"] = weights
        if (lost := weights.get("mix_lost", 0.0)) > _LOST_SILENTLY:
            notes.append(f"rounding took {lost:.0%} of the mix: a finer --quant keeps more of it")
    if len(blocks) > 1:
        keys = ("max_abs_logprob_diff", "mean_kl", "greedy_agree")
        parity["separate_adapters"] = {key: blocks[1][0][key] for key in keys}
    return {"parity": parity, "cost": cost}


def _shortened(trial: Trial, tokens: int) -> Trial:
    def cut(job: ParityJob | None) -> ParityJob | None:
        return replace(job, tokens=tokens) if job is not None else None

    return Trial(replace(trial.export, tokens=tokens), cut(trial.stored), cut(trial.as_read))


def _behind(before: int, total: int) -> Callable[[Progress], Progress]:
    """Counts steps on behind those that were before, to one total."""

    def counted_on(step: Progress) -> Progress:
        return msgspec.structs.replace(step, done=before + step.done, total=total)

    return counted_on


class _Runtimes:
    """Asks the runtimes of all trials, one after the other, as one piece of work with one count."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        jobs = [job for trial in trials for job in (trial.export, trial.stored, trial.as_read) if job is not None]
        following = [job for trial in trials for job in (trial.export, trial.as_read) if job is not None]
        followed = sum(min(job.greedy, len(job.prompts)) for job in following)
        self._done, self._total = 0, sum(job.steps for job in jobs) + followed

    def ask(self, job: ParityJob) -> Generator[Progress, None, Answers]:
        """What the runtime of `job` answers. Raises ExportRefused as `runtime_answers` does."""
        answers = yield from map_steps(runtime_answers(job), _behind(self._done, self._total))
        self._done += job.steps
        return answers


def _long_trial(target: Target, context: ExportContext, folder: Path, workspace: Path, shorter: int) -> Trial | None:
    """The first way to load the export, asked one prompt that reaches beyond the base's window or into its long rope
    factors; None where neither begins soon behind `shorter` tokens."""
    base = context.session.base
    length = long_length(base.config, shorter, min(target.reach or base.context_length, base.context_length))
    if length is None:
        return None
    trial = target.trials(folder, workspace, [long_prompt(base, length)])[0]
    stored = replace(trial.stored, greedy=0, texts=()) if trial.stored is not None else None
    return Trial(replace(trial.export, greedy=0, texts=()), stored, None)


def _try_long(trial: Trial, context: ExportContext, runtimes: _Runtimes) -> Generator[Progress, None, dict[str, Any]]:
    """The parity of that one prompt."""
    if trial.stored is not None:
        meant = yield from runtimes.ask(trial.stored)
    else:
        coefficients = context.session.model.coefficients(context.mix.mapping())
        meant = yield from workbench_answers(context.session.model.backbone, coefficients, trial.export)
    found = compare(meant, (yield from runtimes.ask(trial.export)), trial.export.dtype)
    found["against"] = STORED if trial.stored is not None else WORKBENCH
    tokens = len(trial.export.prompts[0])
    judge(found, trial.export.dtype, f" over a prompt of {tokens} tokens")
    return {"tokens": tokens, **{key: found[key] for key in ("max_abs_logprob_diff", "mean_kl")}}


def _try(
    trial: Trial, ours: Answers, context: ExportContext, runtimes: _Runtimes
) -> Generator[Progress, None, tuple[dict[str, Any], dict[str, Any]]]:
    """The parity and the cost block of one way to load the export."""
    stored = (yield from runtimes.ask(trial.stored)) if trial.stored is not None else ours
    export = yield from runtimes.ask(replace(trial.export, follow=stored.greedy))
    _check_texts(trial.export, context, export.tokenized)
    label = context.request.quant or trial.export.dtype if trial.export.runtime == "llama.cpp" else trial.export.dtype
    parity = compare(stored, export, label)
    parity["against"] = STORED if trial.stored is not None else WORKBENCH
    judge(parity, trial.export.dtype)
    read, dtype = export, label
    if trial.as_read is not None:
        read = yield from runtimes.ask(replace(trial.as_read, follow=stored.greedy))
        if trial.as_read.as_read:
            judge({**compare(stored, read, _CACHE, _NO_CACHE), "against": parity["against"]}, _CACHE)
        else:
            dtype = trial.as_read.dtype
    cost = compare(ours, replace(read, followed=[]), dtype)
    return parity, {key: cost[key] for key in _COST}


def _check_texts(job: ParityJob, context: ExportContext, found: list[list[int] | None]) -> None:
    expected = [context.session.base.encode_raw(text, limit=None) for text in job.texts]
    check_tokenizer(job.texts, expected, found)
