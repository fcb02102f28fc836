"""Trying what was written before it is put in its place."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlm_tui.export.export_context import ExportContext, Target
from dlm_tui.export.parity import (
    ANSWER_TOKENS,
    ParityJob,
    check_tokenizer,
    compare,
    judge,
    runtime_answers,
    runtime_installed,
    workbench_answers,
)
from dlm_tui.export.prompts import parity_prompts
from dlm_tui.export.requests import ExportRefused
from dlm_tui.progress import Progress


def verify(
    target: Target, context: ExportContext, folder: Path, notes: list[str]
) -> Generator[Progress, None, dict[str, Any] | None]:
    """The manifest's parity block, or None when nothing was tried (a note says why).

    Raises ExportRefused when the export answers differently, or when verification was asked for and is impossible.
    """
    wanted = context.request.verify
    if wanted is False:
        return None
    window = min(target.window, context.session.base.context_length)
    tokens = min(ANSWER_TOKENS, window // 2)
    prompts = parity_prompts(context.session.document, context.session.base, window - tokens)
    jobs = [replace(job, tokens=tokens) for job in target.jobs(folder, prompts)]
    missing = [job.runtime for job in jobs if not runtime_installed(job.runtime)]
    if missing or not jobs:
        reason = f"{missing[0]} is not installed (extra [llama])" if missing else "the base has no folder of its own"
        if wanted:
            raise ExportRefused(f"the export cannot be verified: {reason}")
        notes.append(f"not verified: {reason}")
        return None
    model = context.session.model
    coefficients = model.coefficients(context.mix.mapping())
    ours = yield from workbench_answers(model.backbone, coefficients, jobs[0])
    blocks = []
    for job in jobs:
        theirs = yield from runtime_answers(job)
        _check_texts(job, context, theirs.tokenized)
        block = compare(ours, theirs, context.request.quant or job.dtype)
        judge(block, job.dtype)
        blocks.append(block)
    parity = blocks[0]
    if len(blocks) > 1:
        keys = ("max_abs_logprob_diff", "mean_kl", "greedy_agree")
        parity["separate_adapters"] = {key: blocks[1][key] for key in keys}
    return parity


def _check_texts(job: ParityJob, context: ExportContext, found: list[list[int] | None]) -> None:
    expected = [context.session.base.encode_raw(text, limit=None) for text in job.texts]
    check_tokenizer(job.texts, expected, found)
