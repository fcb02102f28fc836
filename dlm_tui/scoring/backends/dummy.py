"""A differential backend without a model: canned answers, seeded ones for the rest. For tests of whatever uses
scores.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlm_tui.scoring.backends.cache import CacheStats, ScoreCache, ViewLock
from dlm_tui.scoring.divergence import align
from dlm_tui.scoring.errors import EmptyText, NullScaleError
from dlm_tui.scoring.protocols import (
    NullCalibratedBackend,
    RollingLogprob,
    ScalableDifferentialBackend,
    ScoringModel,
    TokenDist,
    null_scale,
)

DEFAULT_LOGPROB = -10.0
DEFAULT_NULL_SCALE = 0.02
_VOCABULARY = 1000
_LISTED = 16


@dataclass(slots=True)
class DummyResponses:
    """What the base, or the fine-tuned model, answers.

    `generations`: prompt → text (a missing one is a KeyError). `logprobs`: (prompt, completion) → nats, −10 for the
    rest. `rolling`: text → RollingLogprob. `token_dists`: prompt → TokenDist. What is missing in the last two is
    made up, always the same.
    """

    generations: dict[str, str] = field(default_factory=dict)
    logprobs: dict[tuple[str, str], float] = field(default_factory=dict)
    rolling: dict[str, RollingLogprob] = field(default_factory=dict)
    token_dists: dict[str, TokenDist] = field(default_factory=dict)


class DummyDifferentialBackend(ScalableDifferentialBackend, NullCalibratedBackend):
    """Base, fine-tuned, λ-blended and null views over two sets of canned answers; the same rules as with a real model.

    A blend is linear in log-probabilities and exact at λ = 0 and 1; text comes from the side that λ is nearer to. A
    null view is the base with Gaussian noise of standard deviation init_scale · √rank_scale on its log-probabilities.
    """

    def __init__(self, *, base: DummyResponses, ft: DummyResponses) -> None:
        self._base, self._ft = base, ft
        self._view_lock = ViewLock()
        self._cache = ScoreCache()

    @property
    def cache_stats(self) -> CacheStats:
        """Hits, misses and entries of the cache all views share; keys hold the view."""
        return self._cache.stats

    def clear_cache(self) -> None:
        """Forget kept answers, for instance after changing the canned ones."""
        self._cache.clear()

    @contextlib.contextmanager
    def as_base(self) -> Iterator[DummyView]:
        with self._view_lock.enter("base") as check:
            yield DummyView("base", self._sides("base", 0.0), self._cache, check)

    @contextlib.contextmanager
    def as_finetuned(self) -> Iterator[DummyView]:
        with self._view_lock.enter("ft") as check:
            yield DummyView("ft", self._sides("ft", 1.0), self._cache, check)

    @contextlib.contextmanager
    def as_scaled_adapter(self, lam: float) -> Iterator[DummyView]:
        if not math.isfinite(lam):
            raise NullScaleError(f"an adapter cannot be scaled by {lam}")
        label = f"scaled({lam!r})"
        with self._view_lock.enter(label) as check:
            yield DummyView(label, self._sides(label, lam), self._cache, check)

    @contextlib.contextmanager
    def as_null_adapter(
        self, seed: int, init_scale: float | None = None, rank_scale: float = 1.0
    ) -> Iterator[DummyView]:
        scale = null_scale(DEFAULT_NULL_SCALE if init_scale is None else init_scale, rank_scale)
        label = f"null({seed}, {scale!r})"
        with self._view_lock.enter(label) as check:
            yield DummyView(label, self._sides(label, 0.0), self._cache, check, noise=(seed, scale))

    def preflight_finite_check(self) -> tuple[bool, str]:
        """See `PreflightCheckable`; a view that raises, or one that is open already, is a reason, too."""
        for name, view in (("base", self.as_base), ("ft", self.as_finetuned)):
            try:
                with view() as opened:
                    dist = opened.next_token_dist("preflight")
            except Exception as error:
                return False, f"view {name!r} cannot be asked: {type(error).__name__}: {error}"
            bad = int((~np.isfinite(dist.logprobs)).sum())
            if bad:
                return False, f"view {name!r} gives {bad} of {len(dist.logprobs)} log-probabilities that are not finite"
        return True, ""

    def _sides(self, label: str, lam: float) -> _Sides:
        return _Sides(label, self._base, self._ft, lam)


@dataclass(frozen=True)
class _Sides:
    """The two sets of answers and how far between them a view lies."""

    label: str
    base: DummyResponses
    ft: DummyResponses
    lam: float

    @property
    def nearer(self) -> DummyResponses:
        return self.ft if self.lam >= 0.5 else self.base

    def number(self, read: Callable[[DummyResponses, str], float]) -> float:
        low, high = read(self.base, "base"), read(self.ft, "ft")
        if self.lam in (0.0, 1.0):
            return high if self.lam else low
        return (1 - self.lam) * low + self.lam * high


class DummyView(ScoringModel):
    """An open view: `name`, also its `id`, is what errors call it."""

    def __init__(
        self,
        name: str,
        sides: _Sides,
        cache: ScoreCache,
        check: Callable[[], None],
        noise: tuple[int, float] | None = None,
    ) -> None:
        self.name = name
        self._sides, self._cache, self._check, self._noise = sides, cache, check, noise

    @property
    def id(self) -> str:
        return self.name

    def generate(
        self, prompt: str, *, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """The canned text, whatever the sampling. Raises KeyError naming view and prompt when there is none."""
        self._check()
        try:
            return self._sides.nearer.generations[prompt]
        except KeyError:
            raise KeyError(f"view {self.name!r} has no canned generation for prompt {prompt!r}") from None

    def close(self) -> None:
        """Nothing is held."""

    def logprob_of(self, prompt: str, completion: str) -> float:
        self._check()
        if not completion:
            raise EmptyText("a completion of zero tokens has no log-probability")
        return self._cache.get(("logprob_of", self.name, prompt, completion), lambda: self._logprob(prompt, completion))

    def rolling_logprob(self, text: str) -> RollingLogprob:
        self._check()
        return self._cache.get(("rolling_logprob", self.name, text), lambda: self._rolling(text))

    def next_token_dist(self, prompt: str, *, top_k: int = 256) -> TokenDist:
        self._check()
        return self._cache.get(("next_token_dist", self.name, prompt, top_k), lambda: self._dist(prompt, top_k))

    def _logprob(self, prompt: str, completion: str) -> float:
        value = self._sides.number(lambda side, _: side.logprobs.get((prompt, completion), DEFAULT_LOGPROB))
        return value + (float(self._draw("logprob", prompt, completion, count=1)[0]) if self._noise else 0.0)

    def _rolling(self, text: str) -> RollingLogprob:
        def kept(side: DummyResponses, name: str) -> RollingLogprob:
            canned = side.rolling.get(text)
            return canned if canned is not None else _made_up_rolling(text, name)

        lam = self._sides.lam
        base, tuned = self._pairs()
        # At the ends of the blend the other side has no say, and need not have an answer.
        low = kept(*(tuned if lam == 1.0 else base))
        high = kept(*(base if lam == 0.0 else tuned))
        chosen = high if lam >= 0.5 else low
        if lam in (0.0, 1.0) or len(low.logprobs) != len(high.logprobs):
            if not self._noise:
                return chosen
            logprobs = chosen.logprobs + self._draw("rolling", text, "", count=len(chosen.logprobs)).astype(np.float32)
        else:
            logprobs = ((1 - lam) * low.logprobs + lam * high.logprobs).astype(np.float32)
        return RollingLogprob(chosen.token_ids, logprobs, chosen.num_tokens, float(logprobs.astype(np.float64).sum()))

    def _dist(self, prompt: str, top_k: int) -> TokenDist:
        low, high = (side.token_dists.get(prompt) or _made_up_dist(prompt, name) for side, name in self._pairs())
        lam = self._sides.lam
        dist = low if lam == 0.0 else high if lam == 1.0 else _blend(low, high, lam)
        if self._noise:
            dist = _renormalised(dist, dist.logprobs + self._draw("dist", prompt, "", count=len(dist.logprobs)))
        return _cut(dist, top_k)

    def _pairs(self) -> tuple[tuple[DummyResponses, str], tuple[DummyResponses, str]]:
        return (self._sides.base, "base"), (self._sides.ft, "ft")

    def _draw(self, *key: str, count: int) -> NDArray[np.float64]:
        seed, scale = self._noise or (0, 0.0)
        return np.random.default_rng(stable_seed("null", str(seed), *key)).normal(0.0, scale, count)


def stable_seed(*parts: str) -> int:
    """A seed that is the same in every process, unlike `hash`."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _made_up_dist(prompt: str, side: str) -> TokenDist:
    """The base is peaked; the fine-tuned side prefers the same tokens, more evenly, so that they differ on every
    prompt.
    """
    generator = np.random.default_rng(stable_seed("dist", prompt))
    ids = generator.choice(_VOCABULARY, size=_LISTED, replace=False).astype(np.int64)
    scores = -np.arange(_LISTED, dtype=np.float64) - generator.uniform(0.0, 0.5, _LISTED)
    scores *= 1.0 if side == "base" else 0.4
    tail = math.log(0.01)
    logprobs = scores - np.log(np.exp(scores).sum()) + math.log(0.99)
    return TokenDist(ids, logprobs.astype(np.float32), _VOCABULARY, tail)


