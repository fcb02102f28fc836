"""The middle tier: the transformers forward of any architecture, with its linear layers running through oneDNN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from dlm_tui.model.backbone import Head, ReferenceBackbone
from dlm_tui.model.base import Base
from dlm_tui.model.linear import OneDnnLinear, onednn_linear
from dlm_tui.model.mixer import Mixer


class OneDnnBackbone(ReferenceBackbone):
    """Like the reference, 1.3 to 2 times quicker for few tokens; gradients still flow through the plain product.

    The linear layers are only switched while a forward runs, so that the module is the library's own for all others.
    """

    tier = "onednn"

    def __init__(self, base: Base, mixer: Mixer | None = None) -> None:
        super().__init__(base, mixer)
        self._linears = [module for module in base.decoder.modules() if type(module) is nn.Linear]
        output = cast("Any", base.model).get_output_embeddings()
        if type(output) is nn.Linear:
            self._head = Head(base, lambda hidden: self._to_vocabulary(hidden, output))

    def _run(self, **inputs: Any) -> Tensor:
        with self._switched():
            return super()._run(**inputs)

    def _to_vocabulary(self, hidden: Tensor, output: nn.Linear) -> Tensor:
        if hidden.requires_grad:
            return cast("Tensor", output(hidden))
        return onednn_linear(hidden, output.weight, output.bias)

    @contextlib.contextmanager
    def _switched(self) -> Iterator[None]:
        for linear in self._linears:
            linear.__class__ = OneDnnLinear
        try:
            yield
        finally:
            for linear in self._linears:
                linear.__class__ = nn.Linear
