"""Two texts compared by words: nothing is lost, nothing invented, and what is the same is found."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from dlm_widgets.word_diff import counts, word_diff

TEXTS = st.lists(st.sampled_from(["a", "b", "tide", " ", "  ", "\n", "Ünder", "."]), max_size=30).map("".join)


@given(TEXTS, TEXTS)
def test_the_parts_make_up_both_texts(old: str, new: str) -> None:
    parts = word_diff(old, new)
    assert "".join(new[part.start : part.end] for part in parts if part.kind != "gone") == new
    before = [old[part.start : part.end].split() for part in parts if part.kind == "gone"]
    same = [new[part.start : part.end].split() for part in parts if part.kind == "same"]
    assert sorted(chain.from_iterable(before + same)) == sorted(old.split())
    for part in parts:
        if part.kind == "same":
            word = new[part.start : part.end].rstrip()
            assert old[part.old_start : part.old_start + len(word)] == word
    found = counts(parts, old, new)
    assert found["same"] + found["gone"] == len(old.split())
    assert found["same"] + found["added"] == len(new.split())


@given(TEXTS)
def test_the_same_text_has_no_difference(text: str) -> None:
    assert {part.kind for part in word_diff(text, text)} <= {"same"}


def test_gone_words_stand_before_those_in_their_place() -> None:
    old, new = "the tide is high at six", "the tide was very high\nat six o'clock"
    shown = [(part.kind, (old if part.kind == "gone" else new)[part.start : part.end]) for part in word_diff(old, new)]
    assert [(kind, text.strip()) for kind, text in shown] == [
        ("same", "the"), ("same", "tide"), ("gone", "is"), ("added", "was very"), ("same", "high"), ("same", "at"),
        ("same", "six"), ("added", "o'clock"),
    ]  # fmt: skip
