"""Experts that a checkpoint holds one by one: the library stacks them into one tensor, a copy in the process's memory.

Left apart they stay in the pages of their file, which all processes with the same base share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlm_tui.model.registry import read_json
from dlm_tui.tensor_files import mapping

_KEPT = "kept_apart"
_STACKING = (["MergeModulelist"], ["MergeModulelist", "Concatenate"])
"""The library's operations by which `down_proj` and `gate_up_proj` are made of the experts' own."""

_ALIGNED = 16


def are_plain_experts(module: nn.Module) -> bool:
    """Whether these are the library's stacked experts of `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] alone."""
    facts = ("has_gate", "is_concatenated", "is_transposed", "has_bias", "has_post_expert_norm")
    told = [getattr(module, fact, None) for fact in facts]
    return told == [True, True, False, False, False] and {name for name, _ in module.named_parameters()} == {
        "gate_up_proj",
        "down_proj",
    }


def run_apart_if_narrow(model: nn.Module) -> None:
    """Let the library run stacked experts one by one where rows are no whole number of 16 bytes, which its product
    over all of them asks for."""
    stacks = (weight for name, weight in model.named_parameters() if weight.dim() == 3 and ".experts." in name)
    if any(size * stack.element_size() % _ALIGNED for stack in stacks for size in stack.shape[1:]):
        cast("Any", model).set_experts_implementation("eager")


@contextlib.contextmanager
def kept_apart(folder: Path) -> Iterator[None]:
    """While the library loads the checkpoint in this folder plain experts are not stacked; `unstack` finds them.

    In their place stand tensors of the stacked shapes that hold nothing.
    """
    from transformers import conversion_mapping as mappings

    config = read_json(folder / "config.json")
    # of a model that also takes images the library opens the text's, by its own type
    types = {str(part.get("model_type")) for part in (config, mapping(config.get("text_config")))}
    known = {kind: mappings.get_checkpoint_conversion_mapping(kind) for kind in types}
    before = {kind: entries for kind, entries in known.items() if entries is not None}
    for kind in before:
        changed = mappings.get_checkpoint_conversion_mapping(kind)
        for entry in changed:
            operations = getattr(entry, "operations", ())
            if [type(operation).__name__ for operation in operations] in _STACKING:
                entry.operations = [_keeping_apart()(operations)]
        mappings.register_checkpoint_conversion_mapping(kind, changed, overwrite=True)
    try:
        yield
    finally:
        for kind, entries in before.items():
            mappings.register_checkpoint_conversion_mapping(kind, entries, overwrite=True)


def _keeping_apart() -> Any:
    """The operation that takes the place of the library's; its class is made once transformers is there."""
    from transformers.core_model_loading import ConversionOps

    class KeepApart(ConversionOps):
        def __init__(self, otherwise: list[Any]) -> None:
            self.otherwise = otherwise

        def convert(
            self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **facts: Any
        ) -> dict[str, Any]:
            place, _, name = str(facts["full_layer_name"]).rpartition(".")
            module = facts["model"].get_submodule(place)
            parts = [input_dict[pattern] for pattern in source_patterns]
            if are_plain_experts(module) and _stack_up(parts):
                vars(module).setdefault(_KEPT, {})[name] = parts
                return {target_patterns[0]: _nothing(parts)}
            for operation in self.otherwise:
                input_dict = operation.convert(
                    input_dict, source_patterns=source_patterns, target_patterns=target_patterns, **facts
                )
            return input_dict

    return KeepApart


def _stack_up(parts: list[list[Tensor]]) -> bool:
    """Whether there are as many experts of every part, all of one shape; the library says it where they are not."""
    return len({len(part) for part in parts}) == 1 and len({weight.shape for part in parts for weight in part}) == 1


def _nothing(parts: list[list[Tensor]]) -> Tensor:
    """A tensor [experts, heights together, width] that takes no memory."""
    first = parts[0][0]
    return first.new_zeros(1).expand(len(parts[0]), len(parts) * first.shape[0], first.shape[1])


def unstack(module: nn.Module) -> None:
    """Give plain experts that were kept apart their weights, one tensor for each expert: `gate_proj` and `up_proj`
    [I, H] in place of the stacked two, and `down_proj` [H, I]. Others stay as they are."""
    for name, parts in vars(module).pop(_KEPT, {}).items():
        delattr(module, name)
        names = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
        for own, weights in zip(names, parts, strict=True):
            setattr(module, own, nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights))


def gate_up_of(module: nn.Module, expert: int) -> tuple[Tensor, ...]:
    """Gate and up of one of a layer's plain experts: [2I, H] together, or [I, H] each."""
    experts = cast("Any", module)
    if hasattr(module, "gate_up_proj"):
        return (experts.gate_up_proj[expert],)
    return experts.gate_proj[expert], experts.up_proj[expert]


def stack(module: nn.Module) -> None:
    """Stack plain experts that are apart, and make float32 of them."""
    experts = cast("Any", module)
    gate_up = [torch.cat(gate_up_of(module, expert)).float() for expert in range(len(experts.down_proj))]
    down = [weight.float() for weight in experts.down_proj]
    for name in [*module._parameters, "gate_proj", "up_proj", "down_proj"]:
        if hasattr(module, name):
            delattr(module, name)
    experts.gate_up_proj = nn.Parameter(torch.stack(gate_up), requires_grad=False)
    experts.down_proj = nn.Parameter(torch.stack(down), requires_grad=False)
