"""Matrix products by oneDNN: for few rows the library's default neither threads nor packs, and for many it is slow on
processors of another maker than its own.

oneDNN's linear reads the weight at close to the speed of memory, on the plain weight as it is: nothing is copied.
It is a private operator of torch, so it is tried out once; without it, `F.linear` does the same work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias; CPU, no gradients. A transposed view will do, too."""
    pointwise = cast("Any", torch.ops.mkldnn)._linear_pointwise
    return cast("Tensor", pointwise(x, weight, bias, "none", [], ""))


@functools.cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether the operator is there and right for this dtype on this machine."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 48, generator=generator).to(dtype)
    weight = torch.randn(40, 48, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype)
    try:
        with torch.no_grad():
            found = onednn_linear(x, weight, bias)
            back = onednn_linear(found, weight.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted = functional.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    return (
        found.shape == wanted.shape
        and bool((found.double() - wanted).abs().max() < tolerance)
        and bool((back.double() - found.double() @ weight.double()).abs().max() < 10 * tolerance)
    )


def linear_for(device: torch.device, dtype: torch.dtype) -> LinearFunction:
    """The fastest product for weights on `device` of `dtype`, without gradients."""
    if device.type == "cpu" and onednn_works(dtype):
        return onednn_linear
    return functional.linear


class _FrozenProduct(torch.autograd.Function):
    """x times a frozen weight, both ways by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return onednn_linear(gradients[0], weight.T), None, None


class OneDnnLinear(nn.Linear):
    """An nn.Linear that runs through oneDNN unless its own weight is learned. Same parameters, same state dict."""

    def forward(self, input: Tensor) -> Tensor:
        learned = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if torch.is_grad_enabled() and learned:
            return functional.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and input.requires_grad:
            return cast("Tensor", cast("Any", _FrozenProduct).apply(input, self.weight, self.bias))
        return onednn_linear(input, self.weight, self.bias)
