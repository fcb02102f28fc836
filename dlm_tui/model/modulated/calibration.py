"""What flows into the target layers on real text, and a PiSSA adapter chosen with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlm_tui.model.modulated.pissa import Calibration, ModulatedPiSSA
from dlm_tui.model.modulated.targets import ModulationError, match_targets, suffix_patterns
from dlm_tui.model.offloaded import computing_device

Batch = Tensor | Mapping[str, Tensor]
"""Token ids [B, T], or a mapping with `input_ids` and perhaps `attention_mask`, both [B, T]."""


def build_pissa(
    model: nn.Module,
    targets: Sequence[str],
    r: int,
    selection_score: str = "s_only",
    calibration_activations: Calibration | None = None,
    seed: int | None = None,
) -> ModulatedPiSSA:
    """A fresh PiSSA adapter for training. `targets` are PEFT-style names ("q_proj"), or "all-linear".

    Trains `parameters()` inside `with adapter(model, c=1.0)`. Raises ModulationError.
    """
    patterns = suffix_patterns(targets)
    return ModulatedPiSSA(
        model,
        r,
        patterns,
        selection_score=selection_score,
        calibration_activations=calibration_activations,
        seed=seed,
    )


def collect_calibration(
    model: nn.Module,
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]],
    targets: Sequence[str],
    max_tokens: int = 1024,
) -> dict[str, Tensor | Mapping[str, Tensor]]:
    """Inputs of the target layers, float32 [at most about max_tokens, d_in] each, on the model's device.

    `batches` is one series, or a mapping {"cho": …, "rej": …} for `cho_rej_min_std`; the result has the same form.
    Every batch contributes the same number of tokens, evenly spaced over its real ones. Raises ModulationError
    without a single token.
    """
    layers = match_targets(model, suffix_patterns(targets))
    if isinstance(batches, Mapping):
        sides = {side: _inputs(model, layers, list(series), max_tokens) for side, series in batches.items()}
        return {name: {side: found[name] for side, found in sides.items()} for name in layers}
    return dict(_inputs(model, layers, list(batches), max_tokens))


@torch.no_grad()
def _inputs(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Sequence[Batch], max_tokens: int
) -> dict[str, Tensor]:
    if not batches:
        raise ModulationError("calibration needs at least one batch of tokens")
    share = math.ceil(max_tokens / len(batches))
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    picked = torch.empty(0, dtype=torch.long)
    handles: list[RemovableHandle] = []

    def keep(name: str) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            found[name].append(rows[picked.to(rows.device)].float())

        return hook

    device = computing_device(model)
    try:
        handles.extend(layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items())
        for batch in batches:
            ids, mask = _ids_and_mask(batch)
            real = mask.flatten().nonzero().flatten()
            picked = real[torch.linspace(0, len(real) - 1, min(share, len(real))).round().long()]
            model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    inputs = {name: torch.cat(rows) for name, rows in found.items()}
    if any(len(rows) == 0 for rows in inputs.values()):
        raise ModulationError("calibration needs at least one token")
    return inputs


def _ids_and_mask(batch: Batch) -> tuple[Tensor, Tensor]:
    ids = batch if isinstance(batch, Tensor) else batch["input_ids"]
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    return ids, torch.ones_like(ids) if mask is None else mask
