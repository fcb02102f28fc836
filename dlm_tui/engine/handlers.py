"""What the engine child does for each request: generators that yield events and return the final one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dlm_tui.document.seeds import seed_in_range
from dlm_tui.engine import protocol as p
from dlm_tui.engine.progress_events import ProgressEvents, progress_events
from dlm_tui.engine.warmup import warm_up
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate import train_document_gate
from dlm_tui.model import Backbone, Generated, GenerationEvent, MixedModel, Sampling, View
from dlm_tui.model.backend_selection import why_slower
from dlm_tui.model.generation import generate
from dlm_tui.progress import Progress, map_steps
from dlm_tui.session import Session
from dlm_tui.store import resolve_home
from dlm_tui.system_errors import error_line, system_sentence

T = TypeVar("T")
Work = Generator[p.Event | None, None, p.Event]


class Handlers:
    """Holds the open session; `__call__` turns a request into its work."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: compute threads; None measures which count suits the base that is opened."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._threads = threads
        self._session: Session | None = None
        self._began = time.monotonic()

    def __call__(self, request: p.Request) -> Work:
        """The work of a request, not yet started."""
        table: dict[type[Any], Callable[[Any], Work]] = {
            p.Open: self._open,
            p.Reload: self._reload,
            p.Route: self._route,
            p.Generate: self._generate,
            p.RunSet: self._run_set,
            p.Score: self._score,
            p.TrainGate: self._train_gate,
            p.Evaluate: self._evaluate,
            p.Compare: self._compare,
            p.Drift: self._drift,
            p.GetStatus: self._status,
        }
        return table.get(type(request), _refuse)(request)

    @property
    def session(self) -> Session:
        """The open session. Raises DlmTuiError before `Open` has succeeded."""
        if self._session is None:
            raise DlmTuiError("no document is open in the engine")
        return self._session

    def _open(self, request: p.Open) -> Work:
        base = Path(request.base) if request.base else None
        opening = Session.open(Path(request.document), resolve_home(request.home), base, dtype=request.dtype)
        session, warnings = yield from _with_warnings(progress_events(opening))
        try:
            yield from progress_events(warm_up(session, choose_threads=self._threads is None))
        except Exception as error:  # whatever it is, the first real use will say it again
            traceback.print_exc(file=sys.stderr)
            warnings.append(f"the warm-up failed: {system_sentence(error) or error_line(error)}")
        self._session = session
        return self._opened(warnings)

    def _reload(self, _: p.Reload) -> Work:
        warnings = (yield from _with_warnings(progress_events(self.session.reload())))[1]
        return self._opened(warnings)

    def _opened(self, warnings: Sequence[str]) -> p.Opened:
        from dlm_tui.export.suitability import obstacles

        session = self.session
        status = session.gate_status
        return p.Opened(
            adapters=list(session.model.names),
            versions=dict(session.versions),
            gate=status.mode,
            gate_reason=status.problem,
            base=session.base.identity.id,
            tier=session.model.backbone.tier,
            device=str(session.base.device),
            parameters=session.base.parameters,
            static=session.static,
            warning="\n".join(warnings),
            kept="on disk" if session.base.is_offloaded else session.base.quantisation or "",
            dtype=_decoding_dtype(session),
            no_exports=obstacles(session.base),
        )

    def _route(self, request: p.Route) -> Work:
        began = time.monotonic()
        settled = request.settled or request.explain
        routing = self.session.router.route(request.prompt, explain=request.explain, settled=settled)
        result = yield from progress_events(routing)
        return p.Routed(
            prompt=request.prompt,
            weights=result.weights,
            entropy=result.entropy,
            normalised_entropy=result.normalised_entropy,
            mode=result.mode,
            tokens=result.tokens,
            truncated=result.truncated,
            ood_score=result.ood_score,
            is_ood=result.is_ood,
            settled=result.settled,
            attributions=None
            if result.attributions is None
            else [
                p.TokenAttribution(text=t.text, start=t.start, end=t.end, attribution=t.attribution)
                for t in result.attributions
            ],
            trajectory=result.trajectory,
            seconds=time.monotonic() - began,
        )

    def _generate(self, request: p.Generate) -> Work:
        began = time.monotonic()
        session = self.session
        weights = yield from self._weights(request.prompt, request.views)
        rows = _rows(request)
        views = [row.view for row in rows]
        mixes = [session.mix_of(view, weights) for view in views]
        named = {view.name: mix for view, mix in zip(views, mixes, strict=True)}
        yield p.Mixed(mixes=named, weights=weights or {})
        sampling = Sampling(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )
        chat = session.chat(request.before, request.prompt, request.max_tokens)
        with contextlib.ExitStack() as stack:
            model = session.model_for(mixes)
            backbone, batch = _with_nulls(stack, model, views, mixes)
            work = generate(
                model,
                chat.ids,
                batch,
                sampling,
                heat=request.heat,
                seeds=[row.seed for row in rows],
                backbone=backbone,
                known=session.known,
            )
            answers = yield from _tokens(work, rows)
        for row, mix, answer in zip(rows, mixes, answers, strict=True):
            yield p.ViewDone(
                view=row.view.name,
                text=answer.text,
                tokens=len(answer.token_ids),
                reason=answer.reason,
                mix=mix,
                sample=row.sample,
                seed=row.seed,
                prompt_tokens=answer.prompt_tokens,
                run_tokens=answer.run_tokens,
            )
        return p.Generated(
            weights=weights or {},
            seconds=time.monotonic() - began,
            seed=request.seed,
            dropped=chat.dropped,
            prefill_seconds=answers[0].prefill_seconds,
        )

    def _weights(self, prompt: str, views: list[View]) -> Generator[p.Event | None, None, dict[str, float] | None]:
        """Gate weights of the prompt when a view asks for them."""
        if not any(view.kind == "gated" for view in views):
            return None
        result = yield from progress_events(self.session.router.route(prompt))
        return dict(result.weights)

    def _run_set(self, request: p.RunSet) -> Work:
        from dlm_tui.prompt_runs import PromptAnswer, run_prompts

        began = time.monotonic()
        session, progress = self.session, ProgressEvents()
        versions = dict(session.versions)
        sampling = Sampling(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )
        former = {(item.prompt, item.view): item.token_ids for item in request.former}

        def event(step: Progress | PromptAnswer) -> p.Event:
            return p.SetAnswered(**vars(step)) if isinstance(step, PromptAnswer) else progress.event(step)

        yield from map_steps(
            run_prompts(session, request.prompts, request.views, sampling, former, request.seeds or None), event
        )
        if session.versions != versions:
            raise DlmTuiError("new adapters came while the set ran; run it again")
        return p.SetDone(
            versions=versions, base=session.base.identity.id, seconds=time.monotonic() - began, seed=request.seed
        )

    def _score(self, request: p.Score) -> Work:
        from dlm_tui.scoring import score_views  # loaded when first asked for: typing must not wait for it

        session = self.session
        weights = yield from self._weights(request.prompt, request.views)
        mixes = {view.name: session.mix_of(view, weights) for view in request.views}
        prompt = session.base.chat(request.prompt, session.document.system_prompt)
        completion = None
        if request.completion:
            completion = list(session.base.tokenizer(request.completion, add_special_tokens=False)["input_ids"])
        scores = yield from progress_events(
            score_views(
                session.model_for(mixes.values()),
                prompt,
                mixes,
                completion,
                nulls=request.nulls,
                seed=seed_in_range(session.document.training.seed),
                null_views={view.name: view.seed for view in request.views if view.kind == "null"},
            )
        )
        return p.Scored(
            prompt=request.prompt,
            views=[
                p.ViewScore(view=name, kl=s.kl, js=s.js, z=s.z, logprob=s.logprob, base_logprob=s.base_logprob)
                for name, s in scores.views.items()
            ],
            null_mean=scores.null_mean,
            null_std=scores.null_std,
            nulls=request.nulls,
        )

    def _train_gate(self, request: p.TrainGate) -> Work:
        began = time.monotonic()
        session = self.session
        yield from progress_events(session.reload())
        work = train_document_gate(session.document, session.store, session.model, seed=request.seed)
        outcome = yield from progress_events(work, "gate")
        session.reload_gate()
        return p.GateTrained(
            mode=outcome.mode,
            reason=outcome.reason,
            run_id=outcome.run_id,
            loss=outcome.loss,
            entropy=outcome.entropy,
            mean_weights=dict(outcome.mean_weights),
            warning=outcome.warning,
            seconds=time.monotonic() - began,
        )

    def _evaluate(self, request: p.Evaluate) -> Work:
        from dlm_tui.gate import evaluate_gate, record_evaluation

        session = self.session
        work = evaluate_gate(session.document, session.store, session.model, folds=request.folds)
        report = yield from progress_events(work)
        if problem := record_evaluation(session.store, report):
            yield p.Log(text=f"the report is not kept: {problem}", level="warning")
        return p.Evaluated(report=report)

    def _compare(self, request: p.Compare) -> Work:
        return p.Compared(result=(yield from progress_events(self.session.compare(request.before, request.after))))

    def _drift(self, request: p.Drift) -> Work:
        from dlm_tui.gate import drift_report

        session = self.session
        work = drift_report(session.document, session.store, session.model, session.gate, prompts=request.prompts)
        report = yield from progress_events(work)
        return p.Drifted(report=report)

    def _status(self, _: p.GetStatus) -> Work:
        yield from ()
        session = self._session
        detector = session.gate.ood_score if session and session.gate else None
        return p.Status(
            rss=_resident_bytes(),
            threads=torch.get_num_threads(),
            tier=session.model.backbone.tier if session else "none",
            uptime=time.monotonic() - self._began,
            device=str(session.base.device) if session else "none",
            dtype=_decoding_dtype(session) if session else "",
            cache=session.cache_bytes if session else 0,
            tier_reason=why_slower(session.base) if session else "",
            ood=detector.statistics if detector else (),
        )


