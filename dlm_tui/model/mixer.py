"""The mixer: all adapters stacked along the rank axis, each row of a batch with coefficients of its own.

For a layer with input x, stacked pairs A [R, in] and B [out, R] (scales folded in) and coefficients expanded to ranks
S [B, R], the layer's output gets `((x Aᵀ) ∘ S) Bᵀ` added. A row of zero coefficients adds exactly 0.0. At the token
embedding x is one-hot, so x Aᵀ is a look-up of rows of Aᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_tui.model.adapters import Adapter, LowRank


@dataclass(frozen=True)
class Stack:
    """One layer's pairs: `lora_A` [R, in], `lora_B` [out, R] scales folded in; `layout` indexes `Mixer.layouts`.

    With `tokens` the layer is the token embedding, and `lora_A` is kept as [vocabulary, R].
    """

    lora_A: Tensor
    lora_B: Tensor
    layout: int
    tokens: bool = False

    def add(self, output: Tensor, x: Tensor, ranks: Tensor, factor: float = 1.0) -> Tensor:
        """`output` [B, T, out] plus `factor` times the mixed addition with `ranks` [B, 1, R].

        `x` is [B, T, in], or token ids [B, T] (long) with `tokens`.
        """
        if self.tokens:
            inner = torch.nn.functional.embedding(x, self.lora_A) * (ranks * factor)
        else:
            inner = torch.nn.functional.linear(x, self.lora_A) * ranks
        return output + torch.nn.functional.linear(inner, self.lora_B)


class Mixer:
    """Stacked adapters of one model. Immutable: a swap builds a new one, which costs a copy of the pairs.

    `names` gives the order of the coefficient columns; `layouts` the distinct column index vectors [R] (long).
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        names: Sequence[str] | None = None,
    ) -> None:
        self.adapters = tuple(adapters)
        self.names = tuple(names or (adapter.name for adapter in adapters))
        self.device = torch.device(device)
        self.dtype = dtype
        self._stacks: dict[str, Stack] | None = None
        self._layout_index: dict[tuple[int, ...], int] = {}
        self.layouts: list[Tensor] = []

    @property
    def stacks(self) -> dict[str, Stack]:
        """Module name → stacked pairs, built on first use (the fused tier stacks whole groups of modules instead)."""
        if self._stacks is None:
            modules = dict.fromkeys(module for adapter in self.adapters for module in adapter.modules)
            self._stacks = {module: self.stack(module) for module in modules}
        return self._stacks

    def members(self, module: str) -> list[tuple[int, LowRank]]:
        """The adapters that target a module, as (coefficient column, pair)."""
        return [(n, a.modules[module]) for n, a in enumerate(self.adapters) if module in a.modules]

    @property
    def columns(self) -> int:
        return len(self.adapters)

    def coefficients(self, mix: Mapping[str, float]) -> Tensor:
        """A row [N] float32 in the order of `names`; adapters that are not in `mix` get 0."""
        return torch.tensor([float(mix.get(name, 0.0)) for name in self.names], device=self.device)

    def expand(self, coefficients: Tensor | None) -> list[Tensor] | None:
        """Coefficients [B, N] as one [B, 1, R] tensor per layout, or None when the adapters are to be skipped.

        They are skipped when there are none, or when all coefficients are 0 and no gradient is asked for.
        """
        if coefficients is None or not self.adapters:
            return None
        if coefficients.dim() != 2 or coefficients.shape[1] != self.columns:
            raise ValueError(f"coefficients must be [B, {self.columns}], not {tuple(coefficients.shape)}")
        if not coefficients.requires_grad and not bool(coefficients.any()):
            return None
        values = coefficients.to(self.device, self.dtype)
        return [values.index_select(1, layout).unsqueeze(1) for layout in self.layouts]

    def extended(self, extra: Sequence[Adapter]) -> Mixer:
        """A mixer with the columns of this one followed by those of `extra`."""
        names = (*self.names, *(adapter.name for adapter in extra))
        return Mixer((*self.adapters, *extra), self.device, self.dtype, names)

    def layout(self, columns: Tensor | Sequence[int]) -> int:
        """The index in `layouts` of a column index vector, added when new."""
        key = tuple(int(column) for column in columns)
        if key not in self._layout_index:
            self._layout_index[key] = len(self.layouts)
            self.layouts.append(torch.tensor(key, dtype=torch.long, device=self.device))
        return self._layout_index[key]

    @torch.no_grad()
    def stack(self, module: str) -> Stack:
        """The pairs of one module that some adapter targets."""
        members = self.members(module)
        lora_A = torch.cat([pair.lora_A.detach().float() for _, pair in members], dim=0)
        lora_B = torch.cat([pair.lora_B.detach().float() * pair.scale for _, pair in members], dim=1)
        columns = [column for column, pair in members for _ in range(pair.rank)]
        tokens = members[0][1].tokens
        return Stack(
            (lora_A.T if tokens else lora_A).to(self.device, self.dtype).contiguous(),
            lora_B.to(self.device, self.dtype).contiguous(),
            self.layout(columns),
            tokens,
        )
