"""The live gate over llama.cpp: embed, decide, and send every adapter's scale with every request. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.model.chat import ChatRenderer, ChatTemplateError
from dlm_tui.model.views import resolve_view
from dlm_tui.serving.backend import (
    Ask,
    BackendGone,
    Begun,
    Embedded,
    Event,
    Load,
    NotFinite,
    Piece,
    RoutedPrompt,
    ServedModel,
    Stream,
    TokenLogprob,
    Turn,
    check_context,
    check_ids,
    check_room,
)
from dlm_tui.serving.fair_queue import FairQueue
from dlm_tui.serving.llama.folder import LiveFolder, LiveSettings
from dlm_tui.serving.llama.instances import LIMIT, Instance, answerer, embedder
from dlm_tui.serving.views import Decision, among, applicable, entropy_of, fixed_decision, rounded

ROWS = 4
QUEUE = 64


@dataclass(eq=False)
class _Job:
    """One request: `work` runs when its turn comes and takes `seats` of the answers made at once."""

    work: Callable[[_Job], Coroutine[Any, Any, None]]
    seats: int
    stream: Stream | None = None
    task: asyncio.Task[None] | None = None
    choices: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def put(self, event: Event) -> None:
        assert self.stream is not None
        self.stream.put(event)


class _Template:
    """What a chat renderer needs of a tokenizer."""

    def __init__(self, settings: LiveSettings) -> None:
        self.chat_template = settings.chat_template
        self.special_tokens_map = settings.special_tokens

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """No tokens: llama.cpp splits the text."""
        return {"input_ids": []}


class LlamaBackend:
    """Answers with llama.cpp. `grid`, a whole part of 1, rounds the gate's weights to multiples of it, so that
    equal mixes share a batch: llama.cpp decodes requests of different scales one after another.
    """

    def __init__(
        self,
        folder: LiveFolder,
        *,
        rows: int = ROWS,
        queue: int = QUEUE,
        grid: float | None = None,
        threads: int | None = None,
        context_length: int | None = None,
    ) -> None:
        """Raises UsageError for more context than the base reads."""
        if folder.settings.base_context is not None:
            check_context(context_length, folder.settings.base_context)
        self._folder, self._settings = folder, folder.settings
        self._rows, self._grid, self._threads = rows, grid, threads
        self._embedded_tokens = min(LIMIT, folder.settings.base_context or LIMIT)
        self._context_length = context_length or folder.settings.context_length
        self._queue: FairQueue[_Job] = FairQueue(queue, lambda job: job.seats)
        self._busy: set[_Job] = set()
        self._tokens = 0
        self._vocab_size = 0
        self._renderer = ChatRenderer(_Template(folder.settings), folder.settings.base)
        self._embedder: Instance | None = None
        self._answerer: Instance | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created = int(time.time())

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._folder.adapters)

    @property
    def model(self) -> ServedModel:
        settings = self._settings
        return ServedModel(
            base=settings.base,
            adapters=self.adapters,
            gate=settings.gate_mode,
            backend="llama.cpp" if self._grid is None else f"llama.cpp, weights in steps of {self._grid:g}",
            context_length=self._context_length,
            hidden_size=settings.hidden_size,
            created=self._created,
            versions=settings.versions,
        )

    @property
    def load(self) -> Load:
        return Load(sum(len(job.choices) for job in self._busy), len(self._queue), self._tokens, 0)

    @property
    def problem(self) -> str:
        return ""

    async def start(self) -> None:
        """Load both instances."""
        self._loop = asyncio.get_running_loop()
        folder = self._folder
        self._embedder = await asyncio.to_thread(embedder, folder.base, self._embedded_tokens, self._threads)
        self._vocab_size = await self._embedder.vocab_size()
        adapters = list(folder.adapters.values())
        self._answerer = await asyncio.to_thread(
            answerer, folder.base, adapters, self._rows, self._context_length, self._threads
        )

    async def notes(self) -> list[str]:
        cost = await self.grid_cost()
        if cost is None:
            return []
        prompts = len(self._settings.probes)
        return [
            f"weights in steps of {self._grid:g} cost {cost:.2g} nats at the next token, on {prompts} of its prompts"
        ]

    def answer(self, ask: Ask) -> Stream:
        async def work(job: _Job) -> None:
            await self._answer(job, ask)

        return self._submit(ask.client, _Job(work, ask.choices))

    def route(self, client: str, prompt: str) -> Stream:
        async def work(job: _Job) -> None:
            decision, tokens, truncated = await self._routed(prompt)
            job.put(RoutedPrompt(self._applied(decision), tokens, truncated))

        return self._submit(client, _Job(work, 0))

    def embed(self, client: str, prompt: str) -> Stream:
        async def work(job: _Job) -> None:
            vector, tokens, _ = await self._embedding(prompt)
            job.put(Embedded(tuple(vector.tolist()), tokens))

        return self._submit(client, _Job(work, 0))

    def refuse(self) -> None:
        self._closed = True
        for job in self._queue.drain():
            job.put(BackendGone())

    def close(self) -> None:
        self._closed = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        """On the loop, where events are put and tasks are cancelled."""
        self.refuse()
        for job in self._busy:
            if job.task is not None:
                job.task.cancel()
            job.put(BackendGone())

    async def grid_cost(self) -> float | None:
        """Mean KL(exact weights ‖ rounded weights) in nats at the next token over the document's own prompts; None
        without a grid or without prompts."""
        if self._grid is None or not self._settings.probes or self._answerer is None:
            return None
        costs = []
        for prompt in self._settings.probes:
            decision, _, _ = await self._routed(prompt)
            ids = await self._chat_ids((Turn("user", prompt),))
            mixes = decision.weights, self._applied(decision).weights
            first, second = [await self._distribution(ids, mix) for mix in mixes]
            costs.append(float((np.exp(first) * (first - second)).sum()))
        return math.fsum(costs) / len(costs)

    def _submit(self, client: str, job: _Job) -> Stream:
        if self._closed:
            raise BackendGone

        def cancel() -> None:
            self._queue.remove(job)
            if job.task is not None:
                job.task.cancel()

        def stop(choice: int) -> None:
            if choice in job.choices:
                job.choices[choice].cancel()

        job.stream = Stream(cancel, stop)
        self._queue.put(client, job)
        self._pump()
        return job.stream

    def _pump(self) -> None:
        """Begin what may begin."""
        free = self._rows - sum(job.seats for job in self._busy)
        while (job := self._queue.take(free)) is not None:
            free -= job.seats
            self._busy.add(job)
            job.task = asyncio.ensure_future(self._run(job))
            # not at the end of the task itself: one that is cancelled before its first step never gets there
            job.task.add_done_callback(functools.partial(self._over, job))

    async def _run(self, job: _Job) -> None:
        try:
            await job.work(job)
        except DlmTuiError as error:
            job.put(error)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # one request's misfortune must not end the others'
            job.put(DlmTuiError(f"the engine failed: {type(error).__name__}"))

    def _over(self, job: _Job, _: asyncio.Future[None]) -> None:
        """Its seats are free for what waits."""
        self._busy.discard(job)
        if not self._closed:
            self._pump()

    async def _answer(self, job: _Job, ask: Ask) -> None:
        ids = await self._ids(ask)
        room = check_room(len(ids), self._context_length)
        decision = await self._decide(ask, ids)
        job.put(Begun(decision, len(ids)))
        limit = min(ask.max_tokens or room, room)
        job.choices = {
            number: asyncio.ensure_future(self._choice(job, ask, number, ids, decision.weights, limit))
            for number in range(ask.choices)
        }
        try:
            for done in await asyncio.gather(*job.choices.values(), return_exceptions=True):
                if isinstance(done, Exception):
                    raise done
        finally:
            for task in job.choices.values():
                task.cancel()

    async def _choice(
        self, job: _Job, ask: Ask, number: int, ids: list[int], mix: Mapping[str, float], limit: int
    ) -> None:
        temperature = self._settings.temperature if ask.temperature is None else ask.temperature
        body = {
            **self._request(ids, mix),
            "n_predict": limit,
            "temperature": temperature,
            "top_p": self._settings.top_p if ask.top_p is None else ask.top_p,
            "seed": (ask.seed + number) & 0xFFFFFFFF,
            "n_probs": max(ask.top_logprobs, 1) if ask.logprobs else 0,
        }
        assert self._answerer is not None
        counted = 0
        # of tokens that show nothing; the last of them may be the end token, which is no part of the answer
        silent: list[TokenLogprob] = []
        silent_tokens = 0
        async with contextlib.aclosing(self._answerer.stream("/completion", body)) as events:
            async for event in events:
                told = [*silent, *(_told(item, ask.top_logprobs) for item in event.get("completion_probabilities", ()))]
                finish = None
                tokens = silent_tokens + len(event.get("tokens", ()))
                if event.get("stop"):
                    finish = "length" if event.get("stop_type") == "limit" else "stop"
                    # pieces that were held back as half a character are counted at the end
                    said = int(event.get("tokens_predicted", 0)) - counted
                    if finish == "stop" and said == silent_tokens:
                        told = told[:-1]
                    tokens = max(said - (finish == "stop"), 0)
                elif not event.get("content"):
                    silent, silent_tokens = told, tokens
                    continue
                silent, silent_tokens = [], 0
                counted += tokens
                self._tokens += tokens
                job.put(Piece(number, event.get("content", ""), tokens, tuple(told), finish))
                if finish is not None:
                    return
        raise DlmTuiError("llama.cpp broke off")

    async def _decide(self, ask: Ask, ids: list[int]) -> Decision:
        view = applicable(ask.view, self.adapters, routed=self._settings.gate_enabled)
        if view.kind != "gated":
            static = {name: weight for name, weight in self._settings.static_mix.items() if name in self.adapters}
            return fixed_decision(view, resolve_view(view, self.adapters, None, static))
        question = ask.question
        if isinstance(ask.prompt, tuple):
            question = str((await self._embedded().post("/detokenize", {"tokens": ids}))["content"])
        decision, _, _ = await self._routed(question)
        return self._applied(decision)

    def _applied(self, decision: Decision) -> Decision:
        """What the gate decided as it is answered with."""
        served = among(decision, self.adapters)
        return served if self._grid is None else rounded(served, self._grid)

    async def _routed(self, prompt: str) -> tuple[Decision, int, bool]:
        """The gate's decision with exact weights, tokens embedded, and whether any were cut off."""
        vector, tokens, truncated = await self._embedding(prompt)
        gate, settings = self._folder.gate, self._settings
        if not tokens:
            weights = dict.fromkeys(gate.names, 1.0 / len(gate.names))
            spread, share = entropy_of(weights)
            reason = "The prompt is empty: every adapter has the same weight."
            decision = Decision(
                view="gated", weights=weights, mode="uniform", entropy=spread, normalised_entropy=share, reason=reason
            )
            return decision, 0, False
        weights = gate.weights(vector)
        spread, share = entropy_of(weights)
        score, is_ood = gate.ood.judge(vector) if gate.ood is not None else (None, False)
        decision = Decision(
            view="gated",
            weights=weights,
            mode=settings.gate_mode,
            entropy=spread,
            normalised_entropy=share,
            ood_score=score,
            is_ood=is_ood,
            reason=settings.gate_reason,
        )
        return decision, tokens, truncated

    async def _embedding(self, prompt: str) -> tuple[Any, int, bool]:
        """Mean final hidden state [H] float64 of at most 512 tokens, how many these are, whether more were cut off."""
        ids = await self._tokenized(prompt, special=True) if prompt else []
        kept = ids[: self._embedded_tokens]
        if not kept:
            return np.zeros(self._settings.hidden_size), 0, False
        found = await self._embedded().post("/embeddings", {"input": kept, "embd_normalize": -1})
        return np.asarray(found[0]["embedding"][0], dtype=np.float64), len(kept), len(ids) > len(kept)

    async def _ids(self, ask: Ask) -> list[int]:
        if isinstance(ask.prompt, str):
            return await self._tokenized(ask.prompt, special=True)
        if ask.prompt is not None:
            return check_ids(ask.prompt, self._vocab_size)
        return await self._chat_ids(ask.messages)

    async def _chat_ids(self, messages: tuple[Turn, ...]) -> list[int]:
        turns = list(messages)
        if self._settings.system_prompt and all(turn.role != "system" for turn in turns):
            turns.insert(0, Turn("system", self._settings.system_prompt))
        given = [msgspec.structs.asdict(turn) for turn in turns]
        try:
            text = await asyncio.to_thread(self._renderer.text, given, generate=True)
        except ChatTemplateError as error:  # these messages are the client's
            raise UsageError(str(error)) from error
        return await self._tokenized(text, special=False)

    async def _tokenized(self, text: str, *, special: bool) -> list[int]:
        encodable = text.encode("utf-8", "replace").decode("utf-8")
        body = {"content": encodable, "add_special": special, "parse_special": True}
        return [int(token) for token in (await self._embedded().post("/tokenize", body))["tokens"]]

    def _embedded(self) -> Instance:
        assert self._embedder is not None
        return self._embedder

    def _request(self, ids: list[int], mix: Mapping[str, float]) -> dict[str, Any]:
        """What every request to the answering instance carries. Without all scales it would be answered from a slot
        whose keys and values another mix has made."""
        scales = [{"id": number, "scale": mix.get(name, 0.0)} for number, name in enumerate(self.adapters)]
        return {
            "prompt": ids,
            "lora": scales,
            "cache_prompt": True,
            "return_tokens": True,
            "samplers": ["temperature", "top_p"],
        }

    async def _distribution(self, ids: list[int], mix: Mapping[str, float]) -> Any:
        """log p [V] of the next token in nats, float64; tokens that are not told are left out."""
        assert self._answerer is not None
        body = {**self._request(ids, mix), "n_predict": 1, "n_probs": 1 << 20, "temperature": 0.0}
        # the bias only steers which token is drawn, so that the answer is not an empty end of text
        body["logit_bias"] = [[int(ids[-1]), 1000.0]]
        answer = await self._answerer.post("/completion", body)
        entries = answer["completion_probabilities"][0]["top_logprobs"]
        found = np.full(1 + max(entry["id"] for entry in entries), -1e4)
        for entry in entries:
            found[entry["id"]] = entry["logprob"]
        return found


def _told(item: dict[str, Any], count: int) -> TokenLogprob:
    """Raises NotFinite where llama.cpp has no number to tell."""
    if item["logprob"] is None:
        raise NotFinite
    top = tuple((int(one["id"]), str(one["token"]), float(one["logprob"])) for one in item["top_logprobs"][:count])
    return TokenLogprob(int(item["id"]), str(item["token"]), float(item["logprob"]), top)
