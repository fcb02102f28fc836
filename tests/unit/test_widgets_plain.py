"""Foreign text made safe; bars; heat; marks."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from dlm_widgets.adapter_palette import ANSI, DARK, LIGHT, marks_for, rich_color
from dlm_widgets.bars import bar_segments, bar_text
from dlm_widgets.history_chart import HeightTicks, _integer_ticks, thin
from dlm_widgets.sanitize import assemble, fit, literal, sanitize
from dlm_widgets.token_heat import HeatToken, heat_content


@given(st.text())
def test_nothing_that_acts_or_hides_is_left(text: str) -> None:
    shown = sanitize(text)
    for char in shown:
        assert char == "\n" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert "\n" not in sanitize(text, one_line=True)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_ordinary_text_is_unchanged_and_never_markup(text: str) -> None:
    assert sanitize(text) == text
    assert literal(text).plain == text and literal(text).spans == []
    assert assemble((text, "bold")).plain == text


@given(st.text(), st.integers(0, 40), st.booleans())
def test_fit_is_exactly_as_wide_as_asked(text: str, width: int, right: bool) -> None:
    assert cell_len(fit(text, width, right=right)) == width


def test_what_is_shown_instead() -> None:
    assert sanitize("a\x1b[0m\u202eb\u200b\x00\x7f") == "a␛[0m‹U+202E›b‹U+200B›␀␡"
    assert sanitize("e\u0301") == "e\u0301"
    assert sanitize("e" + "\u0301" * 50) == "e" + "\u0301" * 3 + "…"
    assert sanitize("a\r\nb\tc") == "a\nb    c"


@pytest.mark.parametrize(
    ("fraction", "filled"), [(0.0, 0), (0.5, 5), (1.0, 10), (2.0, 10), (-1.0, 0), (float("nan"), 0)]
)
def test_bars_are_proportional_and_clamped(fraction: float, filled: int) -> None:
    text = bar_text(fraction, 10)
    assert len(text) == 10 and text.count("\u2588") == filled
    segments = bar_segments(fraction, 10, Style(bold=True), Style(dim=True), ghost=0.9)
    assert sum(segment.cell_length for segment in segments) == 10


def test_bars_resolve_an_eighth_of_a_cell() -> None:
    assert len({bar_text(step / 80, 10) for step in range(81)}) == 81


def test_marks_are_distinct_and_stable() -> None:
    names = [f"a{index}" for index in range(8)]
    for palette in (DARK, LIGHT, ANSI):
        marks = marks_for(names, palette)
        assert len({mark.color for mark in marks.values()}) == 8 == len({mark.glyph for mark in marks.values()})
    sixteen = marks_for([f"a{index}" for index in range(16)])
    assert len({mark.glyph for mark in sixteen.values()}) == 16, "told apart without colour"
    assert all(cell_len(mark.glyph) == 1 for mark in sixteen.values())
    many = marks_for([f"a{index}" for index in range(100)])
    assert len({(mark.glyph, mark.color) for mark in many.values()}) == 100
    assert rich_color("ansi_red") == "red" and rich_color("#123456") == "#123456"


def test_heat_shows_strength_without_colour_too() -> None:
    tokens = [
        HeatToken("a", 0.0, "#e69f00", "●"),
        HeatToken(" b", 0.9, "#e69f00", "●"),
        HeatToken(" c", 0.9, "ansi_red", "◆"),
    ]
    content = heat_content(tokens, "#14171c")
    assert content.plain == "a ●b ◆c"
    styles = [str(span.style) for span in content.spans]
    assert any(" on #" in style for style in styles) and any("underline" in style for style in styles)
    assert heat_content([HeatToken("x", float("nan"), "nonsense")], "#000000").plain == "x"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True)), max_size=400))
def test_thinning_keeps_extremes_and_drops_what_is_not_finite(points: list[tuple[float, float]]) -> None:
    finite = [point for point in points if abs(point[1]) < float("inf")]
    kept = thin(points, 40)
    assert len(kept) <= 44 and set(kept) <= set(finite)
    if finite:
        assert max(p[1] for p in kept) == max(p[1] for p in finite)
        assert min(p[1] for p in kept) == min(p[1] for p in finite)


def test_ticks_are_whole_runs() -> None:
    assert _integer_ticks(1, 4, 8) == [1, 2, 3, 4]
    assert _integer_ticks(3, 3, 8) == [3]
    assert all(tick == int(tick) for tick in _integer_ticks(1, 100000, 6)) and len(_integer_ticks(1, 100000, 6)) <= 7


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6), st.integers(2, 40), st.sampled_from([1.0, 1e-3, 1e3]))
def test_labels_of_an_axis_never_meet_and_say_where_they_stand(low: float, span: float, rows: int, unit: float) -> None:
    low, high = low * unit, (low + span) * unit
    axis = HeightTicks()
    axis.rows = rows
    ticks = axis.get_ticks(low, high)
    labels = axis.get_labels_for_ticks(ticks)
    lines = [round((tick - low) / (high - low) * rows) for tick in ticks] if high > low else [0]
    assert len(set(lines)) == len(ticks) <= 9
    assert all(len(label) <= 5 for label in labels)
    apart = ticks[1] - ticks[0] if len(ticks) > 1 else max(map(abs, ticks), default=0.0)
    for tick, label in zip(ticks, labels, strict=True):
        assert not label or abs(float(label) - tick) <= 0.051 * apart


def test_an_axis_has_round_numbers() -> None:
    axis = HeightTicks()
    axis.rows = 6
    assert axis.get_labels_for_ticks(axis.get_ticks(-112, 0)) == ["-100", "-50", "0"]
    assert axis.get_labels_for_ticks(axis.get_ticks(0, 1.2)) == ["0.0", "0.5", "1.0"]
    assert axis.get_labels_for_ticks(axis.get_ticks(-0.031, 0.001)) == ["-0.03", "-0.02", "-0.01", "0.00"]
    assert axis.get_labels_for_ticks(axis.get_ticks(0, 1.5e-4)) == ["0", "5e-5", "1e-4", ""]
    assert axis.get_labels_for_ticks(axis.get_ticks(3.4, 3.4)) == ["3.4"]
