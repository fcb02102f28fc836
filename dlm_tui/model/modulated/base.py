"""What modulated adapters share: a coefficient, hooks that come and go with a `with` block, a frozen base."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from dlm_tui.model.modulated.targets import DEFAULT_EXCLUDE, WHOLE_DEPTH, ModulationError, linear_layer


@dataclass(frozen=True)
class TargetSpec:
    """How the target layers were chosen; kept so that a checkpoint can choose them again."""

    targets: tuple[str, ...]
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    layer_range: tuple[float, float] = WHOLE_DEPTH


class Modulated(ABC):
    """A low-rank addition to some linear layers, multiplied with a coefficient c that can change at any time.

    Not an `nn.Module`: calling it is the context manager, and the optimiser gets `parameters()`.
    """

    def __init__(self, model: nn.Module, spec: TargetSpec) -> None:
        self.spec = spec
        self._c = 0.0
        self._handles: list[RemovableHandle] = []
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @property
    def c(self) -> float:
        """The coefficient in force; 0 outside a `with` block."""
        return self._c

    @property
    def attached(self) -> bool:
        """Whether hooks are on a model now."""
        return bool(self._handles)

    def set_coeff(self, c: float) -> None:
        """Change the coefficient at once, also inside the `with` block."""
        self._c = float(c)

    @contextlib.contextmanager
    def __call__(self, model: nn.Module, c: float = 1.0) -> Iterator[Self]:
        """Add c times this adapter to `model` inside the block; the hooks leave with it, whatever happens.

        Raises ModulationError when the adapter is attached already, or when `model` lacks one of its layers.
        """
        if self.attached:
            raise ModulationError("this adapter is attached already: leave its 'with' block before entering another")
        layers = {name: linear_layer(model, name, *self.shape(name)) for name in self.target_names}
        self._c = float(c)
        try:
            for name, layer in layers.items():
                self._handles.append(layer.register_forward_hook(self._hook(name)))
            yield self
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._c = 0.0

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable tensors, in a stable order."""
        for _, parameter in self.named_parameters():
            yield parameter

    @property
    @abstractmethod
    def target_names(self) -> tuple[str, ...]:
        """The layers this adapter sits on, in model order."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable tensors with the names they have in a checkpoint."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int]:
        """(d_in, d_out) of a target layer."""

    @abstractmethod
    def pair(self, name: str) -> tuple[Tensor, Tensor, float]:
        """(lora_A [r, d_in], lora_B [d_out, r], scale): the addition at c = 1 is scale · lora_B · lora_A."""

    @abstractmethod
    def addition(self, name: str, x: Tensor) -> Tensor:
        """scale · lora_B · lora_A · x for x [..., d_in]: [..., d_out] in the adapter's dtype, differentiable."""

    def _hook(self, name: str) -> Any:
        def add(_layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            if self._c == 0.0:
                return y
            return y + (self._c * self.addition(name, args[0])).to(y.dtype)

        return add


def through(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """lora_B · lora_A · x without forming the product matrix."""
    return F.linear(F.linear(x.to(lora_A.dtype), lora_A), lora_B)
