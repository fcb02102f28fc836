"""How many rows go through the model at once: as many as memory allows, by an estimate that errs on the safe side."""

from __future__ import annotations

import sys
from typing import Any

import torch

from dlm_tui.platform import machine_memory

_GPU_SHARE, _MACHINE_SHARE = 0.85, 0.5


def training_memory(device: torch.device) -> int:
    """Bytes that a training may take: a share of the device's memory, or of the machine's where it has none.

    Of all there is, not of what is free now: the same machine always gives the same plan, so that a training that was
    interrupted goes on exactly.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _GPU_SHARE)
    machine = machine_memory()
    return sys.maxsize if machine is None else int(machine * _MACHINE_SHARE)


def activation_bytes(config: Any, tokens: int, *, item: int, checkpointing: bool) -> int:
    """Bytes that a step over `tokens` tokens keeps for its backward pass, `item` bytes a number.

    Per layer the inputs and outputs of the four attention and three feed-forward matrices and the adapters' dropped-out
    inputs; with activation checkpointing only each layer's input, and one layer at a time in full. The logits are kept
    three times in float32 (as they are, as log-probabilities, and their gradient).
    """
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = int(config.num_hidden_layers)
    layer = (20 * hidden + 8 * inner) * item
    kept = layers * hidden * item + layer if checkpointing else layers * layer
    return tokens * (kept + 3 * 4 * int(config.vocab_size))


def fitting_rows(model: Any, config: Any, longest: int, wanted: int, *, checkpointing: bool) -> int:
    """The most rows of `longest` tokens that fit beside the weights: `wanted`, or a power of two below it.

    Weights on the disk take none of it, and with such a base activation checkpointing is always on.
    """
    weight = next(model.parameters())
    weights = sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)
    checkpointing = checkpointing or any(parameter.is_meta for parameter in model.parameters())
    room = training_memory(weight.device) - weights
    rows = wanted
    while (
        rows > 1
        and activation_bytes(config, rows * longest, item=weight.element_size(), checkpointing=checkpointing) > room
    ):
        rows = 1 << (rows - 1).bit_length() - 1
    return rows
