"""Weights that stay in the bfloat16 pages of their file while everything is computed in float32.

A bfloat16 is a float32 with half its digits, so nothing is lost: a product widens the weights it reads, a block at a
time. The file's pages are never written, so that all processes with the same base share them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlm_tui.model.linear import LinearFunction, onednn_linear
from dlm_tui.model.stacked_experts import are_plain_experts, gate_up_of, stack, unstack

_BLOCK_ELEMENTS = 1 << 21
"""Weights that are widened at a time: they are multiplied while they lie in the processor's caches."""
_originals: dict[type[nn.Module], type[nn.Module]] = {}


def widened_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, linear: LinearFunction = functional.linear
) -> Tensor:
    """x [..., in] float32 times weight [out, in] bfloat16 transposed, plus bias: what `linear` gives of the float32
    weight. No gradients."""
    rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    if weight.shape[0] <= rows:
        return linear(x, weight.to(x.dtype), bias)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    wide = x.new_empty(rows, weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        block = slice(start, min(start + rows, weight.shape[0]))
        widened = wide[: block.stop - start].copy_(weight[block])
        y[..., block] = linear(x, widened, bias[block] if bias is not None else None)
    return y


class _Product(torch.autograd.Function):
    """`widened_product` that keeps the narrow weight for the way back, not the wide one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: LinearFunction) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.linear = linear
        return widened_product(x, weight, bias, linear=linear)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
        blocks = zip(gradient.split(rows, dim=-1), weight.split(rows), strict=True)
        parts = (ctx.linear(part, block.to(part.dtype).T, None) for part, block in blocks)
        return cast("Tensor", sum(parts)), None, None, None


class StoredLinear(nn.Linear):
    """An nn.Linear whose weight is narrower than what it multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias)


class OneDnnStoredLinear(StoredLinear):
    """The same through oneDNN, which rounds otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias, onednn_linear)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, linear: LinearFunction = functional.linear
) -> Tensor:
    """`widened_product`, with a gradient for x where one is asked for."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast("Tensor", cast("Any", _Product).apply(x, weight, bias, linear))
    return widened_product(x, weight, bias, linear=linear)


def keep_as_stored(model: nn.Module, skeleton: nn.Module) -> None:
    """Compute in float32 on the bfloat16 weights of `model`, exactly as if it had been loaded as float32.

    (Experts are added in their own order, where the library has one of its own: equal up to rounding.)
    Linear layers, the token embedding and plain experts keep bfloat16; norms, biases and the like are small.
    `skeleton` is the same model made as float32, on the meta device but for its buffers, some of which are computed in
    the model's type.
    """
    embedding = cast("Any", model).get_input_embeddings()
    for module in model.modules():
        if are_plain_experts(module):
            unstack(module)
            module.__class__ = _stored_experts(type(module))
    kept = {id(parameter) for parameter in _kept(model)}
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = StoredLinear
        elif module is embedding:
            module.__class__ = _stored_embedding(type(module))
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    _widen_buffers(model, skeleton)


def _kept(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that stay in their pages."""
    embedding = cast("Any", model).get_input_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear or module is embedding:
            yield cast("Any", module).weight
        elif are_plain_experts(module) or type(module) in _originals:
            yield from module.parameters()


def bytes_beside(folder: Path) -> int:
    """Bytes of float32 that `keep_as_stored` takes for what does not stay in the pages of the checkpoint in `folder`:
    experts of another kind, tables beside the embedding. What is no matrix is small, and not counted."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with init_empty_weights():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            model = cast("nn.Module", cast("Any", AutoModelForCausalLM).from_config(config))
    except Exception:  # the library raises many types for a broken folder, and again when it is loaded
        return 0
    kept = {id(parameter) for parameter in _kept(model)}
    beside = (part for part in model.parameters() if id(part) not in kept)
    return 4 * sum(part.numel() for part in beside if part.ndim > 1)


def float32_skeleton(model: nn.Module) -> nn.Module:
    """The same model as float32, its parameters without memory."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        config = copy.deepcopy(cast("Any", model).config)
        return cast("nn.Module", cast("Any", AutoModelForCausalLM).from_config(config, dtype=torch.float32))


def widen_beside(model: nn.Module, skeleton: nn.Module) -> None:
    """Make float32 of whatever in a model is not quantised; `skeleton` is as `keep_as_stored` has it."""
    for parameter in model.parameters():
        # a quantised weight is of a class of its own, and may lie packed in what is called bfloat16
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    _widen_buffers(model, skeleton)


def _widen_buffers(model: nn.Module, skeleton: nn.Module) -> None:
    stored = set(model.state_dict())
    made = dict(skeleton.named_buffers())
    for name, buffer in list(model.named_buffers()):
        owner, _, own = name.rpartition(".")
        value = buffer.float() if name in stored and buffer.is_floating_point() else made.get(name, buffer)
        setattr(model.get_submodule(owner), own, value.to(buffer.device))


def widen(model: nn.Module) -> None:
    """Make an ordinary float32 model of one that `keep_as_stored` has changed; it takes twice the memory."""
    for module in model.modules():
        if isinstance(module, StoredLinear):
            cast("Any", module).__class__ = nn.Linear
        elif type(module) in _originals:
            module.__class__ = _originals[type(module)]
            if not isinstance(module, nn.Embedding):
                stack(module)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()


def _stored_embedding(kind: type[nn.Module]) -> type[nn.Module]:
    """The embedding class `kind` with rows that are widened when they are looked up."""

    def forward(self: Any, input: Tensor) -> Tensor:
        used, places = torch.unique(input, return_inverse=True)
        shadow = copy.copy(self)
        shadow.__class__ = kind
        shadow.padding_idx = None
        shadow._parameters = {"weight": nn.Parameter(self.weight[used].float(), requires_grad=False)}
        return cast("Tensor", kind.forward(shadow, places))

    return _made(kind, forward)


def _stored_experts(kind: type[nn.Module]) -> type[nn.Module]:
    """The experts class `kind` with weights that are widened, an expert at a time, for the tokens that go to it."""

    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens [T, H] through the experts `top_k_index` [T, K], weighed by their shares [T, K]."""
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, place = torch.where(top_k_index == expert)
            given = hidden_states[token]
            inner = self._apply_gate(torch.cat([_product(given, part) for part in gate_up_of(self, expert)], dim=-1))
            outer = _product(inner, self.down_proj[expert])
            result.index_add_(0, token, (outer * top_k_weights[token, place, None]).to(result.dtype))
        return result

    return _made(kind, forward)


def _made(kind: type[nn.Module], forward: Callable[..., Tensor]) -> type[nn.Module]:
    """The class `kind` with another forward; one for each class, which `widen` turns back."""
    for made, original in _originals.items():
        if original is kind:
            return made
    made = type(f"Stored{kind.__name__}", (kind,), {"forward": forward})
    _originals[made] = kind
    return made
