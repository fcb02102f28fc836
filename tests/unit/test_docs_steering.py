"""A reader who knows the documents finds every item by its name: in a page, and under that name in the program."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from dlm_tui import gate, model, scoring
from dlm_tui.cli.score import add_arguments as score_arguments
from dlm_tui.cli.train import add_arguments as train_arguments
from dlm_tui.store.adapter_kind import DEEP_ENOUGH, SELECTIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROTOCOLS, STEERING = ((DOCS / name).read_text() for name in ("protocols.md", "steering.md"))


def test_every_name_of_the_page_is_public() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", PROTOCOLS, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert {"ScoringBackend", "ModulatedPiSSA", "PiSSAHistoryBake", "RollingLogprob"} <= set(names)
    missing = [name for name in names if not any(hasattr(package, name) for package in (scoring, model, gate))]
    assert missing == []


@pytest.mark.parametrize(
    "words",
    [
        "norm-matched", "U diag(S) Vh", "never a silent zero", "rows of one batch", "stacked along the rank axis",
        "`GateMixResolution`: `entries`", "`banner_lines`", "`safe_for_concurrent_views`", "`layer_range`",
    ],
)  # fmt: skip
def test_where_this_program_differs_is_said(words: str) -> None:
    assert words in PROTOCOLS


def test_steering_is_told_by_name() -> None:
    wanted = [*SELECTIONS, str(DEEP_ENOUGH), "tail depth", "c = 0", "--form modulated", "alt+p", "warm@1"]
    assert [word for word in wanted if word.lower() not in STEERING.lower()] == []
    parser = argparse.ArgumentParser()
    train_arguments(parser)
    for flag in ("--parameterization", "--selection", "--rank", "--signed", "--no-signed", "--coefficient"):
        assert flag in STEERING and flag in parser._option_string_actions
    assert "--calibration FILE" in STEERING
    parser = argparse.ArgumentParser()
    score_arguments(parser)
    for flag in ("--sweep", "--chosen", "--rejected", "--csv", "--lambda", "--null-view", "--rank-scale", "--text"):
        assert flag in STEERING and flag in parser._option_string_actions
