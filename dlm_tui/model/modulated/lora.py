"""Low-rank adapters that a person can turn up, down and negative: `y = Wx + c · (alpha / r) · B A x`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from dlm_tui.model.modulated.base import Modulated, TargetSpec, through
from dlm_tui.model.modulated.checkpoint import (
    align,
    check_pairs,
    checkpoint_layers,
    number,
    read_checkpoint,
    read_metadata,
    read_spec,
    write_checkpoint,
)
from dlm_tui.model.modulated.pissa import ModulatedPiSSA
from dlm_tui.model.modulated.targets import (
    ALL_LINEAR,
    DEFAULT_EXCLUDE,
    WHOLE_DEPTH,
    ModulationError,
    as_patterns,
    match_targets,
)

__all__ = ["ModulatedLoRA", "ModulatedPiSSA", "ModulationError"]


class ModulatedLoRA(Modulated):
    """Free low-rank factors on every target layer; the base is frozen and never changed.

    `A[name]` is [r, d_in], Kaiming-uniform (a = √5); `B[name]` is [d_out, r], zero: a fresh adapter is
    exactly the base. With c = 0 the layer's own output is passed on untouched, so the model is the base
    bit for bit.

        lora = ModulatedLoRA(model, r=8, alpha=16, targets=r"self_attn\\.(q|v)_proj")
        with lora(model, c=-1.5):
            model(ids)
    """

    def __init__(
        self,
        model: nn.Module,
        r: int = 16,
        alpha: float = 32.0,
        targets: str | Sequence[str] = ALL_LINEAR,
        exclude: str | Sequence[str] = DEFAULT_EXCLUDE,
        layer_range: tuple[float, float] = WHOLE_DEPTH,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int | None = None,
    ) -> None:
        """`targets`, `exclude`, `layer_range`: see `match_targets`. Without `seed` torch's global
        generator is used.

        Raises ModulationError when nothing matches or r is not positive.
        """
        if r < 1:
            raise ModulationError(f"the rank must be at least 1, not {r}")
        super().__init__(model, TargetSpec(as_patterns(targets), as_patterns(exclude), layer_range))
        self.r, self.alpha, self.dtype = r, float(alpha), dtype
        self.A: dict[str, nn.Parameter] = {}
        self.B: dict[str, nn.Parameter] = {}
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name, layer in match_targets(model, targets, exclude, layer_range).items():
            device = layer.weight.device
            lora_A = torch.empty(r, layer.in_features)
            nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5), generator=generator)
            self.A[name] = nn.Parameter(lora_A.to(device, dtype))
            self.B[name] = nn.Parameter(torch.zeros(layer.out_features, r, dtype=dtype, device=device))

    @classmethod
    def from_factors(
        cls,
        model: nn.Module,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        *,
        r: int,
        alpha: float,
        spec: TargetSpec,
    ) -> Self:
        """An adapter made of given (A, B) pairs; ranks may differ per layer, the scale is alpha / r for
        all.
        """
        self = cls.__new__(cls)
        Modulated.__init__(self, model, spec)
        self.r, self.alpha = r, float(alpha)
        self.dtype = next(iter(factors.values()))[0].dtype
        self.A = {name: nn.Parameter(lora_A.detach().clone()) for name, (lora_A, _) in factors.items()}
        self.B = {name: nn.Parameter(lora_B.detach().clone()) for name, (_, lora_B) in factors.items()}
        return self

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.r

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(self.A)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((f"A.{name}", parameter) for name, parameter in self.A.items())
        yield from ((f"B.{name}", parameter) for name, parameter in self.B.items())

    def shape(self, name: str) -> tuple[int, int]:
        return self.A[name].shape[1], self.B[name].shape[0]

    def pair(self, name: str) -> tuple[Tensor, Tensor, float]:
        return self.A[name].detach(), self.B[name].detach(), self.scale

    def addition(self, name: str, x: Tensor) -> Tensor:
        return self.scale * through(x, self.A[name], self.B[name])

    def save(self, path: Path | str, extra_meta: Mapping[str, str] | None = None) -> None:
        """Write keys `A.…` and `B.…` with metadata r, alpha, targets, layer_range and kind; atomic."""
        metadata = {"kind": "lora", "r": str(self.r), "alpha": str(self.alpha), **(extra_meta or {})}
        write_checkpoint(Path(path), {"A": self.A, "B": self.B}, self.spec, metadata)

    def load(self, path: Path | str) -> None:
        """Take the tensors of a checkpoint. Raises ModulationError, and changes nothing, when targets,
        shapes, rank or scale differ; `from_checkpoint` makes an adapter as the checkpoint says.
        """
        path = Path(path)
        parts, metadata = read_checkpoint(path, ("A", "B"))
        _refuse_other_kind(metadata, path)
        named = align(parts, self.target_names, path)
        check_pairs(named["A"], named["B"], {name: self.shape(name) for name in self.A}, path)
        r, alpha = int(number(metadata, "r", path)), number(metadata, "alpha", path)
        ranks = {len(lora_A) for lora_A in named["A"].values()} - {len(lora_A) for lora_A in self.A.values()}
        if r != self.r or ranks:
            raise ModulationError(f"{path.name} has rank {r}, this adapter {self.r}")
        if alpha != self.alpha:
            raise ModulationError(f"{path.name} is scaled by alpha {alpha:g}, this adapter by {self.alpha:g}")
        with torch.no_grad():
            for own, kept in ((self.A, named["A"]), (self.B, named["B"])):
                for name, parameter in own.items():
                    parameter.data = kept[name].to(parameter.device, parameter.dtype).clone()

    @classmethod
    def from_checkpoint(cls, model: nn.Module, path: Path | str) -> Self:
        """The adapter a checkpoint describes, on `model`, in the dtype it was saved in. Raises
        ModulationError.
        """
        path = Path(path)
        metadata = read_metadata(path)
        _refuse_other_kind(metadata, path)
        parts, _ = read_checkpoint(path, ("A", "B"))
        layers, spec = checkpoint_layers(model, read_spec(metadata, path), parts)
        named = align(parts, tuple(layers), path)
        check_pairs(named["A"], named["B"], {n: (m.in_features, m.out_features) for n, m in layers.items()}, path)
        factors = {
            name: (named["A"][name].to(layer.weight.device), named["B"][name].to(layer.weight.device))
            for name, layer in layers.items()
        }
        r, alpha = int(number(metadata, "r", path)), number(metadata, "alpha", path)
        return cls.from_factors(model, factors, r=r, alpha=alpha, spec=spec)


def _refuse_other_kind(metadata: Mapping[str, str], path: Path) -> None:
    # the established form writes no kind for this class
    if metadata.get("kind", "lora") != "lora":
        raise ModulationError(f"{path.name} is a checkpoint of kind {metadata['kind']!r}, not a LoRA")
