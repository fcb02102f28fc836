"""Continuous batching: one thread that routes, prefills and decodes, and takes requests in and out between steps."""

from __future__ import annotations

import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec
import torch

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate import PromptRouter
from dlm_tui.gate.embedding import length_batches, prompt_tokens
from dlm_tui.model.backbone import Backbone
from dlm_tui.model.base import NoEmbedding
from dlm_tui.model.chat import ChatTemplateError
from dlm_tui.model.generation import DecodingRow
from dlm_tui.model.prefix_reuse import Key, prefilled
from dlm_tui.model.sampling import Sampling
from dlm_tui.model.streaming import TextStream
from dlm_tui.output import say
from dlm_tui.progress import Progress
from dlm_tui.serving.backend import (
    Ask,
    BackendGone,
    Begun,
    Embedded,
    Event,
    Piece,
    RoutedPrompt,
    Turn,
    check_context,
    check_ids,
    check_room,
)
from dlm_tui.serving.fair_queue import FairQueue
from dlm_tui.serving.native.batch import RunningBatch, ServedRow
from dlm_tui.serving.native.notes import news, session_notes
from dlm_tui.serving.native.prefix_store import PrefixStore
from dlm_tui.serving.native.watch import INTERVAL_SECONDS, StoreWatch, last_training
from dlm_tui.serving.views import Decision, among, applicable, fixed_decision
from dlm_tui.session import Session
from dlm_tui.system_errors import sentence_of

ROWS = 8
"""Rows decoded together: with twice as many each waits half as long again for its next token on a processor."""
QUEUE = 64
CONTEXT = 8192
REUSE_BYTES = 256 << 20
PREFILL_TOKENS = 512
"""Prompts are prefilled together while rows · longest row stays within this."""
ADMISSIONS = 4
"""Groups of requests that are routed and prefilled in turns: a short one does not wait behind a long one."""
FIRST_CAPACITY = 256
"""Tokens of an answer that its cache has room for from the start."""


@dataclass(eq=False)
class Job:
    """One request. `send` may be called from the scheduler's thread only; `cancelled` is set by anybody."""

    client: str
    send: Callable[[Event], None]
    ask: Ask | None = None
    route: str | None = None
    embed: str | None = None
    cancelled: bool = False
    stopped: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """`open` are the choices that still take a seat in the batch; the scheduler's thread alone changes it."""
        self.open = set(range(self.ask.choices)) if self.ask is not None else set()

    def settle(self) -> None:
        """Give up the seats of choices that nobody waits for."""
        self.open = set() if self.cancelled else self.open - self.stopped


T = TypeVar("T")
Admission = Generator[None, None, None]


