"""A path in a command that is told names that file when it is copied into a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dlm_tui.cli.copyable import copyable
from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.shell_word import shell_word
from dlm_tui.store import Store
from tests.training_samples import write_document

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


def test_a_told_command_finds_the_store_that_was_meant() -> None:
    text = "`dlm-tui doctor DOC --repair` mends it, `dlm-tui parse DOC` reads it, `dlm-tui unpack p.pack` is another"
    assert copyable(text, "a.dlm", "my home") == (
        "`dlm-tui doctor a.dlm --repair --home 'my home'` mends it, `dlm-tui parse a.dlm` reads it, "
        "`dlm-tui unpack p.pack` is another"
    )
    assert copyable("`dlm-tui train DOC`", "a.dlm") == "`dlm-tui train a.dlm`"


def test_commands_tell_the_home_that_they_were_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = write_document(tmp_path, sections=2)
    home = tmp_path / "elsewhere"
    store = Store(home, load(document).dlm_id).create()
    store.manifest_path.write_text("{")
    main(["show", str(document), "--home", str(home)])
    assert f"dlm-tui doctor {document} --repair --home {home}`" in "".join(capsys.readouterr())
