"""One-token steps of fixed shape, recorded once as CUDA graphs and replayed: the fused tier on a GPU.

At one token per row a GPU waits for the host most of the time. A recorded step is one launch; what changes between
steps (tokens, positions, coefficients) stands in tensors that stay in place, and attention goes over the whole
preallocated length with a mask.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dlm_tui.model.fused.kv_cache import FusedKVCache, Plan
from dlm_tui.model.fused.weights import FusedWeights

_LENGTHS = 256
"""Recorded steps exist for cache capacities that are multiples of this."""
_KEPT = 6
"""Recorded steps kept: views finish one after the other, so an answer goes through several batch sizes."""


class Runner(Protocol):
    """The forward that is recorded: every shape follows from those of its arguments and it reads no value back."""

    weights: FusedWeights

    def new_cache(self, batch: int, capacity: int) -> FusedKVCache: ...

    def run(self, ids: Tensor, cache: FusedKVCache, plan: Plan, ranks: list[Tensor] | None) -> Tensor: ...


class DecodeGraph:
    """The step for `batch` rows and a cache of `capacity` tokens, with ranks of these widths or without adapters."""

    def __init__(self, runner: Runner, batch: int, capacity: int, widths: tuple[int, ...] | None, record: bool) -> None:
        device, dtype = runner.weights.device, runner.weights.dtype
        self._memory = runner.new_cache(batch, capacity)
        self._ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._ranks = None
        if widths is not None:
            self._ranks = [torch.zeros(batch, 1, width, dtype=dtype, device=device) for width in widths]
        # kept here: the weights' own table is replaced when it grows, and a graph reads the memory it was recorded with
        self._table = runner.weights.rope(capacity)
        self._runner = runner
        self._owner: Callable[[], FusedKVCache | None] = lambda: None
        self._step = self._recorded() if record else self._run

    @property
    def kv(self) -> Tensor:
        """The memory of keys and values that the step works on."""
        return self._memory.kv

    def step(self, ids: Tensor, cache: FusedKVCache, ranks: list[Tensor] | None) -> Tensor:
        """Hidden states [B, 1, H] of one more token per row behind what `cache` holds; it has room for them."""
        self._take(cache)
        self._ids.copy_(ids)
        self._positions.copy_(torch.tensor(cache.lengths)[:, None])
        for place, part in zip(self._ranks or (), ranks or (), strict=True):
            place.copy_(part)
        return self._step().clone()

    def _take(self, cache: FusedKVCache) -> None:
        """Let `cache` live in the memory of the recorded step; the one that lived there moves out."""
        if cache.kv is self.kv:
            return
        owner = self._owner()
        if owner is not None and owner.kv is self.kv:
            owner.kv = self.kv.clone()
        used = max(cache.lengths)
        self.kv[..., :used, :] = cache.kv[..., :used, :]
        cache.kv = self.kv
        self._owner = weakref.ref(cache)

    def _run(self) -> Tensor:
        plan = Plan.apart(self._positions, self._memory.capacity, (1,) * self._memory.batch)
        return self._runner.run(self._ids, self._memory, plan, self._ranks)

    def _recorded(self) -> Callable[[], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # libraries allocate their workspaces on first use, which cannot be recorded
            for _ in range(2):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self._run()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """The recorded steps of one backbone, by shape. With `record` off the same fixed steps run unrecorded."""

    def __init__(self, runner: Runner, record: bool) -> None:
        self._runner = weakref.proxy(runner)
        self._record = record
        self._graphs: OrderedDict[tuple[object, ...], DecodeGraph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def step(self, ids: Tensor, cache: FusedKVCache, ranks: list[Tensor] | None) -> Tensor:
        """See `DecodeGraph.step`."""
        capacity = -(-cache.capacity // _LENGTHS) * _LENGTHS
        widths = tuple(part.shape[2] for part in ranks) if ranks is not None else None
        key = (cache.batch, capacity, widths)
        if key not in self._graphs:
            self._graphs[key] = self._make(cache.batch, capacity, widths)
            if len(self._graphs) > _KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key].step(ids, cache, ranks)

    def _make(self, batch: int, capacity: int, widths: tuple[int, ...] | None) -> DecodeGraph:
        try:
            return DecodeGraph(self._runner, batch, capacity, widths, self._record)
        except RuntimeError as error:
            # a driver that cannot record is slower, not wrong
            logging.getLogger(__name__).warning("one-token steps are not recorded: %s", error)
            self._record = False
            return DecodeGraph(self._runner, batch, capacity, widths, False)
