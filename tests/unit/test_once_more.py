"""A failed test is tried once more on a build machine only, at most three in a run, and the summary says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = "from tests.once_more import pytest_runtest_protocol, pytest_terminal_summary\n"
TESTS = """
import pathlib, pytest

@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    seen = pathlib.Path(__file__).with_name(f"seen-{{number}}")
    first = not seen.exists()
    seen.touch()
    assert not first, f"the first time {{number}}"

def test_good():
    pass
"""


def run(folder: Path, flaky: int, ci: str, *words: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS.format(flaky=flaky))
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, str(folder)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stdout


@pytest.mark.parametrize("ci", ["", "1", "false"])
def test_nothing_is_tried_again_elsewhere(tmp_path: Path, ci: str) -> None:
    code, output = run(tmp_path, 1, ci)
    assert code == 1 and "1 failed, 1 passed" in output and "once more" not in output


def test_a_build_machine_tries_once_more_and_lists_it(tmp_path: Path) -> None:
    code, output = run(tmp_path, 2, "true")
    assert code == 0 and "3 passed" in output
    assert "tried once more: 2 of at most 3" in output
    assert re.search(r"test_flaky\[0\]\n", output) and "the first time 0" in output and "the first time 1" in output


@pytest.mark.parametrize("words", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_no_more_than_three(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, output = run(tmp_path, 5, "true", *words)
    assert code == 1 and "2 failed, 4 passed" in output
    assert "tried once more: 3 of at most 3" in output
