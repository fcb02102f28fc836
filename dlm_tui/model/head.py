"""The output layer, and what the library does with its numbers: asked of its own forward, never told by keys alone.

Other families call the same scaling by other names, and a key in a configuration may be one that its class never reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlm_tui.model.base import Base
from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.system_errors import first_line

_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_PROBE = (-100.0, -1.0, 0.01, 0.3, 10.0, 1000.0)
"""Logits [V] at which no two scalings look alike: small ones for factors, large ones for caps."""


@dataclass(frozen=True)
class Scaling:
    """What becomes of logits behind the output layer: times `multiply`, through `divide`, softly kept below `cap` (0.0
    for none). With `is_known` False it is something else, and the library's own forward has to compute logits."""

    multiply: float = 1.0
    divide: float = 1.0
    cap: float = 0.0
    is_known: bool = True

    def __call__(self, logits: Tensor) -> Tensor:
        if self.multiply != 1.0:
            logits = logits * self.multiply
        if self.divide != 1.0:
            logits = logits / self.divide
        if self.cap:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


class Head:
    """The output projection with whatever scaling the architecture puts behind it.

    Raises BaseUnavailable, when the first one of a base is made, where the library's forward cannot be asked.
    """

    def __init__(
        self,
        base: Base,
        project: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if base.scaling is None:
            base.scaling = _scaling_of(base)
        self._scale: Scaling = base.scaling
        self._dtype = dtype or base.dtype
        self._project = project or _output_layer(base)
        if not self._scale.is_known:
            self._project, self._dtype = lambda hidden: _by_the_library(base, hidden), base.dtype

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._scale(self._project(hidden.to(self._dtype)).float())


class _Hidden:
    """Stands for whatever a decoder returns: its hidden states [B, T, H], and None for all else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


def _scaling_of(base: Base) -> Scaling:
    """The scaling that the library's forward shows. Neither decoder nor output layer are run for that, so that it costs
    the same whatever their size is and wherever their weights lie."""
    hidden = torch.ones(1, 1, base.hidden_size, dtype=base.dtype, device=base.device)
    raw = torch.tensor([[_PROBE]], dtype=base.dtype, device=base.device)
    given: list[Tensor] = []

    def output(arriving: Tensor) -> Tensor:
        given.append(arriving)
        return raw

    try:
        with torch.no_grad(), _in_place_of(_output_layer(base), output):
            found = _by_the_library(base, hidden)
    except Exception as error:  # a forward may ask anything of what stands in for its decoder
        raise BaseUnavailable(
            f"the base {base.source.title} cannot be used: how it makes logits of hidden states is not known"
            f" ({first_line(error)}); use another base"
        ) from error
    if len(given) == 1 and torch.equal(given[0], hidden) and found.shape == raw.shape:
        exact = 1e-5 if base.dtype == torch.float32 else 2e-2
        for scaling in _candidates(base.config):
            if torch.allclose(scaling(raw.float()), found.float(), rtol=exact, atol=0.0):
                return scaling
    return Scaling(is_known=False)


def _candidates(config: Any) -> list[Scaling]:
    """None at all first, then every scaling that a number in the configuration may stand for."""
    factors, caps = _numbers(config, _FACTORS), _numbers(config, _CAPS)
    pairs = [(1.0, 1.0), *((factor, 1.0) for factor in factors), *((1.0, factor) for factor in factors)]
    return [Scaling(multiply, divide, cap) for cap in (0.0, *caps) for multiply, divide in pairs]


def _numbers(config: Any, keys: Sequence[str]) -> list[float]:
    values = (getattr(config, key, None) for key in keys)
    return [float(value) for value in values if isinstance(value, int | float) and value]


def _output_layer(base: Base) -> nn.Module:
    return cast("nn.Module", cast("Any", base.model).get_output_embeddings())


def _by_the_library(base: Base, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., H] as the library's own forward makes them. Raises as that does, and
    LookupError where it takes hidden states from elsewhere than the decoder."""
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
    asked: list[bool] = []

    def decoder(*_: object, **__: object) -> _Hidden:
        asked.append(True)
        return _Hidden(rows)

    with contextlib.ExitStack() as contexts:
        for module in _decoders(base):
            contexts.enter_context(_in_place_of(module, decoder))
        logits = cast("Tensor", cast("Any", base.model)(input_ids=ids, return_dict=True).logits)
    if not asked:
        raise LookupError("its forward runs another decoder than it names")
    return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


def _decoders(base: Base) -> list[nn.Module]:
    """What the forward may run as its decoder: OPT's passes by the module that holds it."""
    inner = cast("nn.Module", cast("Any", base.model).get_decoder())  # of some it is the output layer that is called so
    return [base.decoder, *(module for module in base.decoder.children() if module is inner)]


@contextlib.contextmanager
def _in_place_of(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """`module` runs `forward` instead of its own, which may be the instance's where its weights lie on the disk."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own
