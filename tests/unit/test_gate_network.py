"""The gate's network and its training loop against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlm_tui.gate.fitting import FitSettings, batches, fit_gate
from dlm_tui.gate.network import (
    GateNetwork,
    Standardiser,
    normalised,
    seeded_network,
)
from dlm_tui.model.information import entropy, entropy_of_logits, js_divergence, kl_divergence
from dlm_tui.progress import Progress, run_to_end
from tests.benchmarks.gate_reference import reference_gate


def _clusters(count: int, size: int, adapters: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % adapters
    centres = torch.randn(adapters, size, generator=generator) * 2
    scale = torch.logspace(-2, 1, size)
    rows = (centres[labels] + torch.randn(count, size, generator=generator)) * scale + 5 * scale
    return rows, labels


def test_the_network_is_the_documented_formula() -> None:
    network = seeded_network(5, 4, 3, seed=1)
    state = {name: value.double() for name, value in network.state_dict().items()}
    assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    x = torch.randn(7, 5).double()
    inner = x @ state["0.weight"].T + state["0.bias"]
    hidden = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    logits = hidden @ state["2.weight"].T + state["2.bias"]
    expected = torch.exp(logits) / torch.exp(logits).sum(dim=-1, keepdim=True)
    assert torch.allclose(network(x.float()).double(), expected, atol=1e-6)


def test_seeding_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = seeded_network(6, 8, 2, seed=9).state_dict()
    assert torch.equal(torch.rand(4), expected)
    second = seeded_network(6, 8, 2, seed=9).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_entropy_in_nats() -> None:
    assert float(entropy(torch.tensor([0.25, 0.75]))) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert float(entropy(torch.tensor([1.0, 0.0, 0.0]))) == 0.0
    logits = torch.tensor([[400.0, -400.0], [0.0, 0.0]], requires_grad=True)
    spread = entropy_of_logits(logits)
    assert spread.tolist() == pytest.approx([0.0, math.log(2)])
    spread.sum().backward()
    assert torch.isfinite(logits.grad).all() if logits.grad is not None else False
    assert normalised(math.log(3), 3) == pytest.approx(1.0)
    assert normalised(0.0, 1) == 0.0


def test_divergences_in_nats() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    middle = (p.exp() + q.exp()) / 2
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0]
    assert kl_divergence(p, q).tolist() == pytest.approx(expected, abs=1e-7)
    halves = 0.5 * kl_divergence(p, middle.log()) + 0.5 * kl_divergence(q, middle.log())
    assert js_divergence(p, q).tolist() == pytest.approx(halves.tolist(), abs=1e-7)
    disjoint = torch.tensor([1.0, 1e-30]).log(), torch.tensor([1e-30, 1.0]).log()
    assert float(js_divergence(*disjoint)) == pytest.approx(math.log(2))
    assert (kl_divergence(p, p) >= 0).all() and kl_divergence(p, q).dtype == torch.float64


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_folded_equals_standardised(count: int, size: int, seed: int) -> None:
    rows, _ = _clusters(count, size, 2, seed)
    rows[:, 0] = 3.5
    standardiser = Standardiser.fit(rows)
    network = seeded_network(size, 8, 3, seed)
    folded = standardiser.fold(network)
    inside = network(standardiser.apply(rows))
    assert torch.allclose(folded(rows), inside, atol=2e-5)


def test_standardising_against_float64() -> None:
    rows, _ = _clusters(30, 6, 3)
    standardiser = Standardiser.fit(rows)
    variance = rows.double().var(dim=0, unbiased=False)
    expected = (rows.double() - rows.double().mean(dim=0)) / (0.99 * variance + 0.01 * variance.mean()).sqrt()
    assert torch.allclose(standardiser.apply(rows).double(), expected, atol=1e-6)
    flat = Standardiser.fit(torch.full((4, 3), 2.0))
    assert torch.equal(flat.apply(torch.full((1, 3), 2.0)), torch.zeros(1, 3))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 30), st.integers(0, 99))
def test_batches_are_drawn_without_replacement(count: int, steps: int, seed: int) -> None:
    size = min(16, count)
    per_round = count // size
    drawn = [chosen.tolist() for chosen in batches(count, steps, seed)]
    assert [len(chosen) for chosen in drawn] == [size] * steps
    for start in range(0, steps, per_round):
        seen = [index for chosen in drawn[start : start + per_round] for index in chosen]
        assert len(set(seen)) == len(seen)


def test_training_equals_the_plain_loop_on_standardised_inputs() -> None:
    rows, labels = _clusters(37, 12, 3)
    chosen = FitSettings(hidden_dim=16, steps=50, lr=1e-3, entropy_lambda=0.05, seed=5)
    fit = run_to_end(fit_gate(rows, labels, 3, chosen))
    assert fit.network is not None
    inputs = Standardiser.fit(rows).apply(rows)
    plain = reference_gate(inputs, labels, 3, hidden_dim=16, steps=50, lr=1e-3, entropy_lambda=0.05, seed=5)
    assert torch.allclose(fit.network(rows), torch.softmax(plain(inputs), dim=-1), atol=2e-5)


def test_training_is_deterministic_and_learns() -> None:
    rows, labels = _clusters(48, 20, 4)
    steps: list[Progress] = []
    first = run_to_end(fit_gate(rows, labels, 4, FitSettings()), steps.append)
    second = run_to_end(fit_gate(rows, labels, 4, FitSettings()))
    assert first.network is not None and second.network is not None
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])
    assert [(step.done, step.loss, step.entropy) for step in steps] == [
        (step.step, step.loss, step.entropy) for step in first.history
    ]
    assert [step.step for step in first.history] == list(range(1, 201))
    assert first.history[-1].loss < 0.6 < first.history[0].loss
    assert (first.network(rows).argmax(dim=-1) == labels).double().mean() > 0.95
    other = run_to_end(fit_gate(rows, labels, 4, FitSettings(seed=43)))
    assert other.network is not None
    assert not torch.equal(other.network.first.weight, first.network.first.weight)


def test_entropy_lambda_keeps_the_weights_apart_from_zero() -> None:
    rows, labels = _clusters(48, 20, 3)
    spread = {}
    for strength in (0.0, 1.0):
        fit = run_to_end(fit_gate(rows, labels, 3, FitSettings(entropy_lambda=strength)))
        assert fit.network is not None
        spread[strength] = float(entropy(fit.network(rows)).mean())
    assert spread[1.0] > spread[0.0] + 0.2


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_as_diverged(poison: float) -> None:
    rows, labels = _clusters(20, 6, 2)
    rows[3, 2] = poison
    fit = run_to_end(fit_gate(rows, labels, 2, FitSettings()))
    assert fit.diverged and len(fit.history) < 200
    assert not math.isfinite(fit.history[-1].loss)


def test_embeddings_from_inference_mode_can_be_trained_on() -> None:
    with torch.inference_mode():
        rows, labels = _clusters(20, 6, 2)
        rows, labels = rows * 1, labels * 1
    fit = run_to_end(fit_gate(rows, labels, 2, FitSettings(steps=3)))
    assert fit.network is not None


def test_a_state_dict_is_what_a_plain_sequential_reads() -> None:
    network = GateNetwork(4, 8, 2)
    plain = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    plain.load_state_dict(network.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(torch.softmax(plain(x), dim=-1), network(x))
