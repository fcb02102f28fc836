"""A request that cannot be answered names the field, as clients of the OpenAI interface read it."""

from __future__ import annotations

import pytest

from dlm_tui.serving.requests import BadRequest, ChatRequest, decode


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
