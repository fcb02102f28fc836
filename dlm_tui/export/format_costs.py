"""What each number format costs, measured: every one is written, loaded into a real llama.cpp and asked.

The reference is the same export in float32 in the same llama.cpp. Adapters stay apart in float32 beside a quantised
base (as `llama-server` serves them), or are merged before quantising (as `ollama` gets them): two lines per format. The
gate's choice is looked at where the gate can be used, beside a base whose adapters are apart: its embedding then comes
from that very file.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from dlm_tui.export.atomic_folder import check_space, recover
from dlm_tui.export.choices import EVEN_QUANTS
from dlm_tui.export.concatenate import concatenate
from dlm_tui.export.cost_table import Form, FormatCost
from dlm_tui.export.export_context import ExportContext
from dlm_tui.export.gguf_adapter import write_adapter
from dlm_tui.export.gguf_model import plan_model
from dlm_tui.export.mix import ResolvedMix, resolve_mix
from dlm_tui.export.parity import Answers, ParityJob, compare, runtime_answers, runtime_installed
from dlm_tui.export.requests import ExportRefused, ExportRequest, Session, known_quant
from dlm_tui.export.targets_gguf import OllamaTarget
from dlm_tui.files import scratch_sibling
from dlm_tui.gate.embedding import prompt_tokens
from dlm_tui.progress import WARNING, Progress, map_steps, part_of
from dlm_tui.progress_words import stage_words

FORMS: tuple[Form, ...] = ("apart", "merged")
USUAL = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "iq4_xs", "q4_0")
"""What is compared when nothing is named."""

MOST_PROMPTS = 32
ANSWER_TOKENS = 24
_SPARE_BYTES = 64 << 20


def compared_quants(names: Sequence[str] | None) -> tuple[str, ...]:
    """The formats to compare, without repeats and without float32, which is the reference. Raises UsageError."""
    chosen = [known_quant(name) for name in names] if names else USUAL
    return tuple(dict.fromkeys(name for name in chosen if name != "f32"))


def document_prompts(session: Session) -> list[str]:
    """The document's own questions and prompts, evenly chosen where there are many."""
    from dlm_tui.document import training_rows

    rows = training_rows(session.document)
    asked = (row.prompt or (row.messages[0][1] if row.messages else row.text[:400]) for row in rows)
    found = list(dict.fromkeys(text for text in asked if text.strip()))
    if not found:
        raise ExportRefused("the document has no prompts to compare formats with")
    step = max(1, -(-len(found) // MOST_PROMPTS))
    return found[::step]


class FormatComparison:
    """A comparison in progress: `lines` holds what is finished, whenever it is stopped."""

    def __init__(self, request: ExportRequest, session: Session, quants: Sequence[str] | None = None) -> None:
        """Raises UsageError for unknown formats and ExportRefused where there is nothing to measure with."""
        self._quants = compared_quants(quants)
        if not runtime_installed("llama.cpp"):
            raise ExportRefused("formats are compared in llama.cpp, and xllamacpp (extra [llama]) is not installed")
        self._request, self._session = replace(request, target="ollama", gate="static", verify=False), session
        self.lines: list[FormatCost] = []
        self._answers: dict[Form, Answers] = {}
        self._weights: torch.Tensor | None = None
        base, document = session.base, session.document
        self._texts = document_prompts(session)
        room = max(8, base.context_length - ANSWER_TOKENS)
        self._prompts = [base.chat(text, document.system_prompt)[-room:] for text in self._texts]

    def run(self) -> Generator[Progress, None, list[FormatCost]]:
        """Measure line after line; closing the generator stops and removes what was written."""
        mix = yield from resolve_mix(self._request, self._session)
        place = self._session.store.exports_dir / "comparison"
        place.parent.mkdir(parents=True, exist_ok=True)
        recover(place)
        scratch = scratch_sibling(place)
        scratch.mkdir()
        try:
            importance = None
            for quant in ("f32", *self._quants):
                target = self._target(quant, mix)
                if target.weighed and importance is None:
                    yield from target.weigh(scratch)
                    importance = target.importance
                elif target.weighed:
                    target.importance = importance
                for form in FORMS:
                    try:
                        yield from self._line(quant, form, target, scratch)
                    except ExportRefused as refusal:
                        yield Progress(WARNING, text=f"{quant}, adapters {form}: {refusal}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.lines

    def _target(self, quant: str, mix: ResolvedMix) -> OllamaTarget:
        imatrix = None if quant in EVEN_QUANTS else self._request.imatrix
        request = replace(self._request, quant=quant, imatrix=imatrix).checked()
        pairs = concatenate(self._session.model.adapters, mix.weights)
        return OllamaTarget(ExportContext(request, self._session, mix, pairs))

    def _line(self, quant: str, form: Form, target: OllamaTarget, scratch: Path) -> Generator[Progress, None, None]:
        """Write one file, ask it, and forget it."""
        model, adapter = scratch / "model.gguf", scratch / "mix.gguf"
        merged = form == "merged"
        model.unlink(missing_ok=True)  # of a line that was refused
        pairs = target.pairs
        plan = plan_model(target.source, target.architecture, quant, pairs if merged else None)
        check_space(scratch, sum(tensor.nbytes for tensor in plan), _SPARE_BYTES)

        def named(step: Progress) -> Progress:
            return msgspec.structs.replace(step, text=f"{quant}, adapters {form}: {stage_words(step)}")

        yield from map_steps(target.write_weights(model, merged=merged), named)
        if not merged and not adapter.exists():
            yield from write_adapter(adapter, pairs, target.architecture, name="mix")
        job = ParityJob(
            runtime="llama.cpp",
            model=model,
            prompts=self._prompts,
            dtype=quant,
            vocab=target.architecture.vocab,
            loras=[] if merged else [(adapter, 1.0)],
            greedy=len(self._prompts),
            tokens=ANSWER_TOKENS,
        )
        found = yield from map_steps(runtime_answers(job), named)
        moved, changed = (
            (None, None) if merged else (yield from map_steps(part_of(self._gate(job), "embed", 0, 1), named))
        )
        reference = self._answers.setdefault(form, found)
        figures = compare(reference, found, quant)
        elements = sum(int(np.prod(tensor.shape)) for tensor in plan)
        self.lines.append(
            FormatCost(
                quant=quant,
                form=form,
                size=model.stat().st_size,
                bits=8.0 * sum(tensor.nbytes for tensor in plan) / elements,
                mean_kl=max(0.0, figures["mean_kl"]),
                max_kl=max(0.0, figures["max_kl"]),
                changed_answers=_changed(reference.greedy, found.greedy, self._session.base.stop_ids),
                gate_moved=moved,
                gate_changed=changed,
                tokens_per_second=found.tokens_per_second,
                prompts=len(self._prompts),
            )
        )
        yield Progress("formats", len(self.lines), len(FORMS) * (len(self._quants) + 1))

    def _gate(self, job: ParityJob) -> Generator[Progress, None, tuple[float | None, float | None]]:
        """How far the gate's weights move, and how often its first choice, against float32 embeddings."""
        gate = self._session.gate
        if gate is None or gate.network is None:
            return None, None
        asked = [list(prompt_tokens(self._session.base, text).ids) for text in self._texts]
        work = replace(job, prompts=[], loras=[], greedy=0, embed=[ids for ids in asked if ids])
        rows = (yield from runtime_answers(work)).embeddings
        weights = gate.weights(torch.from_numpy(np.stack(rows)))
        if self._weights is None:
            self._weights = weights
        moved = (weights - self._weights).abs().amax(dim=-1).mean()
        changed = (weights.argmax(dim=-1) != self._weights.argmax(dim=-1)).float().mean()
        return float(moved), float(changed)


def _changed(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], stops: frozenset[int]) -> float:
    """The share of answers that differ, each read up to where a reader stops."""

    def until(tokens: Sequence[int]) -> list[int]:
        end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
        return list(tokens[:end])

    differ = [until(first) != until(second) for first, second in zip(ours, theirs, strict=True)]
    return sum(differ) / len(differ)
