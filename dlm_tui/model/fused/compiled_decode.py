"""Running a few tokens through the compiled layers: whether it works here, the table of addresses, the threads."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_tui.model.fused.kv_cache import FusedKVCache
from dlm_tui.model.fused.weights import FusedLayer, FusedLinear, FusedWeights

MOST_TOKENS = 16
"""With more at a time ordinary matrix products are as quick, where some thousand positions stand before them."""
MOST_PARTS = 3
"""Weights that lie apart in one group: of queries, keys and values."""
_NOBODY_WAITS = 1 << 62
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Addition:
    """The adapters of one fused group: `lora_A` [R, in] of all its parts, and each part's own transposed `lora_Bs`
    [ranks, out].

    `blocks` says which outputs and which ranks a part has (first output, the one behind the last, first rank, the one
    behind the last); `columns` [R] (long) whose coefficient scales each rank.
    """

    lora_A: Tensor
    lora_Bs: tuple[Tensor, ...]
    blocks: tuple[tuple[int, int, int, int], ...]
    layout: int
    columns: Tensor

    @functools.cached_property
    def places(self) -> Tensor:
        """The blocks, each with the address of its `lora_B`, as the kernel reads them [parts, 5] (long)."""
        return torch.tensor(
            [(*block, _address(lora_B)) for block, lora_B in zip(self.blocks, self.lora_Bs, strict=True)]
        )


class CompiledDecode:
    """All layers for up to `MOST_TOKENS` tokens on the CPU in float32; same numbers as the fused forward."""

    def __init__(
        self, weights: FusedWeights, additions: Sequence[Sequence[Addition | None]], *, uses_bf16_weights: bool = False
    ) -> None:
        """`uses_bf16_weights`: read the weights as bfloat16, half the bytes; all else stays float32."""
        from dlm_tui.model.fused import decode_kernel

        self._decode = decode_kernel.decode
        matrices, head = weights.bf16_weights() if uses_bf16_weights else (weights.matrices, weights.head)
        self._matrices, self.head = matrices, _numbers(head)
        # the table holds bare addresses: what they point to has to stay alive as long as this
        self._weights, self._additions = weights, additions
        self._experts = [
            _expert_table(parts[-1], len(layer.experts.gate_up)) if layer.experts is not None else None
            for layer, parts in zip(weights.layers, matrices, strict=True)
        ]
        rows = [
            _layer_entry(layer, parts, added, uses_bf16_weights, weights.spec.qk_norm == "projection", experts)
            for layer, parts, added, experts in zip(weights.layers, matrices, additions, self._experts, strict=True)
        ]
        self._table = np.array(rows, dtype=np.int64)
        assert self._table.shape[1] == decode_kernel.WIDTH  # the kernel takes these numbers for addresses
        ranks = max((one.lora_A.shape[0] for added in additions for one in added if one is not None), default=0)
        self._numbers = (
            weights.heads,
            weights.kv_heads,
            _ACTIVATIONS[weights.activation],
            *map(np.float32, (weights.eps, weights.attention_scale, weights.softcap, weights.residual_scale)),
        )
        self._space = [
            (count, np.empty((count * MOST_TOKENS, width), dtype=np.float32))
            for count, width in _sizes(weights.layers[0], ranks)
        ]
        self._absent = () if weights.spec.experts else (None, None)
        self._none = np.empty((0, 0), dtype=np.float32)

    def run(
        self,
        hidden: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: FusedKVCache,
        coefficients: Tensor | None,
        far: bool = False,
    ) -> Tensor:
        """`hidden` [R, H] float32 through all layers, in place; token r stands at `positions[r]` of row `rows[r]`.

        Both are [R] (long); the cache must have room. `coefficients` [B, N] mixes the adapters, None leaves them out.
        `far` chooses the rotary table.
        """
        cos, sin = self._weights.rope(cache.capacity, far)
        mix = self._none if coefficients is None else coefficients.to(torch.float32).contiguous().numpy()
        space = (numbers[: count * len(hidden)] for count, numbers in self._space)
        together(
            self._decode, self._table, hidden.numpy(), rows.numpy(), positions.numpy(), mix, cache.kv.numpy(),
            cos.numpy(), sin.numpy(), *self._numbers, *space, *self._absent,
        )  # fmt: skip
        return hidden


def project(x: Tensor, weight: NDArray[Any]) -> Tensor:
    """x [R, H] · weightᵀ [V, H] → [R, V] float32, for a few rows; the weight as `_numbers` gives it."""
    from dlm_tui.model.fused import decode_kernel

    result = torch.empty(x.shape[0], weight.shape[0])
    together(decode_kernel.project, weight, x.contiguous().numpy(), result.numpy())
    return result


def together(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(thread, threads, counter, *arguments)` on as many threads as torch uses, at the same time.

    The threads wait for each other inside, so each must have one of its own: only one call runs at a time.
    """
    threads = torch.get_num_threads()
    with _one_at_a_time:
        counter = np.zeros(1 + threads, dtype=np.int64)
        others: list[Future[None]] = []
        try:
            given = (threads, counter, *arguments)
            for number in range(1, threads):
                others.append(_pool(threads).submit(function, number, *given))
            function(0, *given)
        except BaseException:
            # the others must not wait for a thread that was interrupted on its way to them
            counter[0] = _NOBODY_WAITS
            wait(others)
            raise
        for other in others:
            other.result()


