"""A setting that is refused: the place, what it may be, and what was meant."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from dlm_tui.refused_field import place_of, refusal


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["nf4", "int8"] | None = None
    rates: dict[str, float] = {}


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    names: list[str] = []
    inner: Inner | None = None
    on: bool = False


@pytest.mark.parametrize(
    ("given", "place", "sentence"),
    [
        ({"count": 0}, "count", "it must be a whole number of at least 1"),
        ({"count": 10}, "count", "it must be a whole number of at most 9"),
        ({"count": "many"}, "count", "it must be a whole number, not text"),
        ({"share": 1.0}, "share", "it must be a number below 1.0"),
        ({"share": 0.0}, "share", "it must be a number above 0.0"),
        ({"names": ["a", 1]}, "names[1]", "it must be text, not a whole number"),
        ({"on": "yes"}, "on", "it must be true or false, not text"),
        ({"inner": 3}, "inner", "it must be a table or nothing, not a whole number"),
        ({"inner": {"kind": "nf5"}}, "inner.kind", "it must be int8 or nf4, not 'nf5'"),
        ({"inner": {"rates": {"a": []}}}, "inner.rates[...]", "it must be a number, not a list"),
        ({"inner": {"kinds": 1}}, "inner", "there is no key 'kinds': did you mean kind?"),
        ({"zzz": 1}, "", "there is no key 'zzz'; there are count, share, names, inner, on"),
        ({"inner": {"kind": "x - at `$.on`"}}, "inner.kind", "it must be int8 or nf4, not 'x - at `$.on`'"),
    ],
)
def test_a_refused_field_says_where_and_what_it_may_be(given: dict[str, Any], place: str, sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(given, Outer)
    assert (place_of(refused.value), refusal(refused.value, Outer)) == (place, sentence)
