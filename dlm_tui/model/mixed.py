"""A base with a document's adapters, ready to be asked under any mix."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from dlm_tui.errors import UsageError
from dlm_tui.meant import meant
from dlm_tui.model.adapters import Adapter, check_fits
from dlm_tui.model.backbone import Backbone, ReferenceBackbone
from dlm_tui.model.backend_selection import fastest, why_slower
from dlm_tui.model.base import Base
from dlm_tui.model.fused.forward import FusedBackbone
from dlm_tui.model.fused.weights import FusedWeights
from dlm_tui.model.mixer import Mixer
from dlm_tui.model.prefix_reuse import PrefilledBatch


class MixedModel:
    """The base and its adapters: `backbone` is the fastest tier that passed its self-check, `reference` the plain one.

    `generation` is what answers are decoded with: `backbone`, or one that reads its weights as bfloat16. Gates and
    scores always use `backbone`. `names` is the order of the coefficient columns.
    Adapters can be exchanged while the base stays loaded.
    """

    def __init__(
        self,
        base: Base,
        adapters: Mapping[str, Adapter],
        *,
        fast: bool = True,
        generation_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """`generation_dtype` bfloat16 reads half the bytes per token and costs half the base's memory again."""
        self.base = base
        self._fast = fast
        self._generation_dtype = generation_dtype
        self._half_weights: FusedWeights | None = None
        self.prefilled: PrefilledBatch | None = None  # the last answer's, for what begins alike
        self._adapters = dict(adapters)
        for adapter in self._adapters.values():
            check_fits(adapter, base)
        self._build()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        return self._adapters

    @property
    def decoding_dtype(self) -> torch.dtype:
        """What the weights are read as while an answer is decoded."""
        return self.generation.reads if isinstance(self.generation, FusedBackbone) else self.base.dtype

    @property
    def dtype_problem(self) -> str:
        """Why answers are computed in float32 where bfloat16 was asked for, as a sentence; "" where they are not."""
        if self._generation_dtype == "float32" or self.decoding_dtype != torch.float32:
            return ""
        why = why_slower(self.base) or "it was left out"
        return f"answers are computed in float32, not in bfloat16, which only the fast path reads: {why}"

    def swap(self, name: str, adapter: Adapter | None) -> None:
        """Put `adapter` in the place of the one called `name` (or add it at the end); None removes it.

        The other adapters and the base stay as they are. Backbones taken before keep the old adapters.
        """
        if adapter is None:
            self._adapters.pop(name, None)
        else:
            check_fits(adapter, self.base)
            self._adapters[name] = adapter
        self._build()

    def extended(self, extra: Mapping[str, Adapter]) -> MixedModel:
        """A model of its own with further adapters behind these; the base and its weights are shared."""
        for name in extra:
            if name in self._adapters:
                raise UsageError(f"an adapter is already called {name!r}")
        return MixedModel(
            self.base, {**self._adapters, **extra}, fast=self._fast, generation_dtype=self._generation_dtype
        )

    def coefficients(self, mix: Mapping[str, float]) -> Tensor:
        """A mix as a row [N] float32. Raises UsageError for unknown names and values that are not finite."""
        for name, value in mix.items():
            if name not in self._adapters:
                trained = ", ".join(self.names) or "none"
                raise UsageError(f"no trained adapter is called {name!r} (trained: {trained}){meant(name, self.names)}")
            if not math.isfinite(value):
                raise UsageError(f"the coefficient of {name} is not a finite number")
        return self.mixer.coefficients(mix)

    @contextlib.contextmanager
    def with_extra(self, extra: Sequence[Adapter]) -> Iterator[Backbone]:
        """A backbone whose coefficients have N + len(extra) columns: these adapters, then the extra ones."""
        for adapter in extra:
            check_fits(adapter, self.base)
        yield self._backbone(self.mixer.extended(extra))

    def _build(self) -> None:
        device, dtype = self.base.device, self.base.dtype
        self.mixer = Mixer(tuple(self._adapters.values()), device, dtype, names=self.names)
        self.backbone: Backbone = self._backbone(self.mixer)
        self.reference = ReferenceBackbone(self.base, self.mixer)
        self.generation: Backbone = self._generation()

    def _backbone(self, mixer: Mixer) -> Backbone:
        return fastest(self.base, mixer) if self._fast else ReferenceBackbone(self.base, mixer)

    def _generation(self) -> Backbone:
        fast = self.backbone
        if self._generation_dtype == "float32" or not isinstance(fast, FusedBackbone):
            return fast
        if fast.weights.compiled and not fast.weights.uses_bf16_weights:
            return FusedBackbone(self.base, fast.weights, self.mixer, compiled=True, uses_bf16_weights=True)
        if self.base.device.type == "cuda" and self.base.dtype == torch.float32:
            if self._half_weights is None:
                self._half_weights = fast.weights.converted(torch.bfloat16)
            mixer = Mixer(self.mixer.adapters, self.base.device, torch.bfloat16, names=self.names)
            return FusedBackbone(self.base, self._half_weights, mixer)
        return fast
