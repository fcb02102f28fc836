"""What the HTTP side asks of whatever makes the answers. Plain data and protocols, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.model.chat import newest_question
from dlm_tui.model.views import View
from dlm_tui.serving.views import Decision


class QueueFull(DlmTuiError):
    """As many requests wait as may: the client should come back later."""


class NotFinite(DlmTuiError):
    """The numbers that the next token is drawn from are none."""

    def __init__(self) -> None:
        super().__init__("the answer's numbers overflowed under this mix; ask with smaller coefficients")


class BackendGone(DlmTuiError):
    """The engine has stopped; nothing can be answered."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the server is stopping")


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request for `choices` answers. `messages` for a chat, else `prompt` as raw text or token ids.

    `client` is whose turn it is in the queue; `max_tokens` None means as far as the context goes; `temperature`,
    `top_p` None the document's own; choice i draws with `seed + i`. With `logprobs` every token comes with its own
    log-probability and those of the `top_logprobs` likeliest, in nats at temperature 1.
    """

    client: str
    view: View
    messages: tuple[Turn, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    choices: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def question(self) -> str:
        """What is embedded: the last user message, or the raw prompt."""
        if isinstance(self.prompt, str):
            return self.prompt
        return newest_question([msgspec.structs.asdict(turn) for turn in self.messages])


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token with its log-probability in nats, and the likeliest ones in its place as (id, text, logprob)."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


class Begun(msgspec.Struct, frozen=True):
    """The request has been routed and is about to be answered."""

    decision: Decision
    prompt_tokens: int


class Piece(msgspec.Struct, frozen=True):
    """What one token adds to one choice. `tokens` counts it (0 for an end token); `finish` is stop or length."""

    choice: int
    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


class Embedded(msgspec.Struct, frozen=True):
    """A prompt embedding: mean of the base's final hidden states over at most 512 tokens, adapters off."""

    vector: tuple[float, ...]
    tokens: int


class RoutedPrompt(msgspec.Struct, frozen=True):
    """The gate's answer to one prompt."""

    decision: Decision
    tokens: int
    truncated: bool


Event = Begun | Piece | Embedded | RoutedPrompt | DlmTuiError


class Stream:
    """The events of one request, put by the engine and awaited by the HTTP side, both on the event loop."""

    def __init__(self, cancel: Callable[[], None], stop: Callable[[int], None]) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancel, self._stop = cancel, stop

    def put(self, event: Event) -> None:
        """Called by the backend, on the loop."""
        self._events.put_nowait(event)

    async def next(self) -> Begun | Piece | Embedded | RoutedPrompt:
        """The next event. Raises the error that ended the request instead."""
        event = await self._events.get()
        if isinstance(event, DlmTuiError):
            raise event
        return event

    async def begun(self) -> Begun:
        """The first event of an answer."""
        event = await self.next()
        assert isinstance(event, Begun)
        return event

    async def piece(self) -> Piece:
        """The next piece of an answer that has begun."""
        event = await self.next()
        assert isinstance(event, Piece)
        return event

    def stop_choice(self, choice: int) -> None:
        """End one choice early, as a stop sequence does. Its row is free before the next step."""
        self._stop(choice)

    def close(self) -> None:
        """Nobody listens any more: everything that is left of the request is dropped before the next step."""
        self._cancel()


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What is served. `adapters` are the trained ones; `created` in seconds since the epoch; `warnings` are those that
    opening told."""

    base: str
    adapters: tuple[str, ...]
    gate: str
    backend: str
    context_length: int
    hidden_size: int
    created: int
    versions: dict[str, int] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Load(msgspec.Struct, frozen=True):
    """How busy a backend is: rows being decoded, requests waiting, decode steps so far, trainings taken in."""

    running: int
    waiting: int
    steps: int
    reloads: int


class Backend(Protocol):
    """Makes answers, decisions and embeddings. All methods are called on the event loop and return at once."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """The trained adapters, in declared order."""
        ...

    @property
    def rows(self) -> int:
        """Answers made at once, which bounds the choices of one request."""
        ...

    @property
    def load(self) -> Load: ...

    @property
    def problem(self) -> str:
        """Why nothing is answered any more, one sentence; "" while requests are."""
        ...

    async def start(self) -> None:
        """Be ready to answer."""
        ...

    async def notes(self) -> list[str]:
        """What a person should know once it is ready."""
        ...

    def answer(self, ask: Ask) -> Stream:
        """Begun, then pieces. Raises QueueFull, UsageError, BackendGone."""
        ...

    def route(self, client: str, prompt: str) -> Stream:
        """One RoutedPrompt."""
        ...

    def embed(self, client: str, prompt: str) -> Stream:
        """One Embedded."""
        ...

    def refuse(self) -> None:
        """Take no more requests: what waits and what comes ends with BackendGone, what runs goes on."""
        ...

    def close(self) -> None:
        """End every request with BackendGone and let everything go. From any thread, and more than once."""
        ...


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The token ids of a raw prompt. Raises UsageError for one that the base does not have."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UsageError(f"the prompt's token {token} is none of the base's, which are 0 to {vocab_size - 1}")
    return list(ids)


def check_context(asked: int | None, base: int) -> None:
    """Raises UsageError for a context of more tokens than the base reads."""
    if asked is not None and asked > base:
        raise UsageError(f"--context is at most {base}, what the base reads")


def check_room(prompt_tokens: int, context_length: int) -> int:
    """How many tokens an answer may have. Raises UsageError for an empty prompt and one that leaves no room."""
    if not prompt_tokens:
        raise UsageError("the prompt is empty")
    room = context_length - prompt_tokens
    if room < 1:
        raise UsageError(f"the prompt has {prompt_tokens} tokens, and {context_length} are read here at most")
    return room
