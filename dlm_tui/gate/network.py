"""The gate's network, and folding standardised inputs into its first layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SHRINK = 1e-2


class GateNetwork(nn.Sequential):
    """weights = softmax(W2 · GELU(W1 · x + b1) + b2), exact GELU; state keys `0.*` and `2.*` as stored."""

    def __init__(self, input_dim: int, hidden_dim: int, adapters: int) -> None:
        super().__init__(nn.Linear(input_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, adapters))

    @property
    def input_dim(self) -> int:
        """Size H of the prompt embedding."""
        return self.first.in_features

    @property
    def first(self) -> nn.Linear:
        layer = self[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def second(self) -> nn.Linear:
        layer = self[2]
        assert isinstance(layer, nn.Linear)
        return layer

    def logits(self, embeddings: Tensor) -> Tensor:
        """[..., H] float32 -> [..., N] before the softmax."""
        out: Tensor = super().forward(embeddings)
        return out

    def forward(self, embeddings: Tensor) -> Tensor:
        """[..., H] float32 -> [..., N] weights that sum to 1."""
        return torch.softmax(self.logits(embeddings), dim=-1)


def seeded_network(input_dim: int, hidden_dim: int, adapters: int, seed: int) -> GateNetwork:
    """PyTorch's default initialisation under `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GateNetwork(input_dim, hidden_dim, adapters)


def normalised(entropy_nats: float, adapters: int) -> float:
    """Entropy divided by its maximum ln N; 0 for fewer than two adapters."""
    return entropy_nats / math.log(adapters) if adapters > 1 else 0.0


@dataclass(frozen=True)
class Standardiser:
    """Per-dimension mean and scale of the training embeddings, float64 [H]."""

    mean: Tensor
    scale: Tensor

    @staticmethod
    def fit(embeddings: Tensor) -> Standardiser:
        """Mean and standard deviation over the rows of [n, H].

        The variance is shrunk by 1 % towards its mean over dimensions: a constant dimension gets a finite scale.
        """
        rows = embeddings.double()
        mean = rows.mean(dim=0)
        variance = (rows - mean).square().mean(dim=0)
        shrunk = (1 - _SHRINK) * variance + _SHRINK * variance.mean()
        scale = shrunk.sqrt()
        return Standardiser(mean, torch.where(scale > 0, scale, torch.ones_like(scale)))

    def apply(self, embeddings: Tensor) -> Tensor:
        """(x − mean) / scale; [..., H] -> [..., H] float32, computed in float64."""
        return ((embeddings.double() - self.mean) / self.scale).float()

    def fold(self, network: GateNetwork) -> GateNetwork:
        """A network on raw embeddings that equals `network` on standardised ones.

        W1' = W1 / scale, b1' = b1 − W1 · (mean / scale): the files keep their shape, any reader gets the same weights.
        """
        folded = GateNetwork(network.input_dim, network.first.out_features, network.second.out_features)
        with torch.no_grad():
            weight = network.first.weight.double() / self.scale
            folded.first.weight.copy_(weight)
            folded.first.bias.copy_(network.first.bias.double() - folded.first.weight.double() @ self.mean)
            folded.second.load_state_dict(network.second.state_dict())
        return folded.requires_grad_(False).eval()
