"""Kept versions of an adapter composed twice, as a history on hooks and by the mixer: both must add the same.

The two know nothing of each other. A history keeps a PiSSA round as singular directions and puts each round's
coefficient into its factors; the mixer stacks plain pairs and takes the coefficients with every row. The base has no
part in what is added, so none is loaded: layers with zero weights give the addition alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dlm_tui.model.adapters import Adapter, LowRank
from dlm_tui.model.mixer import Mixer
from dlm_tui.model.modulated.convert import lora_from_adapter, pissa_from_adapter
from dlm_tui.model.modulated.history import HistoryBake, PiSSAHistoryBake

INPUTS = 8
EXACT = 1e-4
"""The largest difference, as a share of the largest addition, that float32 alone explains."""


@dataclass(frozen=True)
class Composition:
    """`difference` is the largest between history and mixer, `addition` the largest of the mixer, of any layer."""

    rounds: tuple[str, ...]
    layers: tuple[str, ...]
    difference: float
    addition: float

    @property
    def exact(self) -> bool:
        """Whether history and mixer add the same; what overflows is no addition."""
        return math.isfinite(self.addition) and self.difference <= EXACT * self.addition

    @property
    def sentence(self) -> str:
        """What was found, and what to do where they differ."""
        if self.exact:
            share = self.difference / self.addition if self.addition else 0.0
            return f"{' + '.join(self.rounds)} compose: largest difference {share:.1e} of what they add"
        return (
            f"{' + '.join(self.rounds)} do not compose: kept as a history they add something else than the mixer does,"
            f" by up to {self.difference:.3g} where it adds up to {self.addition:.3g}. Ask under one version at a time,"
            " and train the adapter again."
        )


@torch.no_grad()
def composed(rounds: Sequence[tuple[Adapter, float]]) -> Composition | None:
    """Versions of an adapter with their coefficients, composed both ways on the first, the middle and the last layer.

    The inputs are 8 random rows from a fixed seed. None where no version is on a linear layer (pairs of the token
    embedding are no part of a history). Raises ModulationError for versions whose layers differ in size.
    """
    pairs = {name: pair for one, _ in rounds for name, pair in one.modules.items() if not pair.tokens}
    pairs = {name: pairs[name] for name in _few(list(pairs))}
    cut = [
        (replace(one, modules={name: one.modules[name] for name in pairs if name in one.modules}), c)
        for one, c in rounds
    ]
    cut = [(one, c) for one, c in cut if one.modules]
    if not cut:
        return None
    inputs = {name: _inputs(pair) for name, pair in pairs.items()}
    kept = _by_history(cut, inputs)
    mixed = _by_mixer(cut, inputs)
    return Composition(
        rounds=tuple(one.name for one, _ in rounds),
        layers=tuple(pairs),
        difference=_largest([mixed[name] - kept[name] for name in pairs]),
        addition=_largest(list(mixed.values())),
    )


def _by_mixer(rounds: Sequence[tuple[Adapter, float]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the mixer adds to each layer, [1, 8, out]."""
    mixer = Mixer([one for one, _ in rounds])
    stacks = mixer.stacks
    ranks = mixer.expand(mixer.coefficients({one.name: c for one, c in rounds}).unsqueeze(0)) or []
    return {
        name: stacks[name].add(torch.zeros(1, len(x[0]), len(stacks[name].lora_B)), x, ranks[stacks[name].layout])
        for name, x in inputs.items()
    }


def _by_history(rounds: Sequence[tuple[Adapter, float]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the kept rounds add to each layer, [1, 8, out], each in its own kind."""
    model = _zero_layers(rounds)
    pissa = [(pissa_from_adapter(model, one), c) for one, c in rounds if one.parameterization == "pissa"]
    lora = [(lora_from_adapter(model, one), c) for one, c in rounds if one.parameterization != "pissa"]
    if pissa:
        PiSSAHistoryBake(model, pissa)
    if lora:
        HistoryBake(model, lora)
    return {name: model.get_submodule(name)(x) for name, x in inputs.items()}


def _zero_layers(rounds: Sequence[tuple[Adapter, float]]) -> nn.Module:
    """A model that has nothing but the layers of the rounds, with zero weights."""
    model = nn.Module()
    for name, pair in {name: pair for one, _ in rounds for name, pair in one.modules.items()}.items():
        layer = nn.Linear(pair.lora_A.shape[1], pair.lora_B.shape[0], bias=False)
        nn.init.zeros_(layer.weight)
        *path, last = name.split(".")
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, layer)
    return model


def _few(names: list[str]) -> list[str]:
    return [names[place] for place in sorted({0, len(names) // 2, len(names) - 1})] if names else []


def _inputs(pair: LowRank) -> Tensor:
    return torch.randn(1, INPUTS, pair.lora_A.shape[1], generator=torch.Generator().manual_seed(0))


def _largest(values: Sequence[Tensor]) -> float:
    return float(torch.stack([value.abs().max() for value in values]).max())
