"""The base's shape, its training loop and its files."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama network."""

    vocab: int = 3072
    hidden: int = 256
    layers: int = 5
    heads: int = 8
    kv_heads: int = 2
    feed_forward: int = 768
    context: int = 1024

    def config(self) -> LlamaConfig:
        """The transformers configuration; token ids as `tokens.SPECIAL` orders them."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            max_position_embeddings=self.context,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=3,
        )


@dataclass(frozen=True)
class Schedule:
    """Optimisation settings. Rates are per step; lengths in tokens."""

    steps: int = 1800
    row_length: int = 256
    batch_rows: int = 16
    long_row_length: int = 1024
    long_share: float = 0.12
    matrix_rate: float = 0.02
    rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.05
    muon: bool = True
    seed: int = 7

    def factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a twentieth."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))

    def long_from(self) -> int:
        """The first step that sees long rows."""
        return int(self.steps * (1 - self.long_share))


def new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A freshly initialised network in float32."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(shape.config())
    model.train()
    return model


def optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings and norms; Muon for the matrices of the blocks (or AdamW for everything)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if not schedule.muon:
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95))]
    return [
        torch.optim.AdamW(others, lr=schedule.rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay, momentum=0.95),
    ]


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats over ids [rows, length]."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1]))
    return F.cross_entropy(logits.float(), ids[:, 1:].reshape(-1))


def train(
    model: LlamaForCausalLM,
    short_rows: torch.Tensor,
    long_rows: torch.Tensor,
    schedule: Schedule,
    *,
    device: str = "cpu",
    bfloat16: bool = False,
    compiled: bool = False,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    report: Callable[[int, float, float], None] | None = None,
) -> float:
    """Trains in place; resumes from `checkpoint` when it is there. Returns the seconds spent in this process.

    `compiled` fuses the element-wise work (a quarter less time on a processor) where a C++ compiler is at hand.
    """
    model.to(device)
    compute_loss = torch.compile(loss_of) if compiled and shutil.which("c++") else loss_of
    steppers = optimizers(model, schedule)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in steppers]
    first = _restore(checkpoint, model, steppers, schedule) if checkpoint else 0
    started = time.monotonic()
    running = 0.0
    for step in range(first, schedule.steps):
        ids = _batch(short_rows, long_rows, schedule, step).to(device)
        for optimizer, base_rates in zip(steppers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * schedule.factor(step)
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            loss = compute_loss(model, ids)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in steppers:
            optimizer.step()
        keep = min(0.95, (step - first) / (step - first + 1))
        running = keep * running + (1 - keep) * float(loss.detach())
        if report and (step % 25 == 0 or step + 1 == schedule.steps):
            report(step, running, time.monotonic() - started)
        if checkpoint and (step + 1) % checkpoint_every == 0:
            _save(checkpoint, model, steppers, schedule, step + 1)
    return time.monotonic() - started


def _batch(short: torch.Tensor, long: torch.Tensor, schedule: Schedule, step: int) -> torch.Tensor:
    if step >= schedule.long_from():
        rows = schedule.batch_rows * schedule.row_length // schedule.long_row_length
        at = (step - schedule.long_from()) * rows
        source = long
    else:
        rows, source = schedule.batch_rows, short
        at = step * rows
    index = [(at + i) % len(source) for i in range(rows)]
    return source[index].long()


def _save(
    path: Path,
    model: LlamaForCausalLM,
    steppers: list[torch.optim.Optimizer],
    schedule: Schedule,
    step: int,
) -> None:
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    for number, optimizer in enumerate(steppers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value).clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, beside, metadata={"step": str(step), "schedule": json.dumps(asdict(schedule))})
    beside.replace(path)


def _restore(path: Path, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer], schedule: Schedule) -> int:
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    if json.loads(metadata["schedule"]) != asdict(schedule):
        raise ValueError(f"{path} belongs to another schedule; remove it to start again")
    tensors = load_file(path)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(steppers):
        whole = optimizer.state_dict()
        prefix = f"optimizer.{number}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                index, key = name[len(prefix) :].split(".", 1)
                whole["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(whole)
    return int(metadata["step"])


def halved(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with its weights rounded to float16 and back: exactly what a reader of the saved files gets."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model.to("cpu").eval()


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes config.json (dtype float32, so readers compute in it), generation_config.json and float16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    for key in ("_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 3})
    weights = {n: p.detach().half().contiguous() for n, p in model.named_parameters()}
    beside = folder / f"model.safetensors.{os.getpid()}.tmp"
    save_file(weights, beside, metadata={"format": "pt"})
    beside.chmod(0o644)
    beside.replace(folder / "model.safetensors")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
