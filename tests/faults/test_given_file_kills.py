"""Killed while it writes a file that a person named: that is old or new, and nothing stays beside it for good."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.conversation import new_conversation, save_conversation
from dlm_tui.document.prompt_set_files import write_cases
from tests.faults.stepping import KILLED, run_child
from tests.training_samples import write_document

OLD, NEW = '{"prompt": "old"}\n', '{"prompt": "new"}\n'


def export(folder: Path) -> None:
    write_cases(folder / "o.jsonl", NEW, replace=True)


def save(folder: Path) -> None:
    save_conversation(str(folder / "o.json"), new_conversation().all_turns, replace=True)


@pytest.mark.parametrize("write", [export, save])
def test_the_next_that_writes_it_clears_what_the_killed_one_left(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    kept = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    left = set()
    for step in itertools.count(1):
        ended = run_child(lambda _: write(tmp_path), kill_at=step)
        left |= {entry.name for entry in tmp_path.iterdir()} - set(kept)
        write(tmp_path)
        assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == kept, step
        if ended.code != KILLED:
            break
    assert left, "a killed one leaves something"


def test_doctor_names_it_and_repair_removes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = write_document(tmp_path, sections=1)
    link = tmp_path / "other" / "link.dlm"
    link.parent.mkdir()
    link.symlink_to(document)
    for folder in (document.parent, link.parent):
        (folder / "o.jsonl").write_text(OLD)
        for step in itertools.count(1):
            assert run_child(lambda _, folder=folder: export(folder), kill_at=step).code == KILLED
            if list(folder.glob("*.tmp.*")):
                break
    left = [path for folder in (document.parent, link.parent) for path in folder.glob("o.jsonl.tmp.*")]
    words = ["doctor", str(link), "--home", str(tmp_path / "home")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert all(f"litter      {path} is left of a process that ended. [--repair mends it]" in told for path in left)
    assert len(left) == 2 and all(path.exists() for path in left)
    assert main([*words, "--repair"]) == 0
    told = capsys.readouterr().out
    assert all(f"mended      {path}" in told and not path.exists() for path in left)