def _made_up_rolling(text: str, side: str) -> RollingLogprob:
    """Words count as tokens: −2 nats each for the base, −1.5 for the fine-tuned side."""
    words = text.split()
    if not words:
        raise EmptyText("a text of zero tokens has no log-probability")
    ids = np.array([stable_seed("word", word) % _VOCABULARY for word in words], dtype=np.int64)
    logprobs = np.full(len(words) - 1, -2.0 if side == "base" else -1.5, dtype=np.float32)
    return RollingLogprob(ids, logprobs, len(words), float(logprobs.sum()))


def _blend(low: TokenDist, high: TokenDist, lam: float) -> TokenDist:
    p, q = align(low, high)
    ids = np.union1d(low.token_ids, high.token_ids)
    tiny = np.finfo(np.float64).tiny
    mixed = (1 - lam) * np.log(np.maximum(p, tiny)) + lam * np.log(np.maximum(q, tiny))
    covers = len(ids) == low.vocab_size
    if covers:
        mixed = mixed[:-1]
    mixed = mixed - np.logaddexp.reduce(mixed)
    order = np.argsort(-mixed[: len(ids)], kind="stable")
    tail = None if covers else float(mixed[-1])
    return TokenDist(ids[order], mixed[: len(ids)][order].astype(np.float32), low.vocab_size, tail)


def _renormalised(dist: TokenDist, logprobs: NDArray[np.float64]) -> TokenDist:
    """New log-probabilities for the same tokens; the tail keeps its mass."""
    listed = 1.0 - (math.exp(dist.tail_logprob) if dist.tail_logprob else 0.0)
    scaled = logprobs - np.logaddexp.reduce(logprobs) + math.log(listed)
    order = np.argsort(-scaled, kind="stable")
    return TokenDist(dist.token_ids[order], scaled[order].astype(np.float32), dist.vocab_size, dist.tail_logprob)


def _cut(dist: TokenDist, top_k: int) -> TokenDist:
    """At most `top_k` tokens; what is cut off goes to the tail."""
    if len(dist.token_ids) <= top_k:
        return dist
    cut = float(np.logaddexp.reduce(dist.logprobs[top_k:].astype(np.float64)))
    tail = float(np.logaddexp(cut, dist.tail_logprob)) if dist.tail_logprob else cut
    return TokenDist(dist.token_ids[:top_k], dist.logprobs[:top_k], dist.vocab_size, tail)
