"""The training loop of the gate, on embeddings that are already there."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from dlm_tui.gate.network import GateNetwork, Standardiser, seeded_network
from dlm_tui.losses import GATE
from dlm_tui.model.information import entropy_of_logits
from dlm_tui.progress import Progress

BATCH = 16


@dataclass(frozen=True)
class FitSettings:
    """The gate block of the document and the run's seed. `lr` and `entropy_lambda` as in the schema."""

    hidden_dim: int = 64
    steps: int = 200
    lr: float = 3e-4
    entropy_lambda: float = 0.01
    seed: int = 42


@dataclass(frozen=True)
class FitStep:
    """One update: the loss (nats) and the batch's mean entropy (nats). `step` counts from 1."""

    step: int
    loss: float
    entropy: float


@dataclass(frozen=True)
class Fit:
    """A finished training: the folded network, or None when the loss stopped being finite."""

    network: GateNetwork | None
    history: list[FitStep] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        return self.network is None


def batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` index batches of min(16, count), drawn without replacement, reshuffled when too few remain."""
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, count)
    order = torch.randperm(count, generator=generator)
    position = 0
    for _ in range(steps):
        if position + size > count:
            order = torch.randperm(count, generator=generator)
            position = 0
        yield order[position : position + size]
        position += size


def fit_gate(
    embeddings: Tensor, labels: Tensor, adapters: int, settings: FitSettings
) -> Generator[Progress, None, Fit]:
    """Train on standardised embeddings [n, H] with labels [n] in 0…adapters−1; yields each step.

    Loss: cross entropy − entropy_lambda · mean entropy; AdamW with library defaults and constant lr.
    The scaling is folded into the first layer at the end. A non-finite loss or weight ends the training as diverged.
    """
    # What comes out of inference mode cannot be trained on; a copy made here can.
    raw, labels = embeddings.detach().float().clone(), labels.clone()
    standardiser = Standardiser.fit(raw)
    inputs = standardiser.apply(raw)
    network = seeded_network(raw.shape[1], settings.hidden_dim, adapters, settings.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    history: list[FitStep] = []
    for step, chosen in enumerate(batches(len(raw), settings.steps, settings.seed), start=1):
        with torch.enable_grad():
            logits = network.logits(inputs[chosen])
            spread = entropy_of_logits(logits).mean()
            loss = functional.cross_entropy(logits, labels[chosen]) - settings.entropy_lambda * spread
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        record = FitStep(step, float(loss.detach()), float(spread.detach()))
        history.append(record)
        yield Progress("train", step, settings.steps, loss=record.loss, entropy=record.entropy, loss_kind=GATE)
        if not math.isfinite(record.loss):
            return Fit(None, history)
    folded = standardiser.fold(network)
    if not all(bool(torch.isfinite(value).all()) for value in folded.state_dict().values()):
        return Fit(None, history)
    return Fit(folded, history)
