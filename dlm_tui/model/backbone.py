"""Running the base with mixed adapters: the interface, and the plain reference path through transformers.

The reference is what everything faster is compared with. It works for any causal LM of the library and is
differentiable in the coefficients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dlm_tui.model.apart_cache import ApartCache
from dlm_tui.model.base import Base
from dlm_tui.model.cache import ReferenceCache
from dlm_tui.model.growing_rope import grows, shrink
from dlm_tui.model.head import Head
from dlm_tui.model.mixer import Mixer, Stack
from dlm_tui.model.offloaded import read_again

_LONG, _SHORT = 12, 3
"""Tokens of two rows that stand beside each other in a probe."""
_NEAR, _NEAR_IN_HALF = 1e-3, 5e-2


class KVCache(Protocol):
    """Keys and values of the tokens seen so far, one row per batch entry."""

    @property
    def batch(self) -> int: ...

    @property
    def lengths(self) -> list[int]:
        """Tokens held per row."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values."""
        ...

    def crop(self, length: int) -> None:
        """Keep at most the first `length` tokens of every row."""
        ...

    def repeat(self, batch: int) -> KVCache:
        """A new cache of `batch` rows, each a copy of this cache's only row."""
        ...

    def select(self, rows: Sequence[int]) -> KVCache:
        """A new cache of the given rows, in that order."""
        ...

    def joined(self, others: Sequence[Any]) -> KVCache:
        """A new cache of this one's rows followed by those of `others`, which are of the same tier."""
        ...

    def adopt(self, source: KVCache, length: int) -> None:
        """Hold the first `length` tokens of the only row of `source` in every row, instead of what was held.

        Raises TypeError for a cache of another tier and ValueError where `source` does not hold them.
        """
        ...


class Backbone(Protocol):
    """The decoder without its head. Hidden states are those after the final norm."""

    @property
    def tier(self) -> str: ...

    @property
    def mixer(self) -> Mixer: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def columns(self) -> int:
        """How many columns coefficients have."""
        ...

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens (a hint for tiers that allocate ahead)."""
        ...

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        coefficients: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, H] of new tokens `ids` [B, T] (long), which are appended to `cache`.

        `coefficients` [B, N] mixes the adapters per row; None leaves them off. Rows may be padded on the right:
        `lengths` says how many of the T tokens of each row are real (0 only for rows that hold tokens already);
        the hidden states of the padding are meaningless and the cache forgets it. Without a cache padding needs
        no lengths, as attention is causal.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] float32 of hidden states [..., H]."""
        ...


