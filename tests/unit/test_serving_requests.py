"""A request that cannot be answered names the field, as clients of the OpenAI interface read it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlm_tui.serving.requests import (
    BadRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    RouteRequest,
    chat_wanted,
    decode,
)
from dlm_tui.serving.views import Models


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "messages"),
        (b'{"messages": 3}', "messages"),
        (b'{"messages": [{"role": "nobody"}]}', "messages[0].role"),
        (b'{"messages": [{"content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_p": 0}', "top_p"),
        (b"[]", None),
    ],
)
def test_what_is_wrong_or_missing_is_named(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body, ChatRequest)
    assert caught.value.param == param


def test_bytes_that_are_no_text_are_told_with_their_place() -> None:
    body = b'{"messages": [{"role": "user", "content": "caf\xe9"}]}'
    with pytest.raises(BadRequest, match=rf"^the body is not JSON: .* 0xe9 in position {body.index(0xE9)}: "):
        decode(body, ChatRequest)


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


def refused(body: dict[str, Any], kind: type[Any] = ChatRequest) -> str | None:
    """The field that is refused."""
    with pytest.raises(BadRequest, match="is not supported here") as caught:
        decode(json.dumps(body).encode(), kind)
    return caught.value.param


@pytest.mark.parametrize(
    "change",
    [
        {"stop_token_ids": [5]}, {"min_tokens": 3}, {"ignore_eos": True}, {"bad_words": ["x"]}, {"grammar": "x"},
        {"guided_json": {}}, {"guided_regex": "x"}, {"structured_outputs": {}}, {"json_schema": {}}, {"typical_p": 0.5},
        {"length_penalty": 0.5}, {"use_beam_search": True}, {"logits_processors": []}, {"mirostat": 2},
        {"dry_multiplier": 0.8}, {"continue_final_message": True}, {"add_generation_prompt": False},
        {"chat_template": "x"}, {"truncate_prompt_tokens": 5}, {"prediction": {}}, {"n_predict": 5}, {"options": {}},
        {"reasoning_effort": "high"}, {"function_call": {"name": "f"}}, {"a field of next year": 0},
        {"frequency_penalty": False}, {"best_of": True}, {"echo": 0},
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change
    assert refused({**CHAT, **change}) == name
    decode(json.dumps({**CHAT, name: None}).encode(), ChatRequest)  # as if it was not given


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"prompt": "x", "suffix": "y"}, CompletionRequest, "suffix"),
        ({"prompt": "x", "messages": []}, CompletionRequest, "messages"),
        ({"input": "x", "truncate": "END"}, EmbeddingsRequest, "truncate"),
        ({"input": "x", "model": "base"}, RouteRequest, "model"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, ChatRequest, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "refusal": "no"}]}, ChatRequest, "messages[0].refusal"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, ChatRequest, "messages[0].prefix"),
        ({**CHAT, "stream": True, "stream_options": {"x": 1}}, ChatRequest, "stream_options.x"),
    ],
)
def test_so_is_a_field_of_another_request_or_of_a_message(body: dict[str, Any], kind: type[Any], field: str) -> None:
    assert refused(body, kind) == field


def test_stream_options_belong_to_a_stream() -> None:
    asked = decode(json.dumps({**CHAT, "stream_options": {"include_usage": True}}).encode(), ChatRequest)
    with pytest.raises(BadRequest, match="stream_options belong to stream: true"):
        chat_wanted(asked, Models(()), "", 8)


@pytest.mark.parametrize(
    "change",
    [
        # the openai package, LangChain
        {"model": "gated", "n": 1, "temperature": 0.7, "max_completion_tokens": 9, "logprobs": False, "stream": True,
         "stream_options": {"include_usage": True}, "user": "u", "store": True, "metadata": {"a": "b"},
         "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "parallel_tool_calls": True},
        # LiteLLM, Open WebUI, LobeChat, continue.dev
        {"frequency_penalty": 0, "presence_penalty": 0.0, "top_p": 1, "stop": ["x"], "tools": [], "tool_choice": "auto",
         "response_format": {"type": "text"}, "logit_bias": {}, "max_tokens": 4096, "seed": 1, "cache_prompt": True},
        # what the package makes of an answer, sent back
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x", "name": "kim"},
                      {"role": "assistant", "content": "y", "refusal": None, "annotations": [], "audio": None,
                       "function_call": None, "tool_calls": None, "reasoning_content": "hm"},
                      {"role": "user", "content": [{"type": "text", "text": "z", "cache_control": {}}]}]},
        # vLLM's defaults
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "use_beam_search": False,
         "stop_token_ids": [], "min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True,
         "add_generation_prompt": True},
    ],
)  # fmt: skip
def test_what_clients_send_without_being_asked_is_taken(change: dict[str, Any]) -> None:
    asked = decode(json.dumps({**CHAT, **change}).encode(), ChatRequest)
    assert chat_wanted(asked, Models(("tone",)), "", 8).ask.messages[-1].role == "user"
