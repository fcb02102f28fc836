"""The answers of the OpenAI interface, whole and in pieces. Plain dictionaries, encoded once. No torch."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from dlm_tui.serving.backend import Begun, Embedded, RoutedPrompt, ServedModel, TokenLogprob
from dlm_tui.serving.requests import Wanted
from dlm_tui.serving.stops import StopFilter
from dlm_tui.serving.views import Decision

WEIGHTS_HEADER = "X-DLM-Weights"


def decision_block(decision: Decision, seed: int | None = None) -> dict[str, Any]:
    """The `dlm` member: which view, under which weights, how sure, and why these."""
    block: dict[str, Any] = {
        "view": decision.view,
        "weights": decision.weights,
        "entropy": decision.entropy,
        "mode": decision.mode,
    }
    if decision.ood_score is not None:
        block |= {"ood_score": decision.ood_score, "is_ood": decision.is_ood}
    if decision.reason:
        block["reason"] = decision.reason
    if seed is not None:
        block["seed"] = seed
    return block


@dataclass
class _Choice:
    """One choice as it grows."""

    stop: StopFilter
    text: str = ""
    said: int = 0
    """Characters so far, with those that are held back."""
    tokens: int = 0
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    held: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    """Tokens, with where they begin in all that was said, of which no text has been shown yet."""


class AnswerForm:
    """Turns the events of one request into the interface's objects."""

    def __init__(self, wanted: Wanted, begun: Begun) -> None:
        self._wanted, self._begun = wanted, begun
        kind = "chatcmpl" if wanted.chat else "cmpl"
        self._object = "chat.completion" if wanted.chat else "text_completion"
        self._common = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}
        self.choices = [_Choice(StopFilter(wanted.stops)) for _ in range(wanted.ask.choices)]

    @property
    def dlm(self) -> dict[str, Any]:
        return decision_block(self._begun.decision, self._wanted.ask.seed)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, counted once, and of all choices."""
        said = sum(choice.tokens for choice in self.choices)
        prompt = self._begun.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}

    def take(
        self, number: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob], finish: str | None
    ) -> tuple[str, tuple[TokenLogprob, ...], str | None]:
        """Add a piece to its choice; returns what of it may be shown, and why the choice ends with it, if it does."""
        choice = self.choices[number]
        shown = choice.stop.push(text)
        if choice.stop.stopped:
            finish = "stop"
        elif finish is not None:
            shown += choice.stop.finish()
        choice.tokens += tokens
        choice.held += [(choice.said, one) for one in logprobs]
        choice.said += len(text)
        choice.text += shown
        choice.finish = finish
        ready = choice.held
        if choice.stop.stopped or finish is None:
            # as their text: a token of a stop sequence is not part of the answer
            ready = [(offset, one) for offset, one in choice.held if offset < len(choice.text)]
        choice.held = choice.held[len(ready) :]
        told = tuple(one for _, one in ready)
        choice.offsets += [offset for offset, _ in ready]
        choice.logprobs += told
        return shown, told, finish

    def whole(self) -> bytes:
        """The answer in one object."""
        return _json(
            {
                **self._common,
                "object": self._object,
                "choices": [self._finished(number, choice) for number, choice in enumerate(self.choices)],
                "usage": self.usage,
                "dlm": self.dlm,
            }
        )

    def opening(self) -> list[bytes]:
        """The events that begin a streamed answer: the role of every choice."""
        if not self._wanted.chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [
            self._event({"index": number, "delta": delta, "logprobs": None, "finish_reason": None})
            for number in range(len(self.choices))
        ]

    def piece(self, number: int, text: str, told: Sequence[TokenLogprob], finish: str | None, last: bool) -> bytes:
        """One event. The last one of an answer carries the decision, unless a usage event comes behind it."""
        choice = self.choices[number]
        logprobs = None
        if told:
            offsets = choice.offsets[-len(told) :]
            logprobs = _chat_logprobs(told) if self._wanted.chat else _completion_logprobs(told, offsets)
        if self._wanted.chat:
            shown: dict[str, Any] = {"index": number, "delta": {"content": text} if text else {}}
        else:
            shown = {"index": number, "text": text}
        shown |= {"logprobs": logprobs, "finish_reason": finish}
        return self._event(shown, dlm=last and not self._wanted.include_usage)

    def closing(self) -> bytes:
        """The usage event, where it was asked for, and the interface's end mark."""
        end = b"data: [DONE]\n\n"
        if not self._wanted.include_usage:
            return end
        body = {**self._common, "object": self._chunk, "choices": [], "usage": self.usage, "dlm": self.dlm}
        return _sse(body) + end

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._wanted.chat else "text_completion"

    def _event(self, choice: dict[str, Any], *, dlm: bool = False) -> bytes:
        body = {**self._common, "object": self._chunk, "choices": [choice]}
        if self._wanted.include_usage:
            body["usage"] = None
        if dlm:
            body["dlm"] = self.dlm
        return _sse(body)

    def _finished(self, number: int, choice: _Choice) -> dict[str, Any]:
        asked = self._wanted.ask.logprobs
        if self._wanted.chat:
            return {
                "index": number,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _chat_logprobs(choice.logprobs) if asked else None,
                "finish_reason": choice.finish,
            }
        return {
            "index": number,
            "text": choice.text,
            "logprobs": _completion_logprobs(choice.logprobs, choice.offsets) if asked else None,
            "finish_reason": choice.finish,
        }


def models(names: Sequence[str], served: ServedModel) -> bytes:
    """`GET /v1/models`."""
    return _json({"object": "list", "data": [_model(name, served) for name in names]})


def model(name: str, served: ServedModel) -> bytes:
    """`GET /v1/models/NAME`."""
    return _json(_model(name, served))


def embeddings(found: Sequence[Embedded], name: str, *, packed: bool) -> bytes:
    """`POST /v1/embeddings`; `packed` as base64 of little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(one) if packed else one.vector}
        for index, one in enumerate(found)
    ]
    tokens = sum(one.tokens for one in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": name, "usage": usage})


def routes(found: Sequence[RoutedPrompt]) -> bytes:
    """`POST /v1/route`: one decision per input."""
    data = [
        {
            "object": "route",
            "index": index,
            **decision_block(one.decision),
            "normalised_entropy": one.decision.normalised_entropy,
            "tokens": one.tokens,
            "truncated": one.truncated,
        }
        for index, one in enumerate(found)
    ]
    return _json({"object": "list", "data": data})


def error(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """The interface's error object."""
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _model(name: str, served: ServedModel) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": served.created, "owned_by": "dlm-tui", "root": served.base}


def _chat_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token(one.text, one.logprob),
            "top_logprobs": [_token(text, logprob) for _, text, logprob in one.top],
        }
        for one in told
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # half a character has no text of its own
    data = None if "\ufffd" in text else list(text.encode("utf-8", "surrogatepass"))
    return {"token": text, "logprob": logprob, "bytes": data}


def _completion_logprobs(told: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [{text: logprob for _, text, logprob in one.top} for one in told],
        "text_offset": list(offsets),
    }


def _packed(one: Embedded) -> str:
    return base64.b64encode(np.asarray(one.vector, dtype="<f4").tobytes()).decode()


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _sse(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
