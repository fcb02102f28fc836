"""The gate as the formats describe it and nothing more: raw inputs, one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlm_tui.gate import Gate


def reference_embedding(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """Mean over tokens of the last hidden state, as `output_hidden_states` gives it; float32 [H]."""
    ids = tokenizer(prompt, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden: Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return hidden[0].float().mean(dim=0)


def dropped_changes(gate: Gate, states: Tensor) -> Tensor:
    """What an attribution predicts, measured: weight with all tokens − without one; [T, H] -> [T, N], T ≥ 2."""
    rows = states.double()
    total = rows.sum(dim=0)
    without = (total - rows) / (len(rows) - 1)
    whole = gate.weights((total / len(rows)).float())
    return whole.double() - gate.weights(without.float()).double()


def reference_gate(
    embeddings: Tensor,
    labels: Tensor,
    adapters: int,
    *,
    hidden_dim: int = 64,
    steps: int = 200,
    lr: float = 3e-4,
    entropy_lambda: float = 0.01,
    seed: int = 42,
) -> nn.Sequential:
    """Cross entropy − entropy_lambda · mean entropy, AdamW, batches of 16 without replacement; raw inputs [n, H]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(embeddings.shape[1], hidden_dim), nn.GELU(), nn.Linear(hidden_dim, adapters))
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    count, size = len(embeddings), min(16, len(embeddings))
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator).tolist()
        chosen, order = order[:size], order[size:]
        logits = network(embeddings[chosen])
        weights = torch.softmax(logits, dim=-1)
        entropy = -(weights * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
        loss = functional.cross_entropy(logits, labels[chosen]) - entropy_lambda * entropy
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def held_out(train: Any, embeddings: Tensor, labels: Tensor, assigned: Sequence[int]) -> Tensor:
    """Logits [n, N] of every row by `train(embeddings, labels)` on the other folds."""
    folds = torch.tensor(list(assigned))
    rows: list[Tensor] = [torch.empty(0)] * len(labels)
    for fold in sorted(set(assigned)):
        inside = folds != fold
        network = train(embeddings[inside], labels[inside])
        with torch.no_grad():
            logits = network(embeddings[~inside])
        for place, row in zip((~inside).nonzero().flatten().tolist(), logits, strict=True):
            rows[place] = row
    return torch.stack(rows)
