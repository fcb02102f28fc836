"""An adapter is declared in place: one more line, every other byte as it was."""

from __future__ import annotations

import pytest

from dlm_tui.document import parse_bytes
from dlm_tui.document.declare import declare_adapter
from dlm_tui.errors import DlmTuiError, UsageError

HEAD = "---\ndlm_id: 01KYXWRTDQCVMENTYXWRDQ0000\ndlm_version: 15\nbase_model: pocket\n"
BODY = "---\n::instruction::\n### Q\nWhere?\n### A\nHere.\n"


@pytest.mark.parametrize(
    ("training", "added"),
    [
        ("", "training:\n  adapters:\n    tone: {}\n"),
        ("training:\n  seed: 7\n", "  adapters:\n    tone: {}\n"),
        ("training:\n    adapters:\n      facts: {lora_r: 4}\n    # the gate\n    seed: 7\n", "      tone: {}\n"),
        ("training:\n  adapters:\n    facts:\n      lora_r: 4\n\n  gate:\n    steps: 9\n", "    tone: {}\n"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_line_is_added_and_nothing_else_changes(training: str, added: str, end: str) -> None:
    data = (HEAD + training + BODY).replace("\n", end).encode()
    changed = declare_adapter(data, "tone")
    assert changed.decode().replace("\r\n", "\n").replace(added, "", 1) == data.decode().replace("\r\n", "\n")
    before, after = parse_bytes(data), parse_bytes(changed)
    assert after.adapter_names == (*before.adapter_names, "tone")
    assert after.sections == tuple(after.sections) and len(after.sections) == len(before.sections)


def test_what_is_declared_stays_as_it_is() -> None:
    data = (HEAD + "training:\n  adapters:\n    tone: {}\n" + BODY).encode()
    assert declare_adapter(data, "tone") is data


@pytest.mark.parametrize("training", ["training: {seed: 7}\n", "training:\n  adapters: {facts: {}}\n"])
def test_flow_style_is_left_to_the_person(training: str) -> None:
    with pytest.raises(DlmTuiError, match="by hand"):
        declare_adapter((HEAD + training + BODY).encode(), "tone")


def test_flat_settings_that_a_name_would_break_are_left_to_the_person() -> None:
    with pytest.raises(DlmTuiError, match="by hand"):
        declare_adapter((HEAD + "training:\n  lora_r: 4\n" + BODY).encode(), "tone")


def test_an_illegal_name_is_refused() -> None:
    with pytest.raises(UsageError, match="not an adapter name"):
        declare_adapter((HEAD + BODY).encode(), "../x")
