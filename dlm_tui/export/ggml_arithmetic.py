"""llama.cpp's own arithmetic on the CPU: what it does to the inputs of a matrix before it multiplies them.

A quantised matrix is multiplied with inputs that are rounded to eight bits in blocks, float16 and bfloat16 ones with
inputs of their own type. Doing the same here leaves next to nothing between the stored weights and the runtime, so that
a forgotten scale stands out. Source: `type_traits_cpu` of `ggml-cpu.c` (which type goes with which) and
`quantize_row_q8_0_ref`, `quantize_row_q8_K_ref` of `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

Loras = Sequence[tuple[Tensor, Tensor, float]]
"""lora_A [r, in], lora_B [out, r] and the scale of every adapter of a matrix."""

_BY_256 = (Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS)


def rounded_inputs(x: Tensor, kind: Type) -> Tensor:
    """`x` [..., columns] float32 as llama.cpp multiplies it with a matrix of `kind`."""
    if kind == Type.F32:
        return x
    if kind == Type.F16:
        return x.half().float()
    if kind == Type.BF16:
        return x.bfloat16().float()
    if kind in _BY_256:
        blocks = x.reshape(*x.shape[:-1], -1, 256)
        largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
        inverse = torch.where(largest != 0, -127.0 / largest, torch.zeros_like(largest))
        scale = torch.where(inverse != 0, 1.0 / inverse, torch.zeros_like(inverse))
        return ((blocks * inverse).round().clamp(max=127) * scale).reshape(x.shape)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127.0
    inverse = torch.where(scale != 0, 1.0 / scale, torch.zeros_like(scale))
    return ((blocks * inverse).round() * scale.half().float()).reshape(x.shape)


def add_loras(output: Tensor, x: Tensor, loras: Loras) -> Tensor:
    """`output` and `scale · B(A x)` of each adapter, which take the inputs as they are."""
    for first, second, scale in loras:
        output = output + scale * ((x @ first.T) @ second.T)
    return output
