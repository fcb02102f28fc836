"""How surprised the base is by a prompt: −log p of its tokens, adapters off, for the out-of-distribution mark.

Read only where it costs next to nothing: the output layer may have at most two million weights. On bases with more the
mark goes by the distance alone, which suffices there (docs/out-of-distribution.md).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dlm_tui.gate.cache import EmbeddingCache
from dlm_tui.gate.embedding import LIMIT, HiddenBackbone, RawEncoder, map_states
from dlm_tui.model.prefix_reuse import common_prefix
from dlm_tui.progress import Progress

if TYPE_CHECKING:
    from dlm_tui.model import MixedModel
    from dlm_tui.store import Store

MOST_HEAD_WEIGHTS = 2_000_000
ROWS = 128
_COLUMNS = 3


class TellingBackbone(HiddenBackbone, Protocol):
    """A backbone whose output layer can be asked as well."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Surprise(NamedTuple):
    """Sum of −log p in nats over `tokens` tokens of a prompt: all but the first, which nothing stands before."""

    tokens: int
    total: float


def is_affordable(backbone: TellingBackbone) -> bool:
    """Whether surprise is read at all on this base; the one place of that rule."""
    return backbone.hidden_size * backbone.vocab_size <= MOST_HEAD_WEIGHTS


def token_surprise(backbone: TellingBackbone, hidden: Tensor, ids: Tensor) -> Tensor:
    """−log p in nats of `ids` [n], each given the final hidden state [n, H] of the token before it; float32 [n]."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(ids), ROWS):  # the logits of a long prompt are never in memory at once
            logits = backbone.logits(hidden[start : start + ROWS].to(backbone.device)).float()
            wanted = ids[start : start + ROWS].to(backbone.device)
            parts.append(functional.cross_entropy(logits, wanted, reduction="none").cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


class PromptSurprise:
    """The surprise of a prompt that is being typed: sums of the common token prefix with the last one are kept."""

    def __init__(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._sums = torch.zeros(LIMIT + 1, dtype=torch.float64)

    def reset(self) -> None:
        """Forget the last prompt."""
        self._ids = ()

    def so_far(self, ids: tuple[int, ...]) -> Surprise:
        """Of as much of the beginning of `ids` as was read before; asks nothing."""
        known = common_prefix(ids, self._ids)
        return Surprise(known - 1, float(self._sums[known])) if known > 1 else Surprise(0, 0.0)

    def read(self, backbone: TellingBackbone, ids: tuple[int, ...], states: Tensor) -> Surprise:
        """Of the prompt `ids`, whose final hidden states are the first rows of `states` [T, H]."""
        known = common_prefix(ids, self._ids)
        if known < len(ids):
            self._ids = ids[:known]
            start, end = max(known, 1), len(ids)
            news = token_surprise(backbone, states[start - 1 : end - 1], torch.tensor(ids[start:]))
            self._sums[start + 1 : end + 1] = self._sums[start] + news.double().cumsum(dim=0)
            self._ids = ids
        return self.so_far(ids)


def prompt_surprises(
    backbone: TellingBackbone, base: RawEncoder, prompts: Sequence[str]
) -> Generator[Progress, None, Tensor]:
    """Per prompt the number of predicted tokens, Σ −log p and Σ (log p)² in nats and nats²; float32 [n, 3].

    Prompts are run as `map_states` says; zeros for a prompt of fewer than two tokens.
    """

    def sums(ids: Tensor, hidden: Tensor) -> Tensor:
        if len(ids) < 2:
            return torch.zeros(_COLUMNS)
        found = token_surprise(backbone, hidden[:-1], ids[1:]).double()
        return torch.tensor([len(ids) - 1, found.sum(), found.square().sum()])

    return map_states(backbone, base, prompts, sums, columns=_COLUMNS, stage="surprise")


def cached_surprises(
    model: MixedModel, store: Store, prompts: Sequence[str]
) -> Generator[Progress, None, Tensor | None]:
    """`prompt_surprises` with the model's own backbone, those that are kept in the store not computed again.

    None where surprise is not read on this base.
    """
    base, backbone = model.base, model.backbone
    if not is_affordable(backbone):
        return None
    cache = EmbeddingCache(store.cache_dir, f"{base.identity.key}:surprise", _COLUMNS)
    found = dict(zip(prompts, cache.find(prompts), strict=True))
    fresh = [prompt for prompt, row in found.items() if row is None]
    if fresh:
        rows = yield from prompt_surprises(backbone, base, fresh)
        keep = [index for index, row in enumerate(rows) if bool(torch.isfinite(row).all())]
        cache.add([fresh[index] for index in keep], rows[keep])
        found |= dict(zip(fresh, rows, strict=True))
    rows_of_all = [found[prompt] for prompt in prompts]
    return torch.stack([row for row in rows_of_all if row is not None]) if rows_of_all else torch.zeros(0, _COLUMNS)
