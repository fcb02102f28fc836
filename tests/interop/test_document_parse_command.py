"""`dlm-tui parse`: any corpus can be checked from outside."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from dlm_tui.cli import parse
from dlm_tui.errors import UsageError
from tests.interop.conformance_corpus import Vector, vectors

_SHAPE = ("frontmatter", "sections", "gate_probes", "gate_samples", "gate_mode", "routing", "routing_error")


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    parse.add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    return parse.run(parser.parse_args(words))


def test_the_whole_corpus_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for vector in vectors():
        paths.append(tmp_path / f"{vector.name}.dlm")
        paths[-1].write_bytes(vector.data)
    begun = time.process_time()
    assert run("--json", *map(str, paths)) == 3
    assert len(paths) / (time.process_time() - begun) > 17, "a thousand documents a minute"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 350
    for line, path, vector in zip(lines, paths, vectors(), strict=True):
        check_line(json.loads(line), path, vector)


def check_line(got: dict[str, object], path: Path, vector: Vector) -> None:
    expected = vector.expected
    assert (got["path"], got["ok"]) == (str(path), expected["ok"])
    if not expected["ok"]:
        assert got["error"] == expected.get("suggested_error", expected["error"])
        assert str(path) in str(got["message"])
        if "suggested_error" not in expected:
            assert (got["line"], got["col"]) == (expected["line"], expected["col"])
        assert got.get("fields", []) == expected.get("fields", got.get("fields", []))
        assert got.get("byte_offset") == expected.get("byte_offset")
        return
    for key in (*_SHAPE, "training_rows", "training_rows_error"):
        assert got.get(key) == expected.get(key), key


def test_exit_codes_and_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, gone = tmp_path / "good.dlm", tmp_path / "bad.dlm", tmp_path / "gone.dlm"
    good.write_text("---\ndlm_id: 01J9ZK4M2N6P8Q0R1S3T5V7W9X\nbase_model: b\nsystem_prompt: '[bold]\\x1b'\n---\nhi")
    bad.write_text("hi")
    assert run("--json", str(good)) == 0
    assert run("--json", str(good), str(bad), str(good)) == 3
    assert run("--json", str(gone), str(good)) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ok"] for line in lines] == [True, True, False, True, False, True]
    assert run(str(good), str(bad)) == 3
    shown = capsys.readouterr()
    assert "valid, 1 section" in shown.out and "bad.dlm:1:1" in shown.err and "valid" not in shown.err


def test_mix_strings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--mix", "tone:1,facts:0.5", "--declared", "tone, facts") == 0
    assert run("--json", "--mix", "tone:inf") == 0
    assert run("--json", "--mix", "tone:-1") == 3
    assert run("--json", "--signed", "--mix", "tone:-1") == 0
    assert run("--json", "--mix", "ghost:1", "--declared", "tone") == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"spec": "tone:1,facts:0.5", "ok": True, "entries": [["tone", 1.0], ["facts", 0.5]]}
    assert lines[1]["entries"] == [["tone", {"$float": "inf"}]]
    assert lines[2]["ok"] is False and lines[2]["error"] == "InvalidMixSpecError" and "negative" in lines[2]["message"]
    assert lines[3]["entries"] == [["tone", -1.0]]
    assert "ghost" in lines[4]["message"]


@pytest.mark.parametrize("words", [[], ["a.dlm", "--mix", "a:1"], ["a.dlm", "--declared", "a"], ["a.dlm", "--signed"]])
def test_requests_that_make_no_sense(words: list[str]) -> None:
    with pytest.raises(UsageError):
        run(*words)
