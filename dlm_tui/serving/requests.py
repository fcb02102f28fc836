"""The requests of the OpenAI interface, checked field by field. No torch.

A field is served, or only informs (`metadata`, `store`, …) and is ignored, or has a value that changes nothing; every
other one is refused by name, as OpenAI's own server refuses what it does not know: an answer is never another one than
was asked for. `null` is a field that was not given.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dlm_tui.errors import UsageError
from dlm_tui.refused_field import place_of
from dlm_tui.serving.backend import Ask, Turn
from dlm_tui.serving.views import Models

DEFAULT_CHAT_TOKENS = 256
DEFAULT_COMPLETION_TOKENS = 16
"""What the interface's own description says for raw completions."""
MOST_STOPS = 16
MOST_INPUTS = 64

_INFORMING = {
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "request_id",
    "cache_prompt",
    "keep_alive",
}
"""Fields that no answer depends on."""

_INERT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "typical_p": (1, 1.0),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "best_of": (1,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "reasoning_effort": ("none", "medium"),
    "verbosity": ("medium",),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}
"""Fields that are not supported, with the values at which they change nothing."""

_INFORMING_OF_TURN = {
    "name",
    "annotations",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "cache_control",
    "tool_call_id",  # of a role that is refused with better words
}
"""Fields of a message that are no part of the conversation; former thoughts are left out of one."""

_INERT_OF_TURN: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "refusal": ("",)}
_INERT_OF_STREAM: dict[str, tuple[Any, ...]] = {
    "include_obfuscation": (True, False),
    "continuous_usage_stats": (False,),
}

_MISSING = re.compile(r"Object missing required field `([^`]+)`")


class BadRequest(UsageError):
    """A request that cannot be answered; `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = 1
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None


class ChatRequest(_Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(_Common, kw_only=True):
    """`POST /v1/completions`: one prompt, as raw text or token ids."""

    prompt: str | list[int | str | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """`POST /v1/embeddings`."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=MOST_INPUTS)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None


class RouteRequest(msgspec.Struct, kw_only=True):
    """`POST /v1/route`."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=MOST_INPUTS)]
    user: Annotated[str, Meta(max_length=256)] | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request: what is asked of the backend, and in which form the answer goes out."""

    ask: Ask
    model: str
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    chat: bool


def decode(body: bytes, kind: type[Any]) -> Any:
    """A request struct from JSON. Raises BadRequest saying which field is wrong."""
    try:
        body.decode()  # of bytes deep in it msgspec would say where they stand in their string
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadRequest("the body is not a JSON object")
    _refuse_unserved(raw, kind, _INFORMING, _INERT)
    messages = raw.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _refuse_unserved(message, _Message, _INFORMING_OF_TURN, _INERT_OF_TURN, f"messages[{number}].")
    if isinstance(options := raw.get("stream_options"), dict):
        _refuse_unserved(options, _StreamOptions, (), _INERT_OF_STREAM, "stream_options.")
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        missing = _MISSING.match(text)
        field = ".".join(part for part in (place_of(error), missing[1] if missing else "") if part)
        raise BadRequest(text, field or None) from None


def _refuse_unserved(
    given: Mapping[str, Any],
    kind: type[Any],
    informing: Collection[str],
    inert: Mapping[str, tuple[Any, ...]],
    place: str = "",
) -> None:
    """Raises BadRequest for a field that is none of `kind`'s, informs of nothing, and would change the answer."""
    served = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, value in given.items():
        if value is None or name in served or name in informing or _changes_nothing(value, inert.get(name, ())):
            continue
        field = f"{place}{name[:80]}"
        raise BadRequest(f"{field} is not supported here", field)


def _changes_nothing(value: object, inert: tuple[object, ...]) -> bool:
    """Whether a value is one of these; to Python false is 0 and true is 1, in a request neither is."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in inert)


def chat_wanted(request: ChatRequest, models: Models, client: str, rows: int) -> Wanted:
    """Raises BadRequest and UnknownModel."""
    turns = tuple(_turn(number, message) for number, message in enumerate(request.messages))
    if not any(turn.role == "user" for turn in turns):
        raise BadRequest("there is no user message to answer", "messages")
    wants = bool(request.logprobs)
    if request.top_logprobs and not wants:
        raise BadRequest("top_logprobs belongs to logprobs: true", "top_logprobs")
    return _wanted(
        request,
        models,
        client,
        rows,
        chat=True,
        messages=turns,
        max_tokens=request.max_completion_tokens or request.max_tokens or DEFAULT_CHAT_TOKENS,
        logprobs=wants,
        top_logprobs=request.top_logprobs or 0,
    )


def completion_wanted(request: CompletionRequest, models: Models, client: str, rows: int) -> Wanted:
    """Raises BadRequest and UnknownModel."""
    return _wanted(
        request,
        models,
        client,
        rows,
        chat=False,
        prompt=_prompt(request.prompt),
        max_tokens=request.max_tokens or DEFAULT_COMPLETION_TOKENS,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
    )


def texts(value: str | list[str]) -> list[str]:
    """One text or several. Raises BadRequest for empty ones."""
    found = [value] if isinstance(value, str) else value
    if not all(text.strip() for text in found):
        raise BadRequest("an input is empty", "input")
    return found


def _wanted(request: _Common, models: Models, client: str, rows: int, *, chat: bool, **asked: Any) -> Wanted:
    choices = request.n or 1
    if choices > rows:
        raise BadRequest(f"n is at most {rows} here", "n")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options belong to stream: true", "stream_options")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= 1000 for stop in stops):
        raise BadRequest(f"stop is up to {MOST_STOPS} texts of 1 to 1000 characters", "stop")
    ask = Ask(
        client=request.user or client,
        view=models.view(request.model),
        choices=choices,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed if request.seed is not None else secrets.randbits(32),
        **asked,
    )
    usage = request.stream_options is not None and request.stream_options.include_usage
    return Wanted(
        ask=ask,
        model=request.model or "gated",
        stops=tuple(stops),
        stream=bool(request.stream),
        include_usage=usage,
        chat=chat,
    )


def _turn(number: int, message: _Message) -> Turn:
    place = f"messages[{number}]"
    if message.role in ("tool", "function"):
        raise BadRequest(f"messages of the role {message.role} are not supported here", place)
    content = message.content
    if isinstance(content, list):
        strange = next((part.type for part in content if part.type != "text"), None)
        if strange is not None:
            raise BadRequest(f"content of the type {strange[:40]!r} is not supported here, only text", place)
        content = "".join(part.text for part in content)
    return Turn("system" if message.role == "developer" else message.role, content or "")


def _prompt(value: str | list[int | str | list[int]] | list[int]) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if len(value) == 1 and not isinstance(value[0], int):
        return _prompt(value[0])
    ids = [token for token in value if isinstance(token, int) and not isinstance(token, bool)]
    if len(ids) != len(value):
        raise BadRequest("one prompt per request: several prompts are several requests", "prompt")
    return tuple(ids)