@functools.cache
def compiles() -> bool:
    """Whether the compiled step can be had here: a POSIX system with a compiler package that supports the processor."""
    if os.name != "posix":
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(5, 48, generator=generator), torch.randn(40, 48, generator=generator)
        found = project(x, _numbers(weight))
    except Exception:  # whatever a compiler may raise: the ordinary products are right, too
        return False
    return bool((found - x @ weight.T).abs().max() < 1e-4)


def fits(weights: FusedWeights) -> bool:
    """Whether these weights are of the kind that the compiled step reads."""
    parts = [part for layer in weights.matrices for parts in layer for part in parts]
    biases = [group.bias for layer in weights.layers for group in layer.groups]
    routers = [layer.experts.router for layer in weights.layers if layer.experts is not None]
    read = torch.bfloat16 if weights.is_as_stored else torch.float32
    beside = [*biases, *routers, *(norm for layer in weights.layers for norm in layer.norms), weights.norm]
    return (
        weights.device.type == "cpu"
        and weights.dtype == torch.float32
        and all(part.dtype == read for part in (*parts, weights.head))
        and all(part.dtype == torch.float32 for part in beside if part is not None)
        and all(part.is_contiguous() for part in (*parts, *beside, weights.head) if part is not None)
    )


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="step")


def _sizes(layer: FusedLayer, ranks: int) -> list[tuple[int, int]]:
    """Rows per token and width of the arrays that the kernel works in, in its order; two more with experts."""
    slots = layer.experts.top_k if layer.experts is not None else 1
    per_slot = [(slots, 2 * layer.intermediate), (slots, layer.intermediate)]
    found = [(1, layer.qkv.shape[0]), (1, layer.out.shape[1]), (1, layer.out.shape[0]), *per_slot, (1, ranks)]
    if layer.experts is not None:
        found += [(1, len(layer.experts.router)), (slots, layer.out.shape[0])]
    return found


def _layer_entry(
    layer: FusedLayer,
    matrices: Sequence[Sequence[Tensor]],
    additions: Sequence[Addition | None],
    narrow: bool,
    whole_norm: bool,
    expert_table: NDArray[np.int64] | None,
) -> list[int]:
    """The numbers of one layer in the kernel's table, with `matrices` for its own."""
    row: list[int] = []
    for parts, group, addition in zip(matrices, layer.groups, additions, strict=False):
        row += [*_entry(parts, group, addition), int(narrow)]
    experts = [0] * 6
    if layer.experts is not None and expert_table is not None:
        row += [0] * len(row)  # two groups are there, two are not
        router, top_k, normalised = layer.experts.router, layer.experts.top_k, layer.experts.normalised
        experts = [len(router), top_k, int(normalised), _address(router), expert_table.ctypes.data, int(narrow)]
    return [*row, *map(_address, layer.norms), layer.spec.window, layer.spec.rope, int(whole_norm), *experts]


def _expert_table(weights: Sequence[Tensor], experts: int) -> NDArray[np.int64]:
    """Addresses [E, 3] of each expert's gate, up and down; `weights` has gate and up of an expert together or apart."""
    each = len(weights) // experts
    table = np.empty((experts, 3), dtype=np.int64)
    for expert in range(experts):
        first, *others = weights[each * expert : each * (expert + 1)]
        up = first[len(first) // 2 :] if each == 2 else others[0]
        table[expert] = [_address(first), _address(up), _address(others[-1])]
    return table


def _entry(weights: Sequence[Tensor], group: FusedLinear, addition: Addition | None) -> list[int]:
    """The numbers of one group in the kernel's table."""
    ends = list(itertools.accumulate(len(weight) for weight in weights))
    lacking = MOST_PARTS - len(weights)
    parts = [*map(_address, weights), *[0] * lacking, *ends, *ends[-1:] * lacking, _address(group.bias)]
    if addition is None:
        return [*parts, 0, 0, 0, 0, 0]
    added = (addition.lora_A, addition.columns, addition.places)
    return [*parts, *(_address(part) for part in added), addition.lora_A.shape[0], len(addition.blocks)]


def _numbers(weight: Tensor) -> NDArray[Any]:
    """A float32 matrix as it is, a bfloat16 one as the uint16 that the kernel reads."""
    detached = weight.detach()
    numbers: NDArray[Any] = (detached.view(torch.uint16) if weight.dtype == torch.bfloat16 else detached).numpy()
    return numbers


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
