"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from dlm_tui.counting import counted


@pytest.mark.parametrize(("number", "words"), [(0, "0 prompts"), (1, "1 prompt"), (2, "2 prompts")])
def test_only_one_is_singular(number: int, words: str) -> None:
    assert counted(number, "prompt") == words
