"""The strip of a mix: a bar for each adapter, and nothing of the mix left out."""

from __future__ import annotations

from dlm_widgets.adapter_palette import marks_for
from dlm_widgets.turn_card import weight_strip

MARKS = marks_for(["knowledge", "tone"])


def test_every_adapter_has_a_bar() -> None:
    assert weight_strip({"tone": 1.0}, MARKS).plain == "\u25cf\u2581\u25c6\u2588"
    assert weight_strip({"tone": 7.0, "knowledge": float("nan")}, MARKS).plain == "\u25cf\u2581\u25c6\u2588"


def test_a_version_and_an_adapter_without_a_mark_are_named() -> None:
    strip = weight_strip({"tone@3": 1.0, "gone": 0.5, "gone@2": 1.0, "none": 0.0}, MARKS)
    assert strip.plain == "\u25cf\u2581\u25c6\u2581 \u25c6\u2588@3 \u25cb\u2585 gone \u25cb\u2588 gone@2"
    assert "\x1b" not in weight_strip({"\x1b[2J": 1.0}, MARKS).plain
