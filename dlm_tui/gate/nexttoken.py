"""Next-token distributions of many prompts under many mixes, and the frozen mix that comes closest to the live ones."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_tui.gate.embedding import length_batches
from dlm_tui.model.information import kl_divergence
from dlm_tui.progress import Progress

if TYPE_CHECKING:
    from dlm_tui.model import Backbone

BATCH_TOKENS = 1024
STEPS = 40
_FIRST_STEP = 0.5
_LAST_STEP = 0.01
_FLOOR = 1e-3


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length: their places in the list, ids [B, T] padded on the right, last real position [B]."""

    places: Tensor
    ids: Tensor
    last: Tensor


def prompt_batches(prompts: Sequence[Sequence[int]]) -> list[Batch]:
    """Token id lists (none empty) in batches of about 1,024 tokens."""
    batches = []
    for places in length_batches([len(prompt) for prompt in prompts], BATCH_TOKENS):
        lengths = [len(prompts[place]) for place in places]
        ids = torch.zeros(len(places), max(lengths), dtype=torch.long)
        for row, place in enumerate(places):
            ids[row, : lengths[row]] = torch.tensor(list(prompts[place]))
        batches.append(Batch(torch.tensor(places), ids, torch.tensor(lengths) - 1))
    return batches


def next_logprobs(backbone: Backbone, batch: Batch, coefficients: Tensor) -> Tensor:
    """Log-probabilities [B, V] of the token after each prompt, under coefficients [B, N]; differentiable in them."""
    hidden = backbone.forward(batch.ids.to(backbone.device), None, coefficients)
    rows = hidden[torch.arange(len(batch.last), device=hidden.device), batch.last.to(hidden.device)]
    return torch.log_softmax(backbone.logits(rows), dim=-1)


def live_logprobs(
    backbone: Backbone, batches: Sequence[Batch], weights: Tensor
) -> Generator[Progress, None, list[Tensor]]:
    """One [B, V] per batch, every prompt under its own row of `weights` [n, N]."""
    result = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            result.append(next_logprobs(backbone, batch, weights[batch.places]))
            yield Progress("live", number + 1, len(batches))
    return result


def frozen_divergence(
    backbone: Backbone, batches: Sequence[Batch], live: Sequence[Tensor], mix: Tensor, count: int
) -> Generator[Progress, None, Tensor]:
    """KL(live ‖ mix) at the next token, nats, float64 [n]; `mix` [N] is the same for all prompts."""
    result = torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for number, (batch, target) in enumerate(zip(batches, live, strict=True)):
            frozen = next_logprobs(backbone, batch, mix.expand(len(batch.places), -1))
            result[batch.places] = kl_divergence(target, frozen).cpu()
            yield Progress("frozen", number + 1, len(batches))
    return result


def best_mix(
    backbone: Backbone, batches: Sequence[Batch], live: Sequence[Tensor], start: Tensor
) -> Generator[Progress, None, Tensor]:
    """The mix on the simplex that minimises the mean KL(live ‖ mix); `start` [N] is a mix on it. Returns [N].

    Steepest descent on θ with mix = softmax(θ), through a backbone that is differentiable in its coefficients: a step
    that helps makes the next one 1.5 times longer, one that does not is undone and halved.
    """
    best = start.clamp_min(_FLOOR).log()
    best_loss, slope = yield from _loss_and_slope(backbone, batches, live, best, 0)
    length = _FIRST_STEP
    for step in range(1, STEPS + 1):
        size = float(slope.norm())
        if length < _LAST_STEP or size == 0.0:
            break
        tried = best - length * slope / size
        loss, there = yield from _loss_and_slope(backbone, batches, live, tried, step)
        if loss < best_loss:
            best, best_loss, slope, length = tried, loss, there, length * 1.5
        else:
            length /= 2
    return torch.softmax(best, dim=0)


def _loss_and_slope(
    backbone: Backbone, batches: Sequence[Batch], live: Sequence[Tensor], theta: Tensor, step: int
) -> Generator[Progress, None, tuple[float, Tensor]]:
    """Mean KL(live ‖ softmax(θ)) in nats and its gradient [N] in θ."""
    count = sum(len(batch.places) for batch in batches)
    point = theta.detach().clone().requires_grad_(True)
    total = 0.0
    for batch, target in zip(batches, live, strict=True):
        with torch.enable_grad():
            mix = torch.softmax(point, dim=0)
            frozen = next_logprobs(backbone, batch, mix.expand(len(batch.places), -1))
            loss = kl_divergence(target, frozen).sum() / count
            loss.backward()
        total += float(loss.detach())
        yield Progress("best", step, STEPS)
    assert point.grad is not None
    return total, point.grad.detach()
