"""Prompts beside a document: the file of named sets, what a label writes, weights before and after."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlm_tui.document.change_log import ChangeLog, DocumentChange
from dlm_tui.document.comparison import Moved, top
from dlm_tui.document.label import label_section
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_sets import PromptCase, PromptSets, PromptSetsError
from dlm_tui.errors import UsageError


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    assert sets.load() == {} and sets.prompts() == []
    sets.save({"mine": ["p"], "other": ["q", "p", ""]})
    assert sets.path == tmp_path / "x.prompts.json"
    assert sets.load() == {"mine": ["p"], "other": ["q", "p", ""]}
    assert sets.prompts() == ["p", "q"]


@pytest.mark.parametrize("data", [b"[1]", b'{"one": [1]}', b"{", b'{"one": ["\xff"]}', b"[" * 200_000])
def test_another_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    sets.path.write_bytes(data)
    with pytest.raises(PromptSetsError, match=r"x\.prompts\.json does not hold sets of prompts"):
        sets.load()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"s": ["precious one", "precious two"], "s": ["b"]}', "s"),
        ('{"s": [{"prompt": "precious", "prompt": "b"}]}', "prompt"),
    ],
)
def test_a_name_that_stands_twice_loses_nothing(tmp_path: Path, text: str, name: str) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    sets.path.write_text(text)
    with pytest.raises(PromptSetsError, match=rf"x\.prompts\.json .*: the name '{name}' stands twice"):
        sets.update(lambda there: there.update(c=[PromptCase("c")]))
    assert sets.path.read_text() == text


def test_a_file_that_cannot_be_read_or_is_too_large(tmp_path: Path) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    with sets.path.open("wb") as handle:
        handle.truncate((16 << 20) + 1)
    with pytest.raises(PromptSetsError, match="larger than 16 MiB"):
        sets.prompts()
    sets.path.unlink()
    sets.path.mkdir()
    with pytest.raises(PromptSetsError, match="cannot be read"):
        sets.load()
    sets.path.rmdir()
    sets.path.write_text(json.dumps({"a": []}))
    assert sets.load() == {"a": []}


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.dlm").touch()
    log = ChangeLog(tmp_path / "state" / "changes.json")

    def write(number: int) -> None:
        PromptSets(tmp_path / "a.dlm").update(lambda sets: sets.update({f"set {number}": [PromptCase("x")]}))
        NamedMixes(tmp_path / "a.dlm").update(lambda mixes: mixes.update({f"m{number}": {"tone": 1.0}}))
        log.add(DocumentChange.between("edit", b"before", b"before%d" % number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert len(PromptSets(tmp_path / "a.dlm").load()) == len(NamedMixes(tmp_path / "a.dlm").load()) == 40
    assert len(log.read()) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dlm", "a.mixes.json", "a.prompts.json", "state"]


def test_a_label_is_an_instruction_or_the_prompt_itself() -> None:
    assert label_section("  Why?\n", " Because. ") == ("instruction", "### Q\nWhy?\n### A\nBecause.")
    assert label_section(" Why?\n", None) == ("prose", " Why?\n")
    for prompt, answer in ((" \n", None), ("Why?", " ")):
        with pytest.raises(UsageError, match="is empty"):
            label_section(prompt, answer)


def test_before_and_after() -> None:
    change = Moved("p", {"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8})
    assert change.top_changed and change.distance == pytest.approx(0.7)
    assert not Moved("p", {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.4}).top_changed
    assert top({"a": 0.5, "b": 0.5}) == "a" and top({}) == ""


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"a": 1}', b"[" * 200_000, b'{"a": [' + b"[" * 100_000])
def test_a_damaged_file_is_in_nobodys_way(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    sets.path.write_bytes(data)
    assert sets.usable_prompts() == []
    assert "the saved prompts are left out" in caplog.text and "x.prompts.json" in caplog.text
    assert sets.path.read_bytes() == data
