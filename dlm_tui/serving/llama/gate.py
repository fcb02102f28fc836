"""The gate in numpy: the same network and the same hint about unlike prompts as in the workbench. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dlm_tui.errors import DlmTuiError
from dlm_tui.small_files import require_regular
from dlm_tui.system_errors import cause

Floats = npt.NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])
_KEYS = ("0.weight", "0.bias", "2.weight", "2.bias")


@dataclass(frozen=True)
class Ood:
    """How unlike the training prompts a prompt is; see `dlm_tui.gate.ood`, whose numbers these are (float64)."""

    mean: Floats
    axes: Floats
    spread: Floats
    rest: float
    held_out: Floats
    limit: float

    def judge(self, embedding: Floats) -> tuple[float, bool]:
        """The share of held-out training prompts that lie nearer than [H], and whether it lies beyond the limit."""
        centred = embedding - self.mean
        along = self.axes @ centred
        outside = max(float(centred @ centred - along @ along), 0.0)
        distance = math.sqrt((float((along**2 / self.spread).sum()) + outside / self.rest) / len(self.mean))
        if not math.isfinite(distance):
            return 1.0, True
        nearer = int(np.searchsorted(self.held_out, distance))
        return nearer / max(len(self.held_out), 1), distance > self.limit


@dataclass(frozen=True)
class NumpyGate:
    """softmax(W2 · GELU(W1 · x + b1) + b2) with the exact GELU, in float64."""

    names: tuple[str, ...]
    tensors: Mapping[str, Floats]
    ood: Ood | None

    @classmethod
    def read(cls, names: tuple[str, ...], weights: Path, ood: Path | None) -> NumpyGate:
        """Raises DlmTuiError with one sentence for files that are missing, damaged or do not fit together."""
        tensors = _read(weights)
        shapes = {key: tensors[key].shape if key in tensors else None for key in _KEYS}
        hidden = shapes["0.bias"]
        fits = (
            hidden is not None
            and shapes["0.weight"] is not None
            and len(shapes["0.weight"]) == 2
            and shapes["0.weight"][:1] == hidden
            and shapes["2.weight"] == (len(names), *hidden)
            and shapes["2.bias"] == (len(names),)
        )
        if not fits or not all(np.isfinite(tensors[key]).all() for key in _KEYS):
            raise DlmTuiError(f"{weights} is not the gate of {', '.join(names)}; export it again")
        return cls(names, {key: tensors[key] for key in _KEYS}, _ood(ood) if ood is not None else None)

    @property
    def input_dim(self) -> int:
        """Size H of the prompt embedding."""
        return int(self.tensors["0.weight"].shape[1])

    def weights(self, embedding: Floats) -> dict[str, float]:
        """[H] → adapter → weight, which sum to 1."""
        tensors = self.tensors
        inner = tensors["0.weight"] @ embedding + tensors["0.bias"]
        active = inner * 0.5 * (1.0 + _erf(inner / math.sqrt(2.0)))
        logits = tensors["2.weight"] @ active + tensors["2.bias"]
        powers = np.exp(logits - logits.max())
        return dict(zip(self.names, (powers / powers.sum()).tolist(), strict=True))


def _ood(path: Path) -> Ood | None:
    """None for a damaged record: the hint is then not given, routing does not depend on it."""
    try:
        found = _read(path)
        rest, limit = found["rest_limit"].tolist()
        return Ood(found["mean"], found["axes"], found["spread"], rest, found["held_out"], limit)
    except (DlmTuiError, KeyError, ValueError):
        return None


def _read(path: Path) -> dict[str, Floats]:
    try:
        require_regular(path)
        return {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise DlmTuiError(f"{path} cannot be read: {cause(error)}") from None
