"""torchao's 8-bit weights pass the tests of quantised bases.

The package is put into a folder of its own for this: once installed, transformers and PEFT load it at every start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "torchao==0.18.0"


@pytest.mark.slow
def test_quantised_bases_are_right_with_torchao_too(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), PACKAGE]
    installed = subprocess.run(line, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{PACKAGE} cannot be fetched here: {installed.stderr.strip().splitlines()[-1]}")
    files = [f"tests/unit/test_{name}_quantised.py" for name in ("model", "training")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "torchao", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "7 passed" in done.stdout, done.stdout[-500:]
