"""Versions survive a kill at every file-system step of going back, dropping and keeping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_kill_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.version_kills", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert sum(kills.values()) >= 100 and min(kills.values()) >= 5, kills