@dataclass(frozen=True)
class _Row:
    """One row of a batch: the `sample`-th answer of a view, and the seed that is its own."""

    view: View
    sample: int
    seed: int


def _rows(request: p.Generate) -> list[_Row]:
    """Raises UsageError for fewer than one sample."""
    if request.samples < 1:
        raise UsageError(f"there must be at least 1 sample, not {request.samples}")
    samples = range(request.samples)
    return [_Row(view, sample, seed_in_range(request.seed + sample)) for view in request.views for sample in samples]


def _tokens(
    work: Generator[Progress | GenerationEvent, None, list[Generated]], rows: Sequence[_Row]
) -> Generator[p.Event | None, None, list[Generated]]:
    """Progress of the prefill, and the pieces of every row."""
    progress = ProgressEvents()
    unsaid: list[list[int]] = [[] for _ in rows]

    def event(step: Progress | GenerationEvent) -> p.Event | None:
        if isinstance(step, Progress):
            return progress.event(step)
        if step.reason != "stop":  # the end token is no part of the answer
            unsaid[step.row].append(step.token_id)
        heat = None
        if step.logprob is not None and step.base_logprob is not None:
            heat = step.logprob - step.base_logprob
        if step.text_delta or heat is not None or (step.done and unsaid[step.row]):
            ids, unsaid[step.row] = unsaid[step.row], []
            row = rows[step.row]
            return p.Token(view=row.view.name, text=step.text_delta, heat=heat, sample=row.sample, token_ids=ids)
        return None

    return (yield from map_steps(work, event))


