"""Wherever a training is killed behind its last step: what is said of it is so, and it is gone on with once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERY_STATE = {"unfinished", "owes its gate", "owes its effects", "whole"}


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_what_is_said_of_a_training_killed_at_its_end_is_so(tmp_path: Path, stride: int) -> None:
    command = [sys.executable, "-m", "tests.faults.end_kills", str(tmp_path), str(stride)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert set(states) == EVERY_STATE and sum(states.values()) >= 120 // stride, states
