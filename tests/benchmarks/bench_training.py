"""Adapter training on short rows at the 135M shape: rows per second and peak memory, a process for every measurement.

"The dlm tool's way" is transformers' Trainer as that tool sets it up: eight rows a step (its effective batch), padded
to the longest, in random order, with activation checkpointing, which is TRL's default.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import Row, skipped, smol_folder

BATCH = 8
_JOB = """
import json, sys, tempfile, time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from dlm_tui.document import TrainerSettings, parse_bytes
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.registry import resolve_base
from dlm_tui.progress import run_to_end
from dlm_tui.training.finetune import finetune
from dlm_tui.training.plan import plan_training
from dlm_tui.training.rows import AdapterRows, collate_sequences

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

side, folder, rows, batch = json.loads(sys.argv[1])
modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
torch.ones(64, 64) @ torch.ones(64, 64)
before = status("VmRSS")
base = run_to_end(load_base(resolve_base("hf:bench/smol", Path(folder)), device="cpu"))
losses = []
if side == "ours":
    document = parse_bytes(f'''---
dlm_id: 01KTESTTESTTESTTESTTESTTES
base_model: pocket
training: {{num_epochs: 1, lora_dropout: 0.0, micro_batch_size: {batch}, sequence_len: 512, warmup_ratio: 0.0}}
---
::instruction::
### Q
a
### A
b
'''.encode())
    plan = plan_training(document, base_modules=modules)
    began = time.perf_counter()
    given = AdapterRows(train=rows)
    finetune(base, plan, plan.adapters[0], given, lambda step: losses.append(step.loss))
else:
    began = time.perf_counter()
    set_seed(42)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=get_peft_model(base.model, config),
            args=TrainingArguments(
                output_dir=scratch, per_device_train_batch_size=batch, learning_rate=2e-4, num_train_epochs=1,
                lr_scheduler_type="cosine", seed=42, data_seed=42, use_cpu=True, logging_steps=1, save_strategy="no",
                report_to=[], disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
                activation_checkpointing=side == "dlm", dataloader_pin_memory=False,
            ),
            data_collator=lambda given: collate_sequences(given, 0),
            train_dataset=rows,
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("result", json.dumps([time.perf_counter() - began, status("VmHWM") - before, losses]))
"""


def rows(quick: bool) -> list[Row]:
    """Two rows: speed against the dlm tool's way, peak memory against the plain Trainer."""
    speed, memory = "train an adapter on short rows (rows/s)", "peak memory of training an adapter"
    if not Path("/proc/self/status").is_file():
        return [skipped(speed, "dlm's way", "≥ 2×", "no /proc"), skipped(memory, "Trainer", "≤ 1×", "no /proc")]
    given = short_rows(2 * BATCH if quick else 6 * BATCH)
    turns = [[_run(side, given) for side in ("ours", "dlm", "plain")] for _ in range(1 if quick else 3)]
    ratio = statistics.median(dlm[0] / ours[0] for ours, dlm, _ in turns)
    ours_rate, dlm_rate = (len(given) / statistics.median(turn[side][0] for turn in turns) for side in (0, 1))
    apart = max(abs(a - b) for a, b in zip(turns[0][0][2], turns[0][2][2], strict=True))
    if apart > 1e-4:
        raise AssertionError(f"losses differ by {apart}")
    exact = f"losses of all steps within {apart:.1e} nats of the plain Trainer's"
    peaks = [statistics.median(turn[side][1] for turn in turns) / 1e6 for side in (0, 2)]
    share = peaks[0] / peaks[1]
    padded = "transformers Trainer, 8 padded rows a step"
    dlm_way = f"{padded}, activation checkpointing"
    return [
        Row(speed, ours_rate, dlm_rate, dlm_way, ratio, "≥ 2×", ratio >= 2, exact, "rows/s"),
        Row(memory, peaks[0], peaks[1], padded, share, "≤ 1×", share <= 1.0, "above the libraries' own", "MB"),
    ]


def short_rows(count: int) -> list[list[int]]:
    """Questions with short answers: lengths log-normal around 28 tokens, from 6 to 200."""
    draw = random.Random(1)
    lengths = [min(200, max(6, round(draw.lognormvariate(3.33, 0.8)))) for _ in range(count)]
    return [[draw.randrange(10, 2000) for _ in range(length)] for length in lengths]


def _run(side: str, given: list[list[int]]) -> tuple[float, int, list[float]]:
    """Seconds of the training without loading, peak bytes, the losses."""
    job = json.dumps([side, str(smol_folder()), given, BATCH])
    done = subprocess.run([sys.executable, "-c", _JOB, job], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    line = next(line for line in done.stdout.splitlines() if line.startswith("result "))
    seconds, peak, losses = json.loads(line.removeprefix("result "))
    return seconds, peak, losses
