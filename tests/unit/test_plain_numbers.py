"""Numbers as a person writes them."""

from __future__ import annotations

import math

import pytest

from dlm_tui.plain_numbers import number, whole_number


def test_plain_numbers_are_read() -> None:
    assert [whole_number(text) for text in ("3", "-12", "+4", " 5 ")] == [3, -12, 4, 5]
    assert [number(text) for text in ("1e-4", "-.5", "3", "inf")] == [1e-4, -0.5, 3.0, math.inf]


@pytest.mark.parametrize("text", ["", "x", "٣", "３", "1_000", "1,5", "9" * 5000])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        whole_number(text)
    if not text.isascii() or not text.isdecimal():
        with pytest.raises(ValueError, match=r"."):
            number(text)
