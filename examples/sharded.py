"""One adapter of a document on several devices, each of which holds a part of the base's weights (FSDP).

    python examples/sharded.py
    accelerate launch --multi_gpu --num_processes 8 examples/sharded.py notes.dlm facts trained
    dlm-tui adapter import notes.dlm facts trained --replace

accelerate starts the processes, torch shards and brings a layer together when it runs, PEFT adds and saves LoRA. The
rows are those that `dlm-tui train` would train on, with the document's rank, dropout, learning rate and epochs, but not
its schedule and optimiser; without arguments a small document on the embedded base. Every process loads the base into
its memory and keeps its part. Losses are in nats per token.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm_tui.document import load
from dlm_tui.model import base_of, load_base
from dlm_tui.progress import run_to_end
from dlm_tui.training.plan import plan_training
from dlm_tui.training.rows import collate_sequences, filler_id, tokenised

DOCUMENT = """---
dlm_id: 01KSHARDEDEXAMP1ESHARDED0K
dlm_version: 15
base_model: pocket
training:
  num_epochs: 3
  adapters:
    facts: {lora_r: 4, lora_dropout: 0.0, learning_rate: 0.01}
---
"""
SECTION = "::instruction#facts::\n### Q\nWhat does boat {0} carry?\n### A\nBoat {0} carries {1} crates of salt.\n\n"


def train(path: Path, name: str, folder: Path) -> None:
    """Train the adapter `name` of a document on its text and instruction rows, and save it to `folder` as PEFT does."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    document = load(path)
    base = run_to_end(load_base(base_of(document), device="cpu"))
    plan = plan_training(document, base_modules=base.source.target_modules)
    adapter = next(one for one in plan.adapters if one.name == name)
    rows = tokenised(adapter.rows, plan.sequence_len, base).train
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(plan.seed)
    model: Any = get_peft_model(base.model, config).train()
    mesh = init_device_mesh(device.type, (world,))
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weights = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(weights.values(), lr=adapter.phases[0].learning_rate)
    size = max(world, plan.micro_batch * plan.grad_accum)
    for epoch in range(math.ceil(adapter.phases[0].epochs)):
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            tokens = sum(len(row) - 1 for row in batch)
            own = batch[rank::world]
            given = collate_sequences(own or batch[:1], filler_id(base))
            inputs = {key: value.to(device) for key, value in given.items()}
            # gradients are averaged over the processes, and one without a row takes part all the same
            share = sum(len(row) - 1 for row in own) / tokens
            loss = model(**inputs).loss * share
            (loss * world).backward()
            optimiser.step()
            optimiser.zero_grad()
            told = loss.detach()
            distributed.all_reduce(told)
            if rank == 0:
                print(f"epoch {epoch + 1}: loss {float(told):.4f}", flush=True)
    here = sum(weight.to_local().numel() for weight in model.parameters() if isinstance(weight, DTensor))
    share = here / sum(weight.numel() for weight in model.parameters())
    whole = {key: weight.full_tensor().cpu() for key, weight in weights.items()}  # all take part in putting it together
    if rank == 0:
        model.save_pretrained(folder, state_dict=whole)
        print(f"{world} processes, {share:.0%} of the weights in the first")


def main() -> None:
    """The document, the adapter and the folder of the command line, or an example of them."""
    if "RANK" not in os.environ:  # nobody launched this: one process
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            example = Path(scratch) / "example.dlm"
            example.write_text(DOCUMENT + "".join(SECTION.format(boat, boat + 2) for boat in range(6)))
            path, name, folder = sys.argv[1:] or (str(example), "facts", str(Path(scratch) / "trained"))
            train(Path(path), name, Path(folder))
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
