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


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def said(
    capsys: pytest.CaptureFixture[str], timeline: list[tuple[float, Progress]], *, quiet: bool
) -> list[tuple[float, str]]:
    """The lines that these steps give at these seconds, each with its second."""
    clock = Clock()
    narration, lines = Narration(quiet=quiet, clock=clock), []
    for second, step in timeline:
        clock.now = 100.0 + second
        narration(step)
        lines += [(second, line) for line in capsys.readouterr().err.splitlines()]
    return lines


LONG: list[tuple[float, Progress]] = [
    (0, Progress("live", 0, 30)),
    *((second, Progress("live", second, 30)) for second in range(1, 31)),
    (31, Progress("frozen", 1, 4)),
    (33, Progress("frozen", 4, 4)),
    *((34 + second, Progress("load")) for second in range(30)),
]


def test_a_counted_stage_says_its_share_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, LONG, quiet=False) == [
        (0, "asking the live gate …"),
        (10, "asking the live gate · 33% · 20 s left"),
        (20, "asking the live gate · 67% · 10 s left"),
        (30, "asking the live gate · 100%"),
        (31, "measuring the frozen mix …"),
        (34, "loading …"),
    ]


def test_work_that_turns_out_long_speaks_where_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, LONG, quiet=True) == [
        (5, "asking the live gate · 17% · 25 s left"),
        (15, "asking the live gate · 50% · 15 s left"),
        (25, "asking the live gate · 83% · 5 s left"),
        (31, "measuring the frozen mix · 25%"),
        (36, "loading …"),
    ]
    assert said(capsys, LONG[:5], quiet=True) == []
    assert said(capsys, [(0, Progress("prepare", 0, 1)), (9, Progress("prepare", 1, 1))], quiet=True) == []
    training = [(float(at), Progress("sft", at, 100, scope="tone", loss=1.0)) for at in range(1, 101)]
    lines = [line for _, line in said(capsys, training, quiet=True)]
    assert lines[0].startswith("training tone · 5%") and 19 <= len(lines) <= 21


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
