"""What a headless command says on stderr while it works."""

from __future__ import annotations

import io

import pytest

from dlm_tui.cli.narration import Narration
from dlm_tui.progress import NOTE, WARNING, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STEPS = [
    Progress("base", 0, 2, "looking for the base"),
    *(Progress("sft", done, 100, scope="tone", loss=1.0, eta=12.0) for done in range(1, 101)),
    Progress(NOTE, text="2 rows\x1b[31m were cut"),
    Progress(WARNING, text="the gate diverged"),
]


def test_without_a_terminal_a_stage_is_a_line_and_a_count_about_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    narration = Narration()
    for step in STEPS:
        narration(step)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "looking for the base …"
    assert lines[1] == "training tone · 1% · 12 s left · loss 1.000"
    counted = [line for line in lines if line.startswith("training tone")]
    assert len(counted) == 21 and counted[-1] == "training tone · 100% · loss 1.000"
    assert lines[-2:] == ["2 rows\\x1b[31m were cut", "warning: the gate diverged"]


def test_short_work_is_silent_without_a_terminal_but_for_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    narration = Narration(quiet=True)
    for step in STEPS:
        narration(step)
    assert capsys.readouterr().err.splitlines() == ["2 rows\\x1b[31m were cut", "warning: the gate diverged"]


def test_on_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    narration = Narration(quiet=True)
    for step in STEPS[:2]:
        narration(step)
    shown = "\rlooking for the base · 0%\x1b[K\rtraining tone · 1% · 12 s left · loss 1.000\x1b[K"
    assert terminal.getvalue() == shown
    narration(Progress(NOTE, text="a note"))
    assert terminal.getvalue() == f"{shown}\na note\n", "a note stands on a line of its own"
