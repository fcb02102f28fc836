"""`cpt.embed_warmup_steps`: a low-rank pair on the token embedding that trains for the first steps, then stays.

Continued pretraining reads words that the base has seldom seen; their embeddings move first, with everything else, and
are then held still so that the layers learn on top of embeddings that no longer change. The pair is part of the
adapter: the base's embedding and a tied output layer are not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from dlm_tui.model import Base


def embedding_name(base: Base) -> str:
    """The module name of the base's token embedding."""
    embedding = cast("Any", base.model).get_input_embeddings()
    return next(str(name) for name, module in base.model.named_modules() if module is embedding)


class EmbeddingWarmup(TrainerCallback):
    """Lets the embedding pair of `model` learn in the first `steps` optimiser steps of a phase, and not behind them.

    Its gradients are dropped as soon as they are there, so that neither the optimiser's momentum nor the clipping of
    the others' gradients sees them. The pair stays a trained weight, so checkpoints hold it and its optimiser state.
    """

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        self._steps, self._learns = steps, steps > 0
        self._pair = [
            weight for name, weight in model.named_parameters() if ".lora_embedding_" in name and weight.requires_grad
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before optimiser step `state.global_step` (from 0)."""
        self._learns = state.global_step < self._steps

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """The pair's gradients go through here while the phase runs."""
        handles = [weight.register_post_accumulate_grad_hook(self._drop) for weight in self._pair]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _drop(self, weight: torch.Tensor) -> None:
        if not self._learns:
            weight.grad = None
