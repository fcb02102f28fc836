"""Between modulated adapters, PEFT directories and the mixer's rows: the same additions in another form.

LoRA and mixer pairs hold the same numbers. A PiSSA adapter is the pair `lora_A = Vh`, `lora_B = U diag(Δs)`; the way
back is a singular value decomposition of the pair, formed in float64 from its thin factors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlm_tui.model.adapters import Adapter, LowRank, save_peft_adapter
from dlm_tui.model.modulated.base import Modulated, TargetSpec
from dlm_tui.model.modulated.lora import ModulatedLoRA
from dlm_tui.model.modulated.pissa import Directions, ModulatedPiSSA
from dlm_tui.model.modulated.targets import ModulationError, dense_weight, linear_layer


def to_adapter(modulated: Modulated, name: str) -> Adapter:
    """A mixer adapter with the same additions at c = 1; its tensors are copies on the CPU."""
    modules = {}
    for target in modulated.target_names:
        lora_A, lora_B, scale = modulated.pair(target)
        modules[target] = LowRank(_copy(lora_A), _copy(lora_B), scale)
    kind = "pissa" if isinstance(modulated, ModulatedPiSSA) else "lora"
    return Adapter(name, modules, parameterization=kind)


def lora_from_adapter(model: nn.Module, adapter: Adapter) -> ModulatedLoRA:
    """The same additions as a trainable ModulatedLoRA. Ranks may differ per layer.

    One scale holds for all layers; where a layer's own differs, the ratio is multiplied into B (one float rounding,
    none for ratios that are powers of two). Raises ModulationError when the model lacks a layer of the adapter.
    """
    layers = _layers(model, adapter)
    scale = Counter(pair.scale for pair in adapter.modules.values()).most_common(1)[0][0] or 1.0
    factors = {}
    for name, pair in adapter.modules.items():
        device = layers[name].weight.device
        lora_B = (
            pair.lora_B if pair.scale == scale else (pair.lora_B.double() * (pair.scale / scale)).to(pair.lora_B.dtype)
        )
        factors[name] = (pair.lora_A.to(device), lora_B.to(device))
    r = max(adapter.rank, 1)
    return ModulatedLoRA.from_factors(model, factors, r=r, alpha=scale * r, spec=_exact_spec(adapter.modules))


@torch.no_grad()
def pissa_from_adapter(model: nn.Module, adapter: Adapter) -> ModulatedPiSSA:
    """The same additions as a ModulatedPiSSA: Δs are the singular values of each addition, S what W does in those
    directions.

    Raises ModulationError when the model lacks a layer of the adapter.
    """
    directions, changes = {}, {}
    for name, layer in _layers(model, adapter).items():
        pair = adapter.modules[name]
        device = layer.weight.device
        left, left_rest = torch.linalg.qr(pair.lora_B.to(device, torch.float64) * pair.scale)
        right, right_rest = torch.linalg.qr(pair.lora_A.to(device, torch.float64).T)
        inner_left, change, inner_right = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
        u, vh = left @ inner_left, inner_right @ right.T
        along = ((u.T @ dense_weight(layer).double()) * vh).sum(dim=1)
        directions[name] = Directions(u.float(), along.float(), vh.float())
        changes[name] = change.float()
    return ModulatedPiSSA.from_directions(
        model,
        directions,
        r=max(adapter.rank, 1),
        selection_score="s_only",
        spec=_exact_spec(adapter.modules),
        changes=changes,
    )


def save_peft(modulated: Modulated, path: Path, base_id: str, *, extra: dict[str, Any] | None = None) -> None:
    """Write an ordinary PEFT LoRA directory with the same additions. Raises AdapterError, OSError."""
    save_peft_adapter(to_adapter(modulated, path.name), path, base_id, extra=extra)


def _layers(model: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    if not adapter.modules:
        raise ModulationError(f"adapter {adapter.name} has no modules")
    return {
        name: linear_layer(model, name, pair.lora_A.shape[1], pair.lora_B.shape[0])
        for name, pair in adapter.modules.items()
    }


def _exact_spec(names: Iterable[str]) -> TargetSpec:
    return TargetSpec(tuple(rf"^{re.escape(name)}$" for name in names), exclude=())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
