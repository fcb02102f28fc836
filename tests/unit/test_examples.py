"""Every program under `examples/` runs, offline, and prints figures that make sense."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlm_tui.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output_of(example: Path, *before: str, after: Sequence[str] = ()) -> str:
    """What the example prints, with arguments before and after its name; it must end well."""
    ended = subprocess.run(
        [sys.executable, *before, str(example), *after],
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
    if example.stem == "sharded":
        losses = [float(found) for found in re.findall(r"loss ([\d.]+)", output)]
        assert losses[-1] < losses[0] / 2 and "1 processes, 100% of the weights" in output
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


@pytest.mark.slow
def test_two_processes_with_half_of_the_base_each_train_the_same_adapter(tmp_path: Path) -> None:
    document = tmp_path / "notes.dlm"
    example = runpy.run_path(str(ROOT / "examples" / "sharded.py"))
    document.write_text(example["DOCUMENT"] + "".join(example["SECTION"].format(boat, boat + 2) for boat in range(7)))
    launch = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0 --dynamo_backend no"
    outputs = []
    for count in (1, 2):
        before = [*launch.split(), "--mixed_precision", "no", "--num_processes", str(count)] if count > 1 else []
        after = [str(document), "facts", str(tmp_path / f"by-{count}")]
        outputs.append(output_of(ROOT / "examples" / "sharded.py", *before, after=after))
    assert "2 processes, 50% of the weights" in outputs[1]
    alone, together = ([float(found) for found in re.findall(r"loss ([\d.]+)", output)] for output in outputs)
    assert together == pytest.approx(alone, abs=2e-4) and len(alone) == 6
    one, two = (load_file(tmp_path / f"by-{count}" / "adapter_model.safetensors") for count in (1, 2))
    assert all(torch.allclose(two[name], tensor, atol=1e-3) for name, tensor in one.items())
    home = tmp_path / "home"
    command = ["adapter", "import", str(document), "facts", str(tmp_path / "by-2"), "--replace", "--home", str(home)]
    assert main(command) == 0


def test_every_example_says_how_it_is_run() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert f"python examples/{example.name}" in example.read_text()
