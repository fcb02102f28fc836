"""Adapters in singular-value space: `y = Wx + c · U diag(Δs) Vh x` for r chosen singular directions of
each W.

The established form extracts the directions from the weight, W_res = W − U diag(S) Vh, and computes
W_res x + U diag(S + c·Δs) Vh x. The S terms cancel, so W is never changed here: c = 0 is exact, rounds
compose in any order, and both forms read each other's checkpoints.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm_tui.model.modulated.base import Modulated, TargetSpec
from dlm_tui.model.modulated.checkpoint import (
    align,
    check_pairs,
    checkpoint_layers,
    read_checkpoint,
    read_metadata,
    read_spec,
    write_checkpoint,
)
from dlm_tui.model.modulated.targets import (
    ALL_LINEAR,
    DEFAULT_EXCLUDE,
    WHOLE_DEPTH,
    ModulationError,
    as_patterns,
    dense_weight,
    match_targets,
)
from dlm_tui.progress import Progress, run_to_end

SELECTION_SCORES = ("s_only", "wanda", "act_only", "cho_rej_min_std")
DELTA_MEAN = DELTA_STD = 0.04
"""Δs starts slightly positive, so that +c strengthens and −c weakens the chosen directions from the first
step.
"""

Calibration = Mapping[str, Tensor | Mapping[str, Tensor]]
"""Target name -> inputs of that layer [tokens, d_in]; for cho_rej_min_std a mapping with such tensors
under "cho" and "rej".
"""


@dataclass(frozen=True)
class Directions:
    """r singular directions of one weight [d_out, d_in]: U [d_out, r], S [r], Vh [r, d_in]; `chosen` are
    their places in the spectrum.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    chosen: Tensor | None = None


def direction_scores(
    name: str,
    singular: Tensor,
    vh: Tensor,
    selection_score: str,
    activations: Tensor | Mapping[str, Tensor] | None,
) -> Tensor:
    """The score of every singular direction, [k]: the r highest are kept.

    s_only: S. wanda: S · mean|X V|. act_only: mean|X V|. cho_rej_min_std: the smaller of the standard
    deviations (n − 1) of X V over chosen and over rejected inputs. X is [tokens, d_in]. Raises
    ModulationError when the needed inputs are missing.
    """
    if selection_score == "s_only":
        return singular
    if activations is None:
        raise ModulationError(f"selection {selection_score!r} needs calibration activations for {name!r}")
    if selection_score == "cho_rej_min_std":
        if isinstance(activations, Tensor) or not {"cho", "rej"} <= set(activations):
            raise ModulationError(f"selection 'cho_rej_min_std' needs activations under 'cho' and 'rej' for {name!r}")
        chosen, rejected = (_projections(name, activations[side], vh) for side in ("cho", "rej"))
        if len(chosen) < 2 or len(rejected) < 2:
            raise ModulationError(f"selection 'cho_rej_min_std' needs two tokens on each side for {name!r}")
        return torch.minimum(chosen.std(dim=0), rejected.std(dim=0))
    if not isinstance(activations, Tensor):
        raise ModulationError(f"selection {selection_score!r} needs one tensor of activations for {name!r}")
    strength = _projections(name, activations, vh).abs().mean(dim=0)
    return singular * strength if selection_score == "wanda" else strength


def _projections(name: str, inputs: Tensor, vh: Tensor) -> Tensor:
    if inputs.ndim != 2 or len(inputs) == 0 or inputs.shape[1] != vh.shape[1]:
        raise ModulationError(
            f"calibration activations for {name!r} have shape {tuple(inputs.shape)}, not [tokens, {vh.shape[1]}]"
        )
    return inputs.to(vh.device, vh.dtype) @ vh.T


@torch.no_grad()
def choose_directions(
    name: str,
    layer: nn.Linear,
    r: int,
    selection_score: str,
    activations: Tensor | Mapping[str, Tensor] | None,
) -> Directions:
    """Singular value decomposition of one layer in float32, and its r best directions in the order of the
    spectrum.
    """
    left, singular, vh = torch.linalg.svd(dense_weight(layer), full_matrices=False)
    scores = direction_scores(name, singular, vh, selection_score, activations)
    chosen = torch.argsort(scores, descending=True, stable=True)[: min(r, len(singular))].sort().values
    return Directions(left[:, chosen].contiguous(), singular[chosen].clone(), vh[chosen].contiguous(), chosen.cpu())


