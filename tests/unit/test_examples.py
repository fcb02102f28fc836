"""Every program under `examples/` runs, offline, and prints figures that make sense."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output_of(example: Path) -> str:
    """What the example prints; it must end well and without a warning of its own."""
    ended = subprocess.run(
        [sys.executable, str(example)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path) -> None:
    output = output_of(example)
    assert output.strip() and "nan" not in output.lower()
    if example.stem == "scoring":
        (before, after), *_ = re.findall(r"log p\(answer\): (-[\d.]+) nats in the base, (-[\d.]+)", output)
        assert float(after) > float(before) + 1
        (adapter, noise), *_ = re.findall(r"([\d.]+) nats by the adapter, ([\d.]+) by a random one", output)
        assert float(adapter) > float(noise) >= 0
    if example.stem == "rounds":
        first, *_ = re.findall(r"loss ([\d.]+) and ([\d.]+) nats per token \(base ([\d.]+) and ([\d.]+)\)", output)
        assert float(first[0]) < float(first[2]) and float(first[1]) < float(first[3])


def test_every_example_says_how_it_is_run() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert f"python examples/{example.name}" in example.read_text()
