"""The scoring protocols and their data. Everything is in nats (natural logarithm); numpy only.

A backend holds one model that can be asked as the base, as fine-tuned, with the adapters scaled, or with a random
(null) adapter in their place. One view is open at a time: `as_…()` are context managers, entering a second one
raises ViewActive (a RuntimeError), and so does using a view after its block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dlm_tui.scoring.errors import NullScaleError


@dataclass(frozen=True, slots=True)
class RollingLogprob:
    """Log-probability of a text token by token.

    `token_ids` int64 [N]; `logprobs` float32 [N − 1], entry i being log p(token i + 1 | tokens 0 … i); `num_tokens`
    N ≥ 1; `total_logprob` their sum (0.0 for a text of one token).
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    num_tokens: int
    total_logprob: float

    @property
    def mean_logprob(self) -> float:
        """Nats per predicted token; 0.0 when there is none."""
        return self.total_logprob / len(self.logprobs) if len(self.logprobs) else 0.0

    @property
    def perplexity(self) -> float:
        """exp(−mean log-probability); 1.0 when no token is predicted."""
        return float(np.exp(-self.mean_logprob))


@dataclass(frozen=True, slots=True)
class TokenDist:
    """The most likely next tokens and the mass of all others.

    `token_ids` int64 [k], most likely first; `logprobs` float32 [k]; `vocab_size` V. `tail_logprob` is the log of
    the mass outside these k tokens and has three states:

    * None: nothing is outside, the k tokens are the whole vocabulary;
    * 0.0: there are tokens outside, but their mass is too small to measure (it cannot be 1, so 0.0 is free as a mark);
    * negative: the measured log mass.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    vocab_size: int
    tail_logprob: float | None = None


@runtime_checkable
class Model(Protocol):
    """Something that answers. `id` is what it is called in reports and errors."""

    @property
    def id(self) -> str: ...

    def generate(
        self, prompt: str, *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """The answer to `prompt`; temperature 0 is greedy."""
        ...

    def close(self) -> None:
        """Give back what the model holds."""
        ...


@runtime_checkable
class ScoringBackend(Protocol):
    """Something whose probabilities can be read."""

    def logprob_of(self, prompt: str, completion: str) -> float:
        """Σ log p(completion token | prompt, earlier completion tokens), nats; prompt and completion are tokenised
        apart.

        Raises EmptyText (a ValueError) for a completion of zero tokens.
        """
        ...

    def rolling_logprob(self, text: str) -> RollingLogprob:
        """Log-probability of every token of `text` but the first. Raises EmptyText for a text of zero tokens."""
        ...

    def next_token_dist(self, prompt: str, *, top_k: int = 256) -> TokenDist:
        """The `top_k` most likely tokens after `prompt`. Raises EmptyText for a prompt of zero tokens."""
        ...

    def next_token_dist_batch(self, prompts: Sequence[str], *, top_k: int = 256) -> list[TokenDist]:
        """`next_token_dist` of every prompt, in order; equal to the single form within float32 tolerance.

        Unless a backend has a faster way, one after another: inheriting this is enough.
        """
        return [self.next_token_dist(prompt, top_k=top_k) for prompt in prompts]


@runtime_checkable
class ScoringModel(Model, ScoringBackend, Protocol):
    """What a view is."""


@runtime_checkable
class DifferentialBackend(Protocol):
    """One model that can be asked without and with its adapters."""

    @property
    def safe_for_concurrent_views(self) -> bool:
        """Whether two views may be open at a time; False unless a backend says otherwise."""
        return False

    def as_base(self) -> AbstractContextManager[ScoringModel]:
        """The adapters off. Raises ViewActive while another view is open."""
        ...

    def as_finetuned(self) -> AbstractContextManager[ScoringModel]:
        """The adapters on. Raises ViewActive while another view is open."""
        ...


@runtime_checkable
class ScalableDifferentialBackend(DifferentialBackend, Protocol):
    """A differential backend whose adapters can be turned up and down."""

    def as_scaled_adapter(self, lam: float) -> AbstractContextManager[ScoringModel]:
        """The adapters times `lam`: 0 is the base, 1 the fine-tuned model, negative inverts."""
        ...


@runtime_checkable
class NullCalibratedBackend(DifferentialBackend, Protocol):
    """A differential backend that can say what mere noise of the same shape would do."""

    def as_null_adapter(
        self, seed: int, init_scale: float | None = None, rank_scale: float = 1.0
    ) -> AbstractContextManager[ScoringModel]:
        """A random adapter in place of the trained ones: same shapes, entries zero-mean Gaussian with standard
        deviation init_scale · √rank_scale, decided by `seed`; the trained ones are back afterwards, whatever happens.

        `init_scale` None lets the backend choose a size comparable with the trained adapters. Raises NullScaleError
        (a ValueError) for a scale that is not positive and finite.
        """
        ...


@runtime_checkable
class PreflightCheckable(Protocol):
    """A backend that can find out early that it cannot score."""

    def preflight_finite_check(self) -> tuple[bool, str]:
        """(True, "") or (False, one sentence naming the view whose logits are not finite)."""
        ...


def null_scale(init_scale: float, rank_scale: float) -> float:
    """init_scale · √rank_scale. Raises NullScaleError unless both are positive and finite."""
    for name, value in (("init_scale", init_scale), ("rank_scale", rank_scale)):
        if not (math.isfinite(value) and value > 0):
            raise NullScaleError(f"{name} must be positive and finite, not {value}")
    return init_scale * math.sqrt(rank_scale)