def decompose(
    layers: Mapping[str, nn.Linear], r: int, selection_score: str, calibration: Calibration | None
) -> Generator[Progress, None, dict[str, Directions]]:
    """Directions of every layer; yields after each decomposition, counting layers. Raises ModulationError."""
    if selection_score not in SELECTION_SCORES:
        raise ModulationError(f"selection must be one of {', '.join(SELECTION_SCORES)}, not {selection_score!r}")
    if r < 1:
        raise ModulationError(f"the rank must be at least 1, not {r}")
    found = {}
    for done, (name, layer) in enumerate(layers.items(), start=1):
        found[name] = choose_directions(name, layer, r, selection_score, (calibration or {}).get(name))
        yield Progress("decompose", done, len(layers), f"decomposing {name}")
    return found


class ModulatedPiSSA(Modulated):
    """Trainable changes Δs of r singular values per target layer; U, S and Vh are fixed, the base is
    frozen and never changed.

    Only Δs trains: r numbers a layer. S is kept because checkpoints hold it. r is clamped to what a layer
    has.
    """

    def __init__(
        self,
        model: nn.Module,
        r: int = 256,
        targets: str | Sequence[str] = ALL_LINEAR,
        exclude: str | Sequence[str] = DEFAULT_EXCLUDE,
        layer_range: tuple[float, float] = WHOLE_DEPTH,
        dtype: torch.dtype = torch.float32,
        selection_score: str = "s_only",
        calibration_activations: Calibration | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        """Decomposes every target layer at once; `decompose` and `from_directions` do it in steps.

        `selection_score`: see `direction_scores`. Raises ModulationError.
        """
        layers = match_targets(model, targets, exclude, layer_range)
        directions = run_to_end(decompose(layers, r, selection_score, calibration_activations))
        spec = TargetSpec(as_patterns(targets), as_patterns(exclude), layer_range)
        self._fill(model, directions, r, selection_score, spec, dtype, seed)

    @classmethod
    def from_directions(
        cls,
        model: nn.Module,
        directions: Mapping[str, Directions],
        *,
        r: int,
        selection_score: str,
        spec: TargetSpec,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
        changes: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """An adapter on directions chosen before: Δs are `changes` [r] per layer, or start at N(0.04, 0.04²)."""
        self = cls.__new__(cls)
        self._fill(model, directions, r, selection_score, spec, dtype, seed, changes)
        return self

    def _fill(
        self,
        model: nn.Module,
        directions: Mapping[str, Directions],
        r: int,
        selection_score: str,
        spec: TargetSpec,
        dtype: torch.dtype,
        seed: int | None,
        changes: Mapping[str, Tensor] | None = None,
    ) -> None:
        Modulated.__init__(self, model, spec)
        self.r, self.selection_score, self.dtype = r, selection_score, dtype
        self.U: dict[str, Tensor] = {name: kept.U.to(dtype) for name, kept in directions.items()}
        self.S: dict[str, Tensor] = {name: kept.S.to(dtype) for name, kept in directions.items()}
        self.Vh: dict[str, Tensor] = {name: kept.Vh.to(dtype) for name, kept in directions.items()}
        self.chosen = {name: kept.chosen for name, kept in directions.items() if kept.chosen is not None}
        if changes is None:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            changes = {
                name: DELTA_MEAN + DELTA_STD * torch.randn(len(kept.S), generator=generator)
                for name, kept in directions.items()
            }
        self.delta_s: dict[str, nn.Parameter] = {
            name: nn.Parameter(changes[name].detach().to(kept.S.device, dtype, copy=True))
            for name, kept in directions.items()
        }

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(self.delta_s)

    @property
    def tail_depth(self) -> dict[str, float]:
        """Per layer, how far down the spectrum the selection lies: 0 = the top r, 1 = the r smallest
        singular values.

        (mean place − (r − 1) / 2) / (k − r); 0 when all k directions are taken. Empty for a loaded
        checkpoint, which does not say.
        """
        depths = {}
        for name, chosen in self.chosen.items():
            r, full = len(chosen), min(self.shape(name))
            depths[name] = (chosen.double().mean().item() - (r - 1) / 2) / (full - r) if full > r else 0.0
        return depths

    @property
    def mean_tail_depth(self) -> float | None:
        """The mean of `tail_depth` over the layers; None when it is not known."""
        depths = self.tail_depth
        return sum(depths.values()) / len(depths) if depths else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((f"delta_s.{name}", parameter) for name, parameter in self.delta_s.items())

    def shape(self, name: str) -> tuple[int, int]:
        return self.Vh[name].shape[1], self.U[name].shape[0]

    def pair(self, name: str) -> tuple[Tensor, Tensor, float]:
        return self.Vh[name], self.U[name] * self.delta_s[name].detach(), 1.0

    def addition(self, name: str, x: Tensor) -> Tensor:
        lora_A = self.Vh[name]
        return F.linear(F.linear(x.to(lora_A.dtype), lora_A) * self.delta_s[name], self.U[name])

    def save(self, path: Path | str, extra_meta: Mapping[str, str] | None = None) -> None:
        """Write keys `U.…`, `S.…`, `Vh.…`, `delta_s.…` with metadata kind, r, targets, layer_range,
        selection_score; atomic.
        """
        parts: dict[str, Mapping[str, Tensor]] = {"U": self.U, "S": self.S, "Vh": self.Vh, "delta_s": self.delta_s}
        metadata = {
            "kind": "pissa",
            "r": str(self.r),
            "selection_score": self.selection_score,
            **(extra_meta or {}),
        }
        write_checkpoint(Path(path), parts, self.spec, metadata)

    def load(self, path: Path | str) -> None:
        """Take directions and Δs of a checkpoint. Raises ModulationError, and changes nothing, when
        targets or shapes differ.
        """
        path = Path(path)
        parts, metadata = read_checkpoint(path, ("U", "S", "Vh", "delta_s"))
        _refuse_other_kind(metadata, path)
        named = align(parts, self.target_names, path)
        self._check(named, {name: self.shape(name) for name in self.target_names}, path)
        for name, parameter in self.delta_s.items():
            device, dtype = parameter.device, parameter.dtype
            self.U[name] = named["U"][name].to(device, dtype)
            self.S[name] = named["S"][name].to(device, dtype)
            self.Vh[name] = named["Vh"][name].to(device, dtype)
            parameter.data = named["delta_s"][name].to(device, dtype).clone()
        self.selection_score = metadata.get("selection_score", self.selection_score)
        self.r = max(len(values) for values in self.S.values())
        self.chosen = {}

    @classmethod
    def from_checkpoint(cls, model: nn.Module, path: Path | str) -> Self:
        """The adapter a checkpoint describes, on a `model` that holds its original weights W. Raises
        ModulationError.

        A checkpoint of an implementation that subtracts U diag(S) Vh from W gives the same forward here:
        see the module text.
        """
        path = Path(path)
        metadata = read_metadata(path)
        _refuse_other_kind(metadata, path)
        parts, _ = read_checkpoint(path, ("U", "S", "Vh", "delta_s"))
        layers, spec = checkpoint_layers(model, read_spec(metadata, path), parts)
        named = align(parts, tuple(layers), path)
        cls._check(named, {n: (m.in_features, m.out_features) for n, m in layers.items()}, path)
        directions = {
            name: Directions(
                named["U"][name].to(layer.weight.device),
                named["S"][name].to(layer.weight.device),
                named["Vh"][name].to(layer.weight.device),
            )
            for name, layer in layers.items()
        }
        return cls.from_directions(
            model,
            directions,
            r=max(len(kept.S) for kept in directions.values()),
            selection_score=metadata.get("selection_score", "s_only"),
            spec=spec,
            dtype=next(iter(directions.values())).U.dtype,
            changes=named["delta_s"],
        )

    @staticmethod
    def _check(named: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, tuple[int, int]], path: Path) -> None:
        check_pairs(named["Vh"], named["U"], shapes, path)
        for name in shapes:
            rank = len(named["Vh"][name])
            if named["S"][name].shape != (rank,) or named["delta_s"][name].shape != (rank,):
                raise ModulationError(f"{path.name} holds S or delta_s for {name!r} that are not {rank} numbers")


def _refuse_other_kind(metadata: Mapping[str, str], path: Path) -> None:
    if metadata.get("kind") != "pissa":
        raise ModulationError(f"{path.name} is not a PiSSA checkpoint (kind {metadata.get('kind')!r})")
