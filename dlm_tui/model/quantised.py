"""Bases whose linear layers are kept in 4 or 8 bits by bitsandbytes, or in 8 by torchao.

On the CPU the layers multiply by the weights that the stored numbers stand for, in the type of their input. The
kernels of bitsandbytes round there: 4-bit weights to bfloat16, and for 8 bits the inputs as well, together with the
rows beside them. So an answer would depend on the batch it is decoded in. On a GPU the libraries' kernels are used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlm_tui.model.registry import BaseUnavailable

TORCHAO_INT8 = "torchao-int8"
_BITS = {"nf4": 4, "fp4": 4, "int8": 8, TORCHAO_INT8: 8}
_INSTALLED_BY = {"bitsandbytes": "pip install 'dlm-tui[quant]'", "torchao": "pip install torchao"}


def bits_of(quantisation: str) -> int:
    """Bits per stored weight, without the scales."""
    return _BITS[quantisation]


def library_of(quantisation: str) -> str:
    """The package whose layers hold such weights."""
    return "torchao" if quantisation == TORCHAO_INT8 else "bitsandbytes"


def stored_quantisation(config: Mapping[str, Any]) -> str | None:
    """How a checkpoint is quantised by what its `config.json` says: nf4, fp4, int8, torchao-int8; None for one that is
    not.

    Raises BaseUnavailable for a method that is not read here.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        return None
    if settings.get("load_in_8bit"):
        return "int8"
    kind = settings.get("bnb_4bit_quant_type")
    if settings.get("load_in_4bit") and kind in ("nf4", "fp4"):
        return str(kind)
    method, of_torchao = str(settings.get("quant_method"))[:40], _torchao_config(settings)
    if of_torchao == "Int8WeightOnlyConfig":
        return TORCHAO_INT8
    raise BaseUnavailable(
        f"the base is quantised by {method!r}{f' ({of_torchao[:40]})' if of_torchao else ''}, and only bitsandbytes (4"
        " and 8 bits) and torchao's Int8WeightOnlyConfig are read; use the base as it was before, with --quantize to"
        " keep it small"
    )


def _torchao_config(settings: Mapping[str, Any]) -> str:
    """The name of the one configuration that torchao has quantised all layers by, "" where it was not that."""
    kinds = settings.get("quant_type") if settings.get("quant_method") == "torchao" else None
    only = kinds.get("default") if isinstance(kinds, Mapping) and len(kinds) == 1 else None
    return str(only.get("_type")) if isinstance(only, Mapping) else ""


def require_library(quantisation: str) -> None:
    """Raises BaseUnavailable, with the command that installs it, where the package it needs is missing."""
    library = library_of(quantisation)
    if importlib.util.find_spec(library) is None:
        raise BaseUnavailable(f"a base quantised as {quantisation} needs {library}: {_INSTALLED_BY[library]}")


def quantisation_config(quantisation: str) -> Any:
    """What transformers loads a base with, to quantise it as nf4, fp4, int8 or torchao-int8."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if quantisation == TORCHAO_INT8:
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantisation, bnb_4bit_compute_dtype=torch.float32)


def compute_exactly(model: nn.Module) -> None:
    """Let the quantised layers of `model` on the CPU multiply by the numbers that they stand for."""
    for module in model.modules():
        if _is_quantised(module) and next(module.parameters()).device.type == "cpu":
            module.__class__ = _exact(type(module))


def _is_quantised(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return _is_of_torchao(module.weight)
    bitsandbytes = sys.modules.get("bitsandbytes")  # its layers are there only once it was loaded
    return bitsandbytes is not None and type(module) in (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


def _is_of_torchao(weight: Tensor) -> bool:
    """torchao's weights are tensors of a class of its own in ordinary layers."""
    return type(weight).__module__.partition(".")[0] == "torchao"


def dequantised(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in] that a quantised layer stands for."""
    module = cast("Any", layer)
    if _is_of_torchao(module.weight):
        # what was quantised from bfloat16 would be rounded to it again
        return cast("Tensor", module.weight.dequantize(output_dtype=torch.float32).to(dtype))
    import bitsandbytes as library

    if isinstance(layer, library.nn.Linear8bitLt):
        if module.weight.CB is not None:
            module.init_8bit_state()
        # in place: a second matrix of that size costs more than the product
        return cast("Tensor", module.state.CB.to(dtype).mul_((module.state.SCB.to(dtype) / 127)[:, None]))
    # here, too
    state = module.weight.quant_state
    previous, state.dtype = state.dtype, torch.float32
    try:
        weight: Tensor = library.functional.dequantize_4bit(module.weight.data, state)
        return weight.to(dtype)
    finally:
        state.dtype = previous


class _Product(torch.autograd.Function):
    """x times the dequantised weight; on the way back it is dequantised again, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, dequantised(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return cast("Tensor", gradient @ dequantised(ctx.layer, gradient.dtype)), None


_exact_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def _exact(kind: type[nn.Module]) -> type[nn.Module]:
    """The library's layer class with the exact product; it is still one of the library's to PEFT."""
    if kind not in _exact_kinds:

        def forward(self: Any, x: Tensor) -> Tensor:
            y = cast("Tensor", cast("Any", _Product).apply(x, self))
            return y if self.bias is None else y + self.bias.to(y.dtype)

        _exact_kinds[kind] = type(f"Exact{kind.__name__}", (kind,), {"forward": forward})
    return _exact_kinds[kind]