def _with_nulls(
    stack: contextlib.ExitStack, model: MixedModel, views: Sequence[View], mixes: Sequence[dict[str, float]]
) -> tuple[Backbone | None, list[Any]]:
    """The backbone and the rows of a batch. `null` views add random adapters, one more column each, until `stack` ends.

    Raises UsageError when there is no trained adapter whose shape a null could have.
    """
    seeds = [view.seed for view in views if view.kind == "null"]
    if not seeds:
        return None, list(mixes)
    from dlm_tui.scoring.nulls import matched_nulls

    if not model.names:
        raise UsageError("a null view is a random adapter of the trained ones' shape, and none is trained")
    backbone = stack.enter_context(model.with_extra(matched_nulls(model, seeds)))
    column, rows = len(model.names), []
    for view, mix in zip(views, mixes, strict=True):
        row = torch.zeros(backbone.columns)
        row[: len(model.names)] = model.coefficients(mix).cpu()
        if view.kind == "null":
            row[column] = 1.0
            column += 1
        rows.append(row)
    return backbone, rows


def _with_warnings(work: Generator[p.Event, None, T]) -> Generator[p.Event, None, tuple[T, list[str]]]:
    """The result of `work`, and the warnings among its events: what a person has to know of what was opened."""
    warnings: list[str] = []

    def noted(event: p.Event) -> p.Event:
        if isinstance(event, p.Log) and event.level == "warning":
            warnings.append(event.text)
        return event

    return (yield from map_steps(work, noted)), warnings


def _decoding_dtype(session: Session) -> str:
    return str(session.model.decoding_dtype).removeprefix("torch.")


def _refuse(request: p.Request) -> Work:
    yield from ()
    raise DlmTuiError(f"the engine does not take {type(request).__name__} requests")


def _resident_bytes() -> int:
    """Resident set size in bytes; 0 where the system does not tell it this way."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
