"""Prompt sets in and out of CSV and JSONL, and what may be expected of an answer."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest

from dlm_tui.document.expectations import Expectation, broken, read_expectation
from dlm_tui.document.prompt_set_files import cases_csv, cases_jsonl, csv_text, read_cases
from dlm_tui.document.prompt_sets import PromptCase, PromptSets, PromptSetsError
from dlm_tui.errors import UsageError

WEIGHTS = {"tone": 0.7, "facts": 0.3}


@pytest.mark.parametrize(
    ("cell", "text", "met"),
    [
        ("Here.", " Here.\n", True),
        ("equals: Here.", "There.", False),
        ("contains: key", "the keys", True),
        ("contains:Key", "the keys", False),
        ("icontains: KEY", "the keys", True),
        ("not-contains: sorry", "Sorry", True),
        ("not-contains: sorry", "so sorry", False),
        ("starts-with: The", "The key", True),
        (r"regex: ^\d+$", "42", True),
        (r"not-regex: \d", "42", False),
        ("adapter: tone", "", True),
        ("adapter: facts", "", False),
        ("not-adapter: facts", "", True),
        ("https://x.example: yes", "https://x.example: yes", True),
        ("equals: contains: x", "contains: x", True),
    ],
)
def test_an_answer_is_as_expected_or_says_why_not(cell: str, text: str, met: bool) -> None:
    item = read_expectation(cell)
    assert read_expectation(str(item)) == item
    found = broken((item,), text, WEIGHTS)
    assert (found == []) is met
    assert all("should" in sentence for sentence in found)


def test_why_an_answer_is_not_as_expected() -> None:
    items = (Expectation("adapter", "facts"), Expectation("contains", "key"))
    assert broken(items, "no\nluck", WEIGHTS) == [
        "facts should have the largest weight, but tone has it with 0.70",
        "should contain 'key', but is 'no luck'",
    ]
    assert broken(items[:1], "", {}) == ["facts should have the largest weight, but no gate was asked"]


def test_foreign_patterns_are_bounded_and_nothing_is_run() -> None:
    began = time.process_time()
    found = broken((Expectation("regex", "(a|a|aa)+$"), Expectation("regex", "([a-z]+)+X")), "a" * 40 + "!", {})
    assert time.process_time() - began < 6 and len(found) == 2
    for cell in ("javascript: output.length", "llm-rubric: is nice", "similar(0.8): x", "python: 1", "regex: ("):
        with pytest.raises(UsageError if cell != "regex: (" else Exception):
            read_expectation(cell)


CSV = """question,__expected,__expected2,__description,adapter\r
Where is the key?,contains: pot,adapter: facts,a note,\r
"Two
lines",=2,,,tone\r
,,,,\r
"""


def test_promptfoos_csv_is_read() -> None:
    assert read_cases(CSV, "x.csv") == [
        PromptCase("Where is the key?", (Expectation("contains", "pot"), Expectation("adapter", "facts"))),
        PromptCase("Two\nlines", (Expectation("equals", "=2"), Expectation("adapter", "tone"))),
    ]
    assert read_cases("mine,__prefix,__suffix\nq,a ,!\n", "x.csv") == [PromptCase("a q!")]


def test_promptfoos_and_harness_lines_are_read() -> None:
    lines = [
        {"vars": {"prompt": "p"}, "assert": [{"type": "not-icontains", "value": "x"}, {"type": "equals", "value": 4}]},
        {"doc_id": 0, "doc": {"question": "q", "answer": "no"}, "target": "yes", "resps": [["maybe"]]},
        {"doc": {"text": "t", "answer": "a"}},
        {"prompt": "e", "expect": ["adapter: tone"], "adapter": "facts"},
        "plain",
    ]
    assert read_cases("\n".join(map(json.dumps, lines)) + "\n\n", "x.jsonl") == [
        PromptCase("p", (Expectation("icontains", "x", True), Expectation("equals", "4"))),
        PromptCase("q", (Expectation("equals", "yes"),)),
        PromptCase("t", (Expectation("equals", "a"),)),
        PromptCase("e", (Expectation("adapter", "tone"), Expectation("adapter", "facts"))),
        PromptCase("plain"),
    ]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("a,b\n1,2\n", "x.csv", "names no column of prompts"),
        ("prompt\na,b\n", "x.csv", "line 2 has 2 cells for 1 columns"),
        ("prompt,__expected\na,javascript: 1\n", "x.csv", "line 2: the expectation 'javascript'"),
        ('prompt\n"a', "x.csv", "line 2 is no CSV"),
        ("prompt\n", "x.csv", "holds no prompt"),
        ("{", "x.jsonl", "line 1 is no JSON"),
        ("[" * 100_000, "x.jsonl", "line 1 is no JSON"),
        ('{"a": 1}', "x.jsonl", "line 1: there is no prompt"),
        ('\n{"vars": {"prompt": "p"}, "assert": [{"type": "python", "value": "1"}]}', "x.jsonl", "line 2: the exp"),
        ("", "x.txt", "neither .csv nor .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_cases(text, name)


CASES = [
    PromptCase("=cmd|' /C calc'!A0", (Expectation("equals", "-1+2"), Expectation("contains", "@x", True))),
    PromptCase("'quoted"),
    PromptCase('a\nb, "c"', (Expectation("regex", "^a$"),)),
]


def test_both_forms_read_back_and_formulas_are_defused() -> None:
    assert read_cases(cases_csv(CASES), "x.csv") == CASES
    assert read_cases(cases_jsonl(CASES), "x.jsonl") == CASES
    rows = list(csv.reader(io.StringIO(cases_csv(CASES))))
    assert rows[0] == ["prompt", "__expected1", "__expected2"] and rows[1][0] == "'=cmd|' /C calc'!A0"
    risky = ["=1", "+1", "-1", "@a", "\t=1", "\r=1"]
    cells = list(csv.reader(io.StringIO(csv_text(["a"] * 6, [risky]), newline="")))[1]
    assert all(cell.startswith("'") for cell in cells)
    assert csv_text(["n"], [[-1.5]]) == "n\r\n-1.5\r\n", "a number is no text"


def test_the_file_of_sets_keeps_expectations_and_opens_as_it_was(tmp_path: Path) -> None:
    sets = PromptSets(tmp_path / "x.dlm")
    sets.path.write_text('{"old": ["a", "b"]}')
    assert sets.cases() == {"old": [PromptCase("a"), PromptCase("b")]}
    sets.save({"old": ["a", PromptCase("b")], "new": CASES})
    assert json.loads(sets.path.read_text())["old"] == ["a", "b"], "readable by older programs"
    assert sets.cases()["new"] == CASES and sets.load()["new"] == [case.prompt for case in CASES]
    sets.path.write_text('{"bad": [{"prompt": "p", "expect": ["javascript: 1"]}]}')
    with pytest.raises(PromptSetsError, match="does not hold sets of prompts: the expectation 'javascript'"):
        sets.cases()
