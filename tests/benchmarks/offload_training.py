"""`python -m tests.benchmarks.offload_training FOLDER`: what training on a base on the disk takes of memory and time.

Writes a random Llama shape of 1.5 GB of layers (float32) to FOLDER, once, and trains one adapter for a few steps in a
process of its own for each way. Prints the rows of the table in docs/large-bases.md. One thread each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save

from dlm_tui.store import Store
from dlm_tui.training import TrainRequest
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.phases import Step
from dlm_tui.training.rows import tokenised
from tests.tiny_models import offloaded_base, tiny_base, write_tiny_base
from tests.training_samples import sample

_SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
_WAYS = ("in memory", "in memory, activation checkpointing", "on the disk")


def main() -> None:
    """Every way, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=_WAYS, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(_measured(arguments.folder, arguments.way)))
        return
    if not (arguments.folder / "config.json").is_file():
        write_tiny_base(arguments.folder, "llama", tie_word_embeddings=False, **_SHAPE)
    for way in _WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.offload_training", str(arguments.folder), "--way", way]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        print(way, json.loads(done.stdout.splitlines()[-1]), flush=True)


def _measured(folder: Path, way: str) -> dict[str, Any]:
    """Peaks of resident memory in megabytes above what the libraries take, and seconds an optimiser step."""
    with tempfile.TemporaryDirectory() as scratch:
        before = _megabytes("VmRSS")
        disk = Path(scratch) / "disk"
        base = offloaded_base(folder, disk) if way == "on the disk" else tiny_base(folder)
        loading = _megabytes("VmHWM") - before
        document = sample(Path(scratch), sections=8, epochs=2)
        request = TrainRequest(document=document, store=Store(Path(scratch) / "home", document.dlm_id), base=base)
        plan = request.plan()
        checkpointing = "checkpointing" in way
        plan = replace(plan, trainer=msgspec.structs.replace(plan.trainer, activation_checkpointing=checkpointing))
        adapter = plan.adapters[0]
        work = AdapterWork(plan=plan, adapter=adapter, rows=tokenised(adapter.rows, plan.sequence_len, base))
        losses: list[float] = []

        def on_step(step: Step) -> None:
            if step.loss is not None:
                losses.append(step.loss)

        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        began = time.monotonic()
        result = train_adapter(base, work, on_step)
        return {
            "base": round(4 * base.parameters / 1e6),
            "loading": loading,
            "training": _megabytes("VmHWM") - before,
            "seconds": round((time.monotonic() - began) / len(losses), 2),
            "losses": losses,
            "adapter": hashlib.sha256(save(result.tensors)).hexdigest()[:16],
        }


def _megabytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 // 1_000_000 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
