"""Bases of which accelerate leaves weights on the disk: such a parameter has no memory (it is on the meta device)
except while its module runs, when a hook on the module fetches it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn


def computing_device(model: nn.Module) -> torch.device:
    """Where `model` computes: on the CPU, where the first of its weights lies on the disk."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def name_places(model: nn.Module) -> None:
    """Let the map of `model` name more than one place, by which the libraries know that it must not be moved.

    Where all of it lies on the disk, the map says so in one line, and it would be taken for an ordinary model.
    """
    places = getattr(model, "hf_device_map", {})
    if set(places) == {""}:
        model.hf_device_map = {name: places[""] for name, _ in model.named_children()}  # type: ignore[assignment]


def fetched(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which the own weights of `module` are there, wherever they lie."""
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        return contextlib.nullcontext()
    from accelerate.utils import align_module_device

    context: contextlib.AbstractContextManager[None] = align_module_device(module)
    return context


@contextlib.contextmanager
def read_again(model: nn.Module, around: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """While a forward pass runs that is differentiated once: its layers are computed, and their weights read, again on
    the way back, inside `around()`; the graph would otherwise keep the weights of all of them.

    The library's own activation checkpointing works in training mode only, where layers drop activations out.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    own = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            early_stop=False,  # a layer that is left in the middle does not give its weights back
            context_fn=lambda: (contextlib.nullcontext(), around()),
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.__dict__["forward"] = forward


@contextlib.contextmanager
def as_if_in_memory(model: nn.Module) -> Iterator[None]:
    """While an adapter is put on `model` by PEFT, or taken off: its weights seem to be there, none is fetched.

    PEFT puts the adapter's weights where those of the layer are, and fetches, and keeps, every weight on whose module
    it finds a hook. Nothing may run in here: the weights are one zero that stands in for all numbers.
    """
    away = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_meta
    ]
    hooks = [(module, module.__dict__.pop("_hf_hook")) for module in model.modules() if hasattr(module, "_hf_hook")]
    for module, name, weight in away:
        stand_in = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        module.register_parameter(name, nn.Parameter(stand_in, requires_grad=False))
    try:
        yield
    finally:
        for module, name, weight in away:
            module.register_parameter(name, weight)
        for module, hook in hooks:
            module.__dict__["_hf_hook"] = hook
