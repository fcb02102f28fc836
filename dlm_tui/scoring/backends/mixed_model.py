"""The scoring protocols on a real model: base, fine-tuned, scaled and null views are rows of the mixer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dlm_tui.errors import UsageError
from dlm_tui.model import Adapter, Backbone, MixedModel, Sampling, uniform_mix
from dlm_tui.model.generation import generate
from dlm_tui.progress import run_to_end
from dlm_tui.scoring.backends.cache import CacheStats, ScoreCache, ViewLock
from dlm_tui.scoring.errors import EmptyText, NonFiniteScores, ScoringError, ViewActive
from dlm_tui.scoring.nulls import Fingerprint, fingerprint, null_adapter, null_shapes
from dlm_tui.scoring.protocols import RollingLogprob, TokenDist
from dlm_tui.scoring.rows import check_length, log_probabilities

TOKENS_PER_STEP = 512
_SMALLEST = math.log(float(np.finfo(np.float32).smallest_subnormal))


class TorchDifferentialBackend:
    """A mixed model as a scoring backend.

    `mix` (adapter → coefficient) is what "fine-tuned" means, by default all adapters at 1/N. Texts are tokenised as
    they are, with the tokenizer's default special tokens; with `chat` the prompts of `logprob_of`, `next_token_dist`
    and `generate` become one user turn of the chat template, after `system`. One view is open at a time. Results are
    cached by view, and the cache is dropped when an adapter is exchanged or a weight is written to.
    """

    safe_for_concurrent_views = False

    def __init__(
        self,
        model: MixedModel,
        mix: Mapping[str, float] | None = None,
        *,
        chat: bool = False,
        system: str | None = None,
    ) -> None:
        self.model = model
        self._mix = dict(uniform_mix(model.names) if mix is None else mix)
        self._chat, self._system = chat, system
        self._view_lock = ViewLock()
        self._cache = ScoreCache()
        self._mark: Fingerprint = ()
        model.coefficients(self._mix)  # unknown names are refused now

    @property
    def mix(self) -> dict[str, float]:
        """What `as_finetuned` applies."""
        return dict(self._mix)

    @property
    def cache_stats(self) -> CacheStats:
        """Hits, misses and entries of the cache all views share."""
        return self._cache.stats

    def clear_cache(self) -> None:
        """Forget all kept results."""
        self._cache.clear()

    @contextlib.contextmanager
    def as_base(self) -> Iterator[TorchView]:
        """The adapters off."""
        with self._view("base", {}) as view:
            yield view

    @contextlib.contextmanager
    def as_finetuned(self) -> Iterator[TorchView]:
        """The backend's mix."""
        with self._view("ft", self._mix) as view:
            yield view

    @contextlib.contextmanager
    def as_mix(self, mix: Mapping[str, float]) -> Iterator[TorchView]:
        """Any other mix. Raises UsageError for unknown adapters and coefficients that are not finite."""
        with self._view("mix", mix) as view:
            yield view

    @contextlib.contextmanager
    def as_scaled_adapter(self, lam: float) -> Iterator[TorchView]:
        """The backend's mix times `lam`. Raises UsageError unless it is finite."""
        if not math.isfinite(lam):
            raise UsageError(f"an adapter cannot be scaled by {lam}")
        with self._view(f"scaled({lam:g})", {name: lam * c for name, c in self._mix.items()}) as view:
            yield view

    @contextlib.contextmanager
    def as_null_adapter(
        self, seed: int, init_scale: float | None = None, rank_scale: float = 1.0
    ) -> Iterator[TorchView]:
        """A random adapter alone. Without `init_scale` its size matches the trained adapters' (times √rank_scale per
        factor).

        The model's adapters are never touched: the null is an extra column of the mixer. Raises NullScaleError, and
        ScoringError when no adapter is trained whose shapes it could have.
        """
        null = self._null(seed, init_scale, rank_scale)
        label = f"null({seed})"
        with self._view_lock.enter(label) as check, self.model.with_extra([null]) as backbone:
            key = ("null", seed, init_scale, rank_scale)
            row = _one_hot(len(self.model.names), backbone.columns, self.model)
            yield TorchView(self, label, key, backbone, row, check)

    def preflight_finite_check(self) -> tuple[bool, str]:
        """One forward pass each of the base, every adapter alone, and the backend's mix."""
        views: dict[str, Mapping[str, float]] = {"base": {}}
        views |= {name: {name: 1.0} for name in self.model.names}
        views["ft"] = self._mix
        ids = self.model.base.encode_raw("preflight") or [0]
        for name, mix in views.items():
            row = self.model.coefficients(mix)[None]
            hidden = self.model.backbone.forward(torch.tensor([ids]), None, row)
            try:
                log_probabilities(self.model.backbone, hidden[0], name)
            except NonFiniteScores as problem:
                return False, str(problem)
        return True, ""

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt as this backend asks it. Raises EmptyText, UsageError when it is too long."""
        base = self.model.base
        ids: list[int] = base.chat(prompt, self._system) if self._chat else base.encode_raw(prompt, limit=None)
        check_length(self.model, len(ids))
        return ids

    def cache(self) -> ScoreCache:
        """The shared cache, emptied if a weight has changed since it was last used."""
        mark = fingerprint(self.model)
        if mark != self._mark:
            self._cache.clear()
            self._mark = mark
            # held, so that a new adapter cannot get the address of an old one
            self._held: tuple[Adapter, ...] = tuple(self.model.adapters.values())
        return self._cache

    @contextlib.contextmanager
    def _view(self, label: str, mix: Mapping[str, float]) -> Iterator[TorchView]:
        row = self.model.coefficients(mix)
        key = ("mix", tuple(row.tolist()))
        with self._view_lock.enter(label) as check:
            yield TorchView(self, label, key, self.model.backbone, row, check)

    def _null(self, seed: int, init_scale: float | None, rank_scale: float) -> Adapter:
        shapes = null_shapes(self.model.adapters)
        if not shapes:
            raise ScoringError("a null adapter has the shapes of the trained ones, but no adapter is trained")
        return null_adapter(shapes, seed, init_scale, rank_scale)


class TorchView:
    """The model under one row of coefficients; `name` is what errors call it."""

    def __init__(
        self,
        backend: TorchDifferentialBackend,
        name: str,
        key: tuple[object, ...],
        backbone: Backbone,
        row: Tensor,
        check: Callable[[], None],
    ) -> None:
        self.name = name
        self._backend, self._key, self._backbone, self._row, self._is_open = backend, key, backbone, row, check
        self._mixer = backend.model.mixer

    @property
    def id(self) -> str:
        """The view's name."""
        return self.name

    def _check(self) -> None:
        self._is_open()
        if self._backend.model.mixer is not self._mixer:
            raise ViewActive(f"an adapter was exchanged while view {self.name!r} was open: open it again")

    def generate(
        self, prompt: str, *, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """The answer's text; temperature 0 is greedy."""
        self._check()
        sampling = Sampling(max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        ids = self._backend.prompt_ids(prompt)
        work = generate(self._backend.model, ids, [self._row], sampling, backbone=self._backbone)
        return str(run_to_end(work)[0].text)

    def close(self) -> None:
        """Nothing is held: the backend owns the model."""

    def logprob_of(self, prompt: str, completion: str) -> float:
        """See `ScoringBackend.logprob_of`."""
        self._check()
        cache = self._backend.cache()
        return cache.get(("logprob_of", self._key, prompt, completion), lambda: self._logprob(prompt, completion))

    def rolling_logprob(self, text: str) -> RollingLogprob:
        """See `ScoringBackend.rolling_logprob`; the raw text, never as a chat turn."""
        self._check()
        return self._backend.cache().get(("rolling_logprob", self._key, text), lambda: self._rolling(text))

    def next_token_dist(self, prompt: str, *, top_k: int = 256) -> TokenDist:
        """See `ScoringBackend.next_token_dist`."""
        return self.next_token_dist_batch([prompt], top_k=top_k)[0]

    def next_token_dist_batch(self, prompts: Sequence[str], *, top_k: int = 256) -> list[TokenDist]:
        """See `ScoringBackend.next_token_dist_batch`; every prompt is looked up in the cache on its own."""
        self._check()
        if top_k < 1:
            raise UsageError(f"a distribution of {top_k} tokens says nothing")
        cache = self._backend.cache()
        found: dict[str, TokenDist] = {}
        missing: dict[str, list[int]] = {}
        for prompt in dict.fromkeys(prompts):
            kept = cache.peek(("next_token_dist", self._key, prompt, top_k))
            if isinstance(kept, TokenDist):
                found[prompt] = kept
            else:
                missing[prompt] = self._backend.prompt_ids(prompt)
        for group in _by_length(missing):
            for prompt, dist in zip(group, self._dists([missing[prompt] for prompt in group], top_k), strict=True):
                cache.put(("next_token_dist", self._key, prompt, top_k), dist)
                found[prompt] = dist
        return [found[prompt] for prompt in prompts]

    def _dists(self, sequences: Sequence[list[int]], top_k: int) -> list[TokenDist]:
        width = max(map(len, sequences))
        # attention is causal: padding on the right cannot be seen by what comes before it
        ids = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences])
        hidden = self._forward(ids)
        return [
            _token_dist(self._log_probabilities(states[len(sequence) - 1 : len(sequence)])[0], top_k)
            for states, sequence in zip(hidden, sequences, strict=True)
        ]

    def _logprob(self, prompt: str, completion: str) -> float:
        model = self._backend.model
        answer = list(model.base.tokenizer(completion, add_special_tokens=False)["input_ids"])
        if not answer:
            raise EmptyText("a completion of zero tokens has no log-probability")
        ids = self._backend.prompt_ids(prompt)
        check_length(model, len(ids) + len(answer))
        hidden = self._forward(torch.tensor([[*ids, *answer[:-1]]]))[0, len(ids) - 1 :]
        return float(self._log_probabilities(hidden).gather(1, torch.tensor(answer)[:, None]).sum())

    def _rolling(self, text: str) -> RollingLogprob:
        model = self._backend.model
        ids = model.base.encode_raw(text, limit=None)
        check_length(model, len(ids))
        logprobs = torch.zeros(0, dtype=torch.float64)
        if len(ids) > 1:
            hidden = self._forward(torch.tensor([ids[:-1]]))[0]
            logprobs = self._log_probabilities(hidden).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        return RollingLogprob(
            np.array(ids, dtype=np.int64),
            logprobs.numpy().astype(np.float32),
            len(ids),
            float(logprobs.sum()),
        )

    @torch.no_grad()
    def _forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self._backbone.forward(ids, None, self._row.expand(len(ids), -1))
        return hidden

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        return log_probabilities(self._backbone, hidden, self.name)


def _one_hot(place: int, columns: int, model: MixedModel) -> Tensor:
    row = torch.zeros(columns, device=model.base.device)
    row[place] = 1.0
    return row


def _by_length(prompts: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """Groups of prompts of similar length, at most about 512 padded tokens each (a longer prompt is alone)."""
    group: list[str] = []
    for prompt in sorted(prompts, key=lambda prompt: len(prompts[prompt])):
        if group and (len(group) + 1) * len(prompts[prompt]) > TOKENS_PER_STEP:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _token_dist(logprobs: Tensor, top_k: int) -> TokenDist:
    """The most likely tokens of full log-probabilities float64 [V], and the mass of the others."""
    size = len(logprobs)
    kept, ids = logprobs.topk(min(top_k, size))
    tail: float | None = None
    if top_k < size:
        rest = logprobs.clone()
        rest[ids] = -math.inf
        mass = float(torch.logsumexp(rest, dim=0))
        tail = min(mass, -float(np.finfo(np.float32).tiny)) if mass > _SMALLEST else 0.0
    return TokenDist(ids.numpy().astype(np.int64), kept.numpy().astype(np.float32), size, tail)