class ReferenceBackbone:
    """The transformers forward with the mixer as forward hooks, attached only while a mixed batch runs.

    With `coefficients` None or all zero no hook is attached: the result is bit for bit that of the untouched model.
    In a mixed batch a row of zeros gets exactly 0.0 added at every layer, so it equals the same row of the same batch
    run without adapters (only the sign of a zero may differ).
    """

    tier = "reference"

    def __init__(self, base: Base, mixer: Mixer | None = None) -> None:
        self.base = base
        self.mixer = mixer or Mixer((), base.device, base.dtype)
        self.hidden_size = base.hidden_size
        self.vocab_size = base.vocab_size
        self._head = Head(base)
        self._growing = [module for module in base.decoder.modules() if grows(module)]

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def columns(self) -> int:
        return self.mixer.columns

    def new_cache(self, batch: int, capacity: int = 0) -> KVCache:
        self.settle_rows()
        plain = self._plain_cache(batch)
        return ApartCache([plain]) if self.base.rows_apart else plain

    def settle_rows(self) -> None:
        """Find out, once for a base, whether rows of unequal length can run together: a few tokens are read both ways.

        A window that the library's masks know nothing of may be longer than any probe.
        """
        if self.base.rows_apart is None:
            has_own_window = bool(getattr(self.base.config, "window_size", None))
            bears_gaps = self._plain_cache(1).recomputes or any(self._reads_gaps_alike(seed) for seed in range(2))
            self.base.rows_apart = has_own_window or not bears_gaps

    def _plain_cache(self, batch: int) -> ReferenceCache:
        return ReferenceCache(batch, self.base.config, bool(getattr(self.base.model, "_is_stateful", False)))

    def _reads_gaps_alike(self, seed: int) -> bool:
        """Whether what follows a short row beside a long one is what follows it alone. One of several seeds is enough:
        with experts a router that hardly prefers one to the next can choose the other."""
        ids = torch.randint(0, self.vocab_size, (2, _LONG + 2), generator=torch.Generator().manual_seed(seed))
        alone, cache = self.forward(ids), self._plain_cache(2)
        try:
            self.forward(ids[:, :_LONG], cache, lengths=[_LONG, _SHORT])
            beside = self.forward(torch.stack([ids[0, _LONG:], ids[1, _SHORT : _SHORT + 2]]), cache)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # a forward that does not take the mask of a gap
        wanted = torch.stack([alone[0, _LONG:], alone[1, _SHORT : _SHORT + 2]]).float()
        limit = _NEAR if alone.dtype == torch.float32 else _NEAR_IN_HALF
        return bool((beside.float() - wanted).abs().max() <= limit * wanted.abs().max())

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        coefficients: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        if isinstance(cache, ApartCache):
            return self._apart(ids, cache, coefficients, lengths)
        ids = ids.to(self.device)
        wants_gradient = coefficients is not None and coefficients.requires_grad
        differentiated = wants_gradient and torch.is_grad_enabled()
        with torch.set_grad_enabled(differentiated), self._mixed(coefficients, again=differentiated):
            if cache is None:
                return self._run(input_ids=ids, use_cache=False)
            if not isinstance(cache, ReferenceCache):
                raise TypeError("this cache belongs to another tier")
            return cache.extend(ids, lengths, self._run)

    def _apart(
        self, ids: Tensor, cache: ApartCache, coefficients: Tensor | None, lengths: Sequence[int] | None
    ) -> Tensor:
        """The same, every part of the cache for itself."""
        batch, count = ids.shape
        new = list(lengths) if lengths is not None else [count] * batch
        if len(new) != batch or batch != cache.batch or min(new) < 0 or max(new) > count:
            raise ValueError(f"lengths {new} of ids {tuple(ids.shape)} do not fit a cache of {cache.batch}")
        found, row = [], 0
        for part in cache.split(new):
            rows, more = slice(row, row + part.batch), new[row]
            row += part.batch
            if more:
                own = coefficients[rows] if coefficients is not None else None
                hidden = self.forward(ids[rows, :more], part, own)
            else:
                hidden = torch.zeros(part.batch, 0, self.hidden_size, dtype=self.base.dtype, device=self.device)
            found.append(torch.nn.functional.pad(hidden, (0, 0, 0, count - more)))
        return torch.cat(found)

    def logits(self, hidden: Tensor) -> Tensor:
        with torch.set_grad_enabled(hidden.requires_grad and torch.is_grad_enabled()):
            return self._head(hidden)

    def _run(self, **inputs: Any) -> Tensor:
        shrink(self._growing)
        return cast("Tensor", self.base.decoder(return_dict=True, **inputs).last_hidden_state)

    @contextlib.contextmanager
    def _mixed(self, coefficients: Tensor | None, *, again: bool) -> Iterator[None]:
        """`again`: what lies on the disk is read a second time on the way back."""
        stacks = self.mixer.stacks if coefficients is not None else {}
        ranks = self.mixer.expand(coefficients)
        if ranks is None:
            yield
            return
        with contextlib.ExitStack() as contexts:
            contexts.enter_context(self._adding(stacks, ranks))
            if again and self.base.is_offloaded:
                contexts.enter_context(read_again(self.base.decoder, lambda: self._adding(stacks, ranks)))
            yield

    @contextlib.contextmanager
    def _adding(self, stacks: Mapping[str, Stack], ranks: Sequence[Tensor]) -> Iterator[None]:
        handles = [
            self.base.target_module(name).register_forward_hook(_hook(stack, ranks[stack.layout]))
            for name, stack in stacks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _hook(stack: Stack, ranks: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if x.dim() != (2 if stack.tokens else 3) or x.shape[0] != ranks.shape[0]:
            return stack.add(output, x, _shared_row(ranks))
        return stack.add(output, x, ranks, _embedding_factor(module) if stack.tokens else 1.0)

    return add


def _embedding_factor(module: nn.Module) -> float:
    """What an embedding multiplies its rows with: Gemma's does it in its own forward."""
    factor = getattr(module, "embed_scale", None)
    return 1.0 if factor is None else float(factor)


def _shared_row(ranks: Tensor) -> Tensor:
    """Where a layer sees flattened tokens the rows cannot be told apart: all must have the same coefficients."""
    if bool((ranks != ranks[:1]).any()):
        raise ValueError("this layer flattens its batch, so all rows must share one mix")
    return ranks[0]
