"""Prompt embeddings: tokens of a prompt as the gate sees them, and whole corpora in batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dlm_tui.gate.cache import EmbeddingCache
from dlm_tui.progress import Progress, map_steps

if TYPE_CHECKING:
    from dlm_tui.model import MixedModel
    from dlm_tui.store import Store

LIMIT = 512
BATCH_TOKENS = 512
_HEAD = 8 * LIMIT
_MARGIN = 64


class HiddenBackbone(Protocol):
    """The part of a backbone that routing needs: hidden states after the final norm, adapters off."""

    @property
    def device(self) -> Any: ...

    def new_cache(self, batch: int, capacity: int) -> Any: ...

    def forward(self, ids: Tensor, cache: Any, coefficients: Tensor | None) -> Tensor: ...


class RawEncoder(Protocol):
    """The part of a base that turns a raw prompt into token ids, cut after `limit` tokens."""

    def encode_raw(self, prompt: str, limit: int = LIMIT) -> list[int]: ...


@dataclass(frozen=True)
class PromptTokens:
    """The first 512 token ids of a prompt, and whether anything was cut off."""

    ids: tuple[int, ...]
    truncated: bool


def prompt_tokens(base: RawEncoder, prompt: str) -> PromptTokens:
    """The ids that the tokenizer's own truncation to 512 gives (to the rows of a learned position table, if fewer).

    A long text is not read far: only a head is encoded, as long as the head alone has 64 tokens more than needed: what
    is cut from the text then lies too far away to merge with the tokens that count. An empty prompt has no tokens,
    whatever specials the tokenizer would add.
    """
    if not prompt:
        return PromptTokens((), False)
    prompt = encodable(prompt)
    limit = min(LIMIT, getattr(base, "position_rows", None) or LIMIT)
    head = _HEAD
    from_the_left = getattr(getattr(base, "tokenizer", None), "truncation_side", "right") == "left"
    while head < len(prompt) and not from_the_left:
        if len(base.encode_raw(prompt[:head], limit + _MARGIN)) == limit + _MARGIN:
            return PromptTokens(tuple(base.encode_raw(prompt[:head], limit)), True)
        head *= 4
    ids = base.encode_raw(prompt, limit)
    truncated = len(ids) == limit and len(base.encode_raw(prompt, limit + 1)) > limit
    return PromptTokens(tuple(ids), truncated)


def encodable(prompt: str) -> str:
    """The prompt with `?` for lone surrogates, which have no UTF-8 form and which no tokenizer takes; same length."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def length_batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that rows · longest row stays within `budget` tokens (one row at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda position: (lengths[position], position)):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def embed_prompts(
    backbone: HiddenBackbone, base: RawEncoder, prompts: Sequence[str], *, hidden_size: int
) -> Generator[Progress, None, Tensor]:
    """Mean over tokens of the final hidden state; float32 [n, H]. Prompts are run as `map_states` says."""
    return map_states(backbone, base, prompts, lambda _, hidden: mean_state(hidden), columns=hidden_size, stage="embed")


def map_states(
    backbone: HiddenBackbone,
    base: RawEncoder,
    prompts: Sequence[str],
    reduce: Callable[[Tensor, Tensor], Tensor],
    *,
    columns: int,
    stage: str,
) -> Generator[Progress, None, Tensor]:
    """What `reduce` makes of each prompt's tokens [T] and final hidden states [T, H]; float32 [n, columns].

    Adapters off, raw prompts, first 512 tokens, in batches of about 512 tokens of similar length, padded on the right:
    a causal model's rows do not see the padding. A prompt without tokens gets zeros.
    """
    tokens = [prompt_tokens(base, prompt).ids for prompt in prompts]
    result = torch.zeros(len(prompts), columns, dtype=torch.float32)
    done = 0
    yield Progress(stage, 0, len(prompts))
    for batch in length_batches([len(ids) for ids in tokens]):
        longest = len(tokens[batch[-1]])
        if longest:
            ids = torch.zeros(len(batch), longest, dtype=torch.long, device=backbone.device)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = torch.tensor(tokens[index])
            with torch.no_grad():
                hidden = backbone.forward(ids, None, None)
            for row, index in enumerate(batch):
                if count := len(tokens[index]):
                    result[index] = reduce(ids[row, :count], hidden[row, :count])
        done += len(batch)
        yield Progress(stage, done, len(prompts))
    return result


Embed = Callable[["MixedModel", Sequence[str]], Generator[Progress, None, Tensor]]
"""Computes embeddings float32 [n, H] of prompts."""


def embed_here(model: MixedModel, prompts: Sequence[str]) -> Generator[Progress, None, Tensor]:
    """`embed_prompts` with the model's own backbone."""
    return embed_prompts(model.backbone, model.base, prompts, hidden_size=model.base.hidden_size)


def cached_embeddings(
    model: MixedModel, store: Store, prompts: Sequence[str], embed: Embed = embed_here
) -> Generator[Progress, None, tuple[Tensor, int]]:
    """Embeddings float32 [n, H] of the prompts and how many had to be computed; the new ones are kept in the store."""
    base = model.base
    cache = EmbeddingCache(store.cache_dir, base.identity.key, base.hidden_size)
    found = cache.find(prompts)
    fresh = list(dict.fromkeys(prompt for prompt, row in zip(prompts, found, strict=True) if row is None))
    computed: dict[str, Tensor] = {}
    if fresh:
        rows = yield from map_steps(
            embed(model, fresh),
            lambda step: Progress("embed", len(prompts) - step.total + step.done, len(prompts)),
        )
        computed = dict(zip(fresh, rows, strict=True))
        keep = [index for index, row in enumerate(rows) if bool(torch.isfinite(row).all())]
        cache.add([fresh[index] for index in keep], rows[keep])
    whole = [computed[prompt] if row is None else row for prompt, row in zip(prompts, found, strict=True)]
    return (torch.stack(whole) if whole else torch.zeros(0, base.hidden_size)), len(fresh)


def mean_state(hidden: Tensor) -> Tensor:
    """[T, H] -> [H] float32 on the CPU, summed in float64."""
    return hidden.detach().to(device="cpu", dtype=torch.float64).mean(dim=0).float()
