"""A path in a command that is told names that file when it is copied into a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dlm_tui.cli.copyable import copyable
from dlm_tui.shell_word import shell_word

NAMES = [
    "plain.dlm",
    "two words.dlm",
    "it's.dlm",
    "--x.dlm",
    "-n",
    "bidi\u202ename.dlm",
    "a\x1b[31m\n'b\\c.dlm",
    "$(id).dlm",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_same_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("found")
    word = shell_word(name)
    assert word.isprintable()
    ran = subprocess.run(
        ["bash", "-c", f"LC_ALL=C.UTF-8; cat {word}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "found"), ran.stderr


def test_a_path_is_no_option_in_what_a_command_tells() -> None:
    assert copyable("`dlm-tui train DOC` trains it", "--x.dlm") == "`dlm-tui train ./--x.dlm` trains it"
