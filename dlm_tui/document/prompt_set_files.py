"""Sets of prompts as other programs write them: CSV and JSONL in and out (docs/prompt-sets.md).

CSV and test cases are those of promptfoo, the JSON lines of lm-evaluation-harness's samples are read, too. Nothing in
a file is ever run: no templates, no scripts.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.document.expectations import Expectation, expectation, read_expectation
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.given_files import write_given

PROMPT_FIELDS = ("prompt", "question", "input", "query", "instruction", "text")
ANSWER_FIELDS = ("expected", "target", "answer", "output")
_MOST_PROMPTS = 100_000
_LONGEST_CELL = 1 << 20
_RISKY = ("=", "+", "-", "@", "\t", "\r")


def read_cases(text: str, name: str) -> list[PromptCase]:
    """The prompts of a file called `name` (`.csv`, `.jsonl` or `.ndjson`). Raises UsageError that names the line."""
    suffix = Path(name).suffix.lower()
    if suffix == ".csv":
        found = _csv_cases(text)
    elif suffix in (".jsonl", ".ndjson"):
        found = _json_cases(text)
    else:
        raise UsageError(f"{name} is neither .csv nor .jsonl")
    cases: list[PromptCase] = []
    for line, case in found:
        if len(cases) == _MOST_PROMPTS:
            raise UsageError(f"{name} has more than {_MOST_PROMPTS} prompts (line {line})")
        cases.append(case)
    if not cases:
        raise UsageError(f"{name} holds no prompt")
    return cases


def write_cases(path: Path, text: str, *, replace: bool = False) -> None:
    """Write a file of prompts, or of the results of one, to a name that a person gave.

    Another such file there is replaced with `replace`. Raises NameTaken, UsageError for anything else there, OSError.
    """

    def is_one(data: bytes) -> bool:
        with contextlib.suppress(DlmTuiError, ValueError):
            return bool(read_cases(data.decode("utf-8-sig"), path.name))
        return False

    write_given(path, text.encode(), "list of prompts", is_one, replace=replace)


def cases_csv(cases: Sequence[PromptCase]) -> str:
    """promptfoo's CSV: `prompt`, then as many `__expected` columns as are needed."""
    most = max((len(case.expect) for case in cases), default=0)
    header = ["prompt", *expected_columns(most)]
    return csv_text(header, [[case.prompt, *map(str, case.expect)] for case in cases])


def expected_columns(count: int) -> list[str]:
    """`__expected`, or `__expected1`, `__expected2` … where there are several."""
    return ["__expected"] if count == 1 else [f"__expected{number}" for number in range(1, count + 1)]


def cases_jsonl(cases: Sequence[PromptCase]) -> str:
    """promptfoo's test cases: `{"vars": {"prompt": …}, "assert": [{"type": …, "value": …}]}` a line."""
    lines = []
    for case in cases:
        line: dict[str, Any] = {"vars": {"prompt": case.prompt}}
        if case.expect:
            kinds = [("not-" if item.negated else "") + item.kind for item in case.expect]
            pairs = zip(kinds, case.expect, strict=True)
            line["assert"] = [{"type": kind, "value": item.value} for kind, item in pairs]
        lines.append(line)
    return json_lines(lines)


def json_lines(values: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(msgspec.json.encode(value).decode() + "\n" for value in values)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    """A CSV file (RFC 4180). Text that a spreadsheet would take for a formula gets an apostrophe in front; short rows
    are filled up."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    for row in rows:
        cells = [_defused(cell) if isinstance(cell, str) else "" if cell is None else cell for cell in row]
        writer.writerow(cells + [""] * (len(header) - len(cells)))
    return out.getvalue()


def _defused(text: str) -> str:
    return f"'{text}" if text.startswith((*_RISKY, "'")) else text


def _undefused(text: str) -> str:
    """A cell as it was before `_defused`: an apostrophe in front of what needs one goes."""
    return text[1:] if text.startswith("'") and text[1:].startswith((*_RISKY, "'")) else text


def _csv_cases(text: str) -> Iterator[tuple[int, PromptCase]]:
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        column = _prompt_column(header)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                raise UsageError(f"line {reader.line_num} has {len(row)} cells for {len(header)} columns")
            values = {name: _undefused(cell) for name, cell in zip(header, row, strict=False)}
            try:
                case = _csv_case(values, column)
            except DlmTuiError as error:
                raise UsageError(f"line {reader.line_num}: {error}") from None
            if case is not None:
                yield reader.line_num, case
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} is no CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _prompt_column(header: Sequence[str]) -> str:
    found = next((name for wanted in PROMPT_FIELDS for name in header if name.lower() == wanted), None)
    if found is None:
        plain = [name for name in header if name and not name.startswith("__") and name.lower() not in ANSWER_FIELDS]
        found = plain[0] if len(plain) == 1 else None
    if found is None:
        raise UsageError(f"the first line names no column of prompts: it needs one of {', '.join(PROMPT_FIELDS)}")
    return found


def _csv_case(values: Mapping[str, str], column: str) -> PromptCase | None:
    prompt = values.get("__prefix", "") + values.get(column, "") + values.get("__suffix", "")
    if not prompt.strip():
        return None
    expect: list[Expectation] = []
    for name, cell in values.items():
        lower = name.lower()
        if not cell.strip() or name == column:
            continue
        numbered = lower.startswith("__expected") and lower.removeprefix("__expected").isdecimal()
        if numbered or lower == "__expected" or lower in ANSWER_FIELDS:
            expect.append(read_expectation(cell))
        elif lower == "adapter":
            expect.append(expectation("adapter", cell.strip()))
    return PromptCase(prompt, tuple(expect))


def _json_cases(text: str) -> Iterator[tuple[int, PromptCase]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
            case = _json_case(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"line {number} is no JSON: {error}") from None
        except DlmTuiError as error:
            raise UsageError(f"line {number}: {error}") from None
        yield number, case


def _json_case(value: Any) -> PromptCase:
    if isinstance(value, str):
        return PromptCase(value)
    if not isinstance(value, dict):
        raise UsageError("a line is neither an object nor a string")
    inner = next((value[key] for key in ("vars", "doc") if isinstance(value.get(key), dict)), value)
    prompt = _text_of(inner, PROMPT_FIELDS)
    if prompt is None or not prompt.strip():
        raise UsageError(f"there is no prompt: it needs one of {', '.join(PROMPT_FIELDS)}")
    expect: list[Expectation] = []
    for item in _list_of(value, "assert"):
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            raise UsageError("an assertion has no type")
        kind = item["type"]
        expect.append(expectation(kind.removeprefix("not-"), str(item.get("value", "")), negated=kind[:4] == "not-"))
    for item in _list_of(value, "expect"):
        expect.append(read_expectation(str(item)))
    answer = _text_of(value, ("__expected", *ANSWER_FIELDS)) or _text_of(inner, ANSWER_FIELDS)
    if answer is not None and answer.strip() and not expect:
        expect.append(read_expectation(answer))
    adapter = value.get("adapter")
    if isinstance(adapter, str) and adapter:
        expect.append(expectation("adapter", adapter))
    return PromptCase(prompt, tuple(expect))


def _text_of(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    found = next((value[name] for name in names if isinstance(value.get(name), (str, int, float))), None)
    return None if found is None else str(found)


def _list_of(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name, [])
    if not isinstance(found, list):
        raise UsageError(f"{name!r} is no list")
    return found
