"""Signed pairs: one adapter that gives the chosen answers at +C and the rejected ones at −C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from dlm_tui.training.adapter_trainer import AdapterTrainer
from dlm_tui.training.preference import answer_logprobs

Turned = Callable[[float], contextlib.AbstractContextManager[Any]]
"""A context in which the adapter counts so many times."""


class SignedTrainer(AdapterTrainer):
    """A Trainer whose batches are chosen rows followed by rejected rows, each under its own sign.

    Both signs share their weights, so that a step for one side is a step of the other: what +C does, −C undoes.
    """

    def __init__(self, *, coefficient: float, turned: Turned, **kwargs: Any):
        """`coefficient` is C; `turned` sets the adapter's coefficient for a forward pass."""
        super().__init__(**kwargs)
        self._coefficient, self._turned = coefficient, turned

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **more: Any
    ) -> Any:
        """Mean over pairs of ½ (−log p(chosen | +C) − log p(rejected | −C)), nats per token."""
        sides = [{name: tensor.chunk(2)[side] for name, tensor in inputs.items()} for side in (0, 1)]
        losses, outputs = [], None
        for sign, side in zip((1.0, -1.0), sides, strict=True):
            labels = side.pop("labels")
            with self._turned(sign * self._coefficient):
                outputs = model(**side)
            sums, lengths = answer_logprobs(outputs.logits, labels)
            losses.append(-(sums / lengths).mean())
        loss = torch.stack(losses).mean()
        return (loss, outputs) if return_outputs else loss