class Scheduler:
    """Owns the session: nothing else may touch it while the thread runs."""

    def __init__(
        self,
        session: Session,
        *,
        rows: int = ROWS,
        queue: int = QUEUE,
        reuse_bytes: int = REUSE_BYTES,
        context_length: int | None = None,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        """`context_length` bounds prompt and answer together, in tokens: every row keeps keys and values for that many
        (default: what the base reads, at most `CONTEXT`). `flush` is called after every round, once what it sent may be
        handed on. Raises UsageError for more than the base reads."""
        check_context(context_length, session.base.context_length)
        self.context_length = context_length or min(session.base.context_length, CONTEXT)
        self.session = session
        self.seats = rows
        self._flush = flush
        self._queue: FairQueue[Job] = FairQueue(queue, lambda job: len(job.open))
        self._wake = threading.Condition()
        self._closing = self._refusing = False
        self._busy: set[Job] = set()
        self._batches: list[RunningBatch] = []
        self._admissions: list[Admission] = []
        self._routers: list[PromptRouter] = []
        self._prefixes = PrefixStore(reuse_bytes)
        self._watch = StoreWatch(session)
        self._reload: Generator[Progress, None, None] | None = None
        self._step_seconds = 0.0
        self.steps = 0
        self.reloads = 0
        self._taken_in = last_training(session.store)
        self.notes = session_notes(session)
        self._served = tuple(session.model.names)
        self._generation = 0
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises QueueFull, and BackendGone after the end."""
        with self._wake:
            if self._closing or self._refusing:
                raise BackendGone(self.problem)
            self._queue.put(job.client, job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Drop what is left of a job: from the queue at once, from the batch before its next step."""
        with self._wake:
            job.cancelled = True
            self._queue.remove(job)
            self._wake.notify()

    def stop_choice(self, job: Job, choice: int) -> None:
        """End one row before its next step."""
        with self._wake:
            job.stopped.add(choice)
            self._wake.notify()

    def refuse(self) -> None:
        """Take no more jobs, and end those that wait with BackendGone; those that have begun go on."""
        with self._wake:
            self._refusing = True
            self._wake.notify()

    def close(self) -> None:
        """End every job with BackendGone and the thread with them."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def running(self) -> int:
        """Rows that are being decoded."""
        return sum(len(batch.rows) for batch in list(self._batches))

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def _run(self) -> None:
        try:
            while self._wait():
                self._round()
                self._flush()
        except BaseException as error:  # a broken engine must not leave clients waiting
            traceback.print_exc(file=sys.stderr)
            self.problem = f"the engine failed: {type(error).__name__}; start the server again"
        with self._wake:
            self._closing = self._refusing = True
        self._drop_waiting()
        for job in self._busy:
            job.send(BackendGone(self.problem))
        self._flush()

    def _wait(self) -> bool:
        """Sleep until there is something to do; False at the end."""
        with self._wake:
            while not self._closing and not self._has_work():
                self._wake.wait(INTERVAL_SECONDS)
                if self._watch.changed():
                    self._reload = self.session.reload()
            return not self._closing

    def _has_work(self) -> bool:
        return bool(self._queue or self._admissions or self._reload is not None or any(b.rows for b in self._batches))

    def _round(self) -> None:
        """Take in what may begin, then one step for every row."""
        self._drop_cancelled()
        self._drop_waiting()
        if self._reload is None and self._watch.changed():
            self._reload = self.session.reload()
        self._go_on_reloading()
        self._begin()
        self._admit()
        self._decode()

    def _drop_cancelled(self) -> None:
        """Rows of a job that nobody listens to, and stopped ones, leave the batch."""
        for job in self._busy:
            job.settle()
        self._busy = {job for job in self._busy if job.open or (job.ask is None and not job.cancelled)}
        for batch in self._batches:
            for row in batch.rows:
                row.gone = not row.wanted()
        self._batches = [batch for batch in self._batches if batch.rows]

    def _drop_waiting(self) -> None:
        """What waits is told at once that its turn will not come."""
        with self._wake:
            left = self._queue.drain() if self._refusing else []
        for job in left:
            job.send(BackendGone(self.problem))

    def _go_on_reloading(self) -> None:
        """One piece of taking a new training in. Running rows keep the backbone they began with."""
        if self._reload is None:
            return
        try:
            next(self._reload)
        except StopIteration:
            if (training := last_training(self.session.store)) != self._taken_in:
                self._taken_in = training
                self.reloads += 1
            self._read_again()
            self._tell_news()
        except (DlmTuiError, OSError) as error:  # a document that is being edited: what was served before goes on
            say(f"dlm-tui serve: not taken in: {sentence_of(error)}")
            self._read_again()

    def _read_again(self) -> None:
        """The session is not what it was, also where reading it ended half-way: nothing made of it before is used."""
        self._reload = None
        self._generation += 1
        self._routers.clear()
        self._prefixes.clear()

    def _tell_news(self) -> None:
        for note in news(self.notes, self._served, self.session):
            say(note)
        self.notes, self._served = session_notes(self.session), tuple(self.session.model.names)

    def _begin(self) -> None:
        """Jobs whose turn it is, as one group, while there are seats for them."""
        if len(self._admissions) >= ADMISSIONS:
            return
        jobs: list[Job] = []
        free = self.seats - sum(len(job.open) for job in self._busy)
        with self._wake:
            while (job := self._queue.take(free)) is not None:
                free -= len(job.open)
                self._busy.add(job)
                jobs.append(job)
        if jobs:
            self._admissions.append(self._admission(jobs))

    def _admit(self) -> None:
        """Pieces of routing and prefill, in turns; while rows run, about as long as one of their steps takes."""
        began = time.monotonic()
        while self._admissions:
            admission = self._admissions.pop(0)
            try:
                next(admission)
                self._admissions.append(admission)
            except StopIteration:
                pass
            if any(batch.rows for batch in self._batches) and time.monotonic() - began >= self._step_seconds:
                return
            if self._queue and len(self._admissions) < ADMISSIONS:
                self._begin()

    def _decode(self) -> None:
        for batch in self._batches:
            if not batch.rows:
                continue
            began = time.monotonic()
            for row in batch.step():
                if row.decoding.index == 0 and (kept := batch.remembered(row)) is not None:
                    self._prefixes.keep(kept)
            # what was said is on its way before the next step is computed
            self._flush()
            batch.advance()
            self._step_seconds = time.monotonic() - began
            self.steps += 1

    def _admission(self, jobs: Sequence[Job]) -> Admission:
        """Route and prefill a group, then let it join; a job that cannot be answered is told why."""
        rows: list[tuple[Backbone, ServedRow]] = []
        for job in jobs:
            if job.cancelled:
                continue
            try:
                rows += yield from self._prepared(job)
            except NoEmbedding as error:  # its text is the client's
                self._fail(job, UsageError(str(error)))
            except DlmTuiError as error:
                self._fail(job, error)
            except Exception as error:  # one request's misfortune must not end the others'
                self._fail_all([job], error)
        try:
            for engine in dict.fromkeys(engine for engine, _ in rows):
                mine = [row for other, row in rows if other is engine]
                for places in length_batches([len(row.decoding.prompt) for row in mine], PREFILL_TOKENS):
                    yield from self._prefill(engine, [mine[place] for place in places])
        except Exception as error:
            self._fail_all(jobs, error)

    def _prefill(self, engine: Backbone, rows: Sequence[ServedRow]) -> Admission:
        rows = [row for row in rows if row.wanted()]
        if not rows:
            return
        keys: dict[Key, torch.Tensor] = {row.key: row.decoding.coefficients for row in rows}
        capacity = max(len(row.decoding.prompt) + min(row.decoding.limit, FIRST_CAPACITY) for row in rows)
        work = prefilled(engine, keys, capacity, self._prefixes.before(engine, keys), None)
        while True:
            try:
                next(work)
            except StopIteration as finished:
                filled = finished.value
                break
            yield
        if alive := [row for row in rows if row.wanted()]:
            self._batch_of(engine).join(alive, filled)

    def _batch_of(self, engine: Backbone) -> RunningBatch:
        for batch in self._batches:
            if batch.engine is engine:
                return batch
        base = self.session.base
        batch = RunningBatch(engine, base.tokenizer, base.stop_ids, self.context_length)
        self._batches.append(batch)
        return batch

    def _prepared(self, job: Job) -> Generator[None, None, list[tuple[Backbone, ServedRow]]]:
        """The rows of an answer, routed but not run; embeddings and decisions are sent at once and have none."""
        if job.embed is not None:
            yield from self._embed(job, job.embed)
            return []
        if job.route is not None:
            decision, tokens, truncated = yield from self._routed(job.route)
            job.send(RoutedPrompt(among(decision, self.session.model.names), tokens, truncated))
            self._busy.discard(job)
            return []
        assert job.ask is not None
        ask, session = job.ask, self.session
        prompt = self._tokens(ask)
        room = check_room(len(prompt), self.context_length)
        view = applicable(ask.view, session.model.names, routed=session.document.gate_enabled)
        if view.kind == "gated":
            decision, _, _ = yield from self._routed(self._question(ask))
        else:
            decision = fixed_decision(view, session.mix_of(view, None))
        # no pause from here on: mix, coefficients and backbone are of the same training
        model = session.model
        decision = among(decision, model.names)
        coefficients = model.coefficients(decision.weights)
        job.send(Begun(decision, len(prompt)))
        sampling = self._sampling(ask, room)
        limit = min(sampling.max_tokens, room)
        adapters = model.generation.mixer.adapters
        key: Key = (
            tuple(prompt),
            tuple((id(one), value) for one, value in zip(adapters, coefficients.tolist(), strict=True) if value),
        )
        made = []

        def deliver(piece: Piece) -> None:
            job.send(piece)
            if piece.finish is not None:
                job.open.discard(piece.choice)

        for index in range(ask.choices):
            decoding = DecodingRow(
                index,
                prompt,
                coefficients,
                TextStream(session.base.tokenizer),
                torch.Generator().manual_seed(ask.seed + index),
                limit,
                "length",
            )
            wanted = functools.partial(_is_wanted, job, index)
            fail = functools.partial(self._fail, job)
            row = ServedRow(decoding, sampling, key, deliver, fail, wanted, ask.logprobs, ask.top_logprobs)
            made.append((model.generation, row))
        return made

    def _sampling(self, ask: Ask, room: int) -> Sampling:
        exported, source = self.session.document.frontmatter.export, self.session.base.source
        temperature = ask.temperature if ask.temperature is not None else exported.default_temperature
        top_p = ask.top_p if ask.top_p is not None else exported.default_top_p
        return Sampling(
            max_tokens=ask.max_tokens or room,
            temperature=temperature if temperature is not None else (0.6 if source.reasoning else 0.7),
            top_p=top_p if top_p is not None else 1.0,
            seed=ask.seed,
        )

    def _tokens(self, ask: Ask) -> list[int]:
        base = self.session.base
        if isinstance(ask.prompt, str):
            return base.encode_raw(ask.prompt, limit=None)
        if ask.prompt is not None:
            return check_ids(ask.prompt, base.vocab_size)
        turns = list(ask.messages)
        system = self.session.document.system_prompt
        if system and all(turn.role != "system" for turn in turns):
            turns.insert(0, Turn("system", system))
        try:
            text = base.renderer.text([msgspec.structs.asdict(turn) for turn in turns], generate=True)
        except ChatTemplateError as error:  # these messages are the client's
            raise UsageError(str(error)) from error
        return base.encode_rendered(text)

    def _question(self, ask: Ask) -> str:
        if isinstance(ask.prompt, tuple):
            return str(self.session.base.tokenizer.decode(list(ask.prompt), skip_special_tokens=True))
        return ask.question

    def _routed(self, prompt: str) -> Generator[None, None, tuple[Decision, int, bool]]:
        router, of = self._router(), self._generation
        result = yield from _pausing(router.route(prompt))
        self._give_back(router, of)
        decision = Decision(
            view="gated",
            weights=result.weights,
            mode=result.mode,
            entropy=result.entropy,
            normalised_entropy=result.normalised_entropy,
            ood_score=result.ood_score,
            is_ood=result.is_ood,
            reason=result.reason,
        )
        return decision, result.tokens, result.truncated

    def _embed(self, job: Job, prompt: str) -> Generator[None, None, None]:
        router, of = self._router(), self._generation
        vector = yield from _pausing(router.embed(prompt))
        self._give_back(router, of)
        job.send(Embedded(tuple(vector.tolist()), len(prompt_tokens(self.session.base, prompt).ids)))
        self._busy.discard(job)

    def _router(self) -> PromptRouter:
        """One that nobody is using: two prompts routed in turns through one would run over each other."""
        if self._routers:
            return self._routers.pop()
        session = self.session
        names = session.document.adapter_names
        return PromptRouter(session.model.backbone, session.base, session.gate, names, session.gate_error)

    def _give_back(self, router: PromptRouter, of: int) -> None:
        """Keep a router for the next prompt, unless the session was read again since it was taken."""
        if of == self._generation:
            self._routers.append(router)

    def _fail(self, job: Job, error: DlmTuiError) -> None:
        job.send(error)
        job.open = set()
        self._busy.discard(job)

    def _fail_all(self, jobs: Iterable[Job], error: Exception) -> None:
        """What nobody foresaw: the jobs it befell are told, the others go on."""
        traceback.print_exception(error, file=sys.stderr)
        for job in jobs:
            if job in self._busy:
                self._fail(job, DlmTuiError(f"the engine failed: {type(error).__name__}"))


def _is_wanted(job: Job, choice: int) -> bool:
    return not job.cancelled and choice in job.open and choice not in job.stopped


def _pausing(work: Generator[object, None, T]) -> Generator[None, None, T]:
    """The same work, telling nobody how far it is."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return cast("T", finished.value)
        yield
