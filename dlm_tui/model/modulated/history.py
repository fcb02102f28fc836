"""Kept rounds of modulated adapters, composed exactly: their factors stacked along the rank axis, one hook
per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlm_tui.model.modulated.base import Modulated, through
from dlm_tui.model.modulated.lora import ModulatedLoRA
from dlm_tui.model.modulated.pissa import ModulatedPiSSA
from dlm_tui.model.modulated.targets import ModulationError, linear_layer


class EmptyHistory(ModulationError, ValueError):
    """There is no kept round to compose."""


class _Bake:
    """Σ_k c_k · scale_k · B_k · A_k x on every layer that any kept round targets; rounds are copied,
    not referenced.
    """

    def __init__(self, model: nn.Module, history: Sequence[tuple[Modulated, float]]) -> None:
        if not history:
            raise EmptyHistory("a history needs at least one kept round")
        self._is_active: Callable[[], bool] = lambda: True
        self._handles: list[RemovableHandle] = []
        self._stacks = _stack(history)
        layers = {
            name: linear_layer(model, name, lora_A.shape[1], lora_B.shape[0])
            for name, (lora_A, lora_B) in self._stacks.items()
        }
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))

    @property
    def ranks(self) -> dict[str, int]:
        """Total rank per layer."""
        return {name: len(lora_A) for name, (lora_A, _) in self._stacks.items()}

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """(lora_A [R, d_in], lora_B [d_out, R]) all scales in the latter: adds lora_B · lora_A · x."""
        return self._stacks[name]

    def remove(self) -> None:
        """Take the hooks off; the model is the base again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        lora_A, lora_B = self._stacks[name]

        def add(_layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            return y + through(args[0], lora_A, lora_B).to(y.dtype) if self._is_active() else y

        return add


@torch.no_grad()
def _stack(history: Sequence[tuple[Modulated, float]]) -> dict[str, tuple[Tensor, Tensor]]:
    names = dict.fromkeys(name for kept, _ in history for name in kept.target_names)
    stacks = {}
    for name in names:
        lora_As, lora_Bs = [], []
        for kept, c in history:
            if name in kept.target_names:
                lora_A, lora_B, scale = kept.pair(name)
                lora_As.append(lora_A.clone())
                lora_Bs.append(lora_B * (c * scale))
        stacks[name] = (torch.cat(lora_As, dim=0), torch.cat(lora_Bs, dim=1))
    return stacks


class HistoryBake(_Bake):
    """Kept LoRA rounds at their kept coefficients; ranks and targets may differ, the order does not matter.

    Hooks are on the model from construction to `remove()`. Raises EmptyHistory (a ValueError)
    without one.
    """

    def __init__(self, model: nn.Module, history: Sequence[tuple[ModulatedLoRA, float]]) -> None:
        super().__init__(model, list(history))

    def set_gate(self, is_active: Callable[[], bool]) -> None:
        """Add the history only while `is_active()` is true, e.g. `lambda: lora.c != 0` for an untouched
        reference at c = 0.
        """
        self._is_active = is_active


class PiSSAHistoryBake(_Bake):
    """Kept PiSSA rounds at their kept coefficients, Σ_k c_k · U_k diag(Δs_k) Vh_k x; always active, in any
    order.

    Equal to replaying rounds that each extract their directions from the weight the round before left: the
    S terms cancel. Raises EmptyHistory (a ValueError) without a round.
    """

    def __init__(self, model: nn.Module, history: Sequence[tuple[ModulatedPiSSA, float]]) -> None:
        super().__init__(model, list(history))

    def set_gate(self, is_active: Callable[[], bool]) -> None:
        """Does nothing: this history is part of the weights it stands for, so there is nothing to switch."""
