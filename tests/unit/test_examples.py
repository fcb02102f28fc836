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
    if example.stem == "steering":
        assert "mood: pissa cho_rej_min_std r32 ±2, as it was trained before" in output
        points = re.findall(r"c ([+-]\d): chosen (-[\d.]+), rejected (-[\d.]+), effect ([\d.]+)", output)
        chosen, rejected = ({c: float(point[side]) for c, *point in points} for side in (0, 1))
        assert chosen["+2"] > chosen["+0"] + 10 and rejected["-2"] > rejected["+0"] + 10
        assert chosen["-2"] < chosen["+0"] and rejected["+2"] < rejected["+0"] and points[2][3] == "0.000"
        together = re.findall(r"(-[\d.]+) in the base, (-[\d.]+) here", output)
        assert len(together) == 2 and all(float(after) > float(before) + 10 for before, after in together)
        assert float(output.rsplit(" ", 1)[1]) < 1e-3


def test_every_example_says_how_it_is_run() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert f"python examples/{example.name}" in example.read_text()
