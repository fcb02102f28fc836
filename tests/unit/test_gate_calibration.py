"""The figures of `eval` against naive computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_tui.gate.calibration import (
    best_temperature,
    confusion,
    expected_calibration_error,
    scores,
    stratified_folds,
)
from dlm_tui.gate.messages import frozen_text, kept_share, verdict_text
from dlm_tui.gate.ood import MINIMUM, OodDetector, _leading, fit_ood
from dlm_tui.store.collapse import collapse_text


def _logits(count: int, adapters: int, seed: int, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(adapters, (count,), generator=generator)
    logits = torch.randn(count, adapters, generator=generator) * sharp
    logits[torch.arange(count), labels] += 1.0
    return logits, labels


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 999))
def test_scores_against_plain_loops(count: int, adapters: int, seed: int) -> None:
    logits, labels = _logits(count, adapters, seed)
    rows = [[math.exp(value - max(row)) for value in row] for row in logits.double().tolist()]
    weights = [[value / sum(row) for value in row] for row in rows]
    truth = labels.tolist()
    tops = [max(range(adapters), key=row.__getitem__) for row in weights]
    bins: dict[int, list[int]] = {}
    for index, top in enumerate(tops):
        bins.setdefault(min(9, int(weights[index][top] * 10)), []).append(index)
    ece = sum(
        len(members)
        / count
        * abs(
            sum(tops[i] == truth[i] for i in members) / len(members)
            - sum(weights[i][tops[i]] for i in members) / len(members)
        )
        for members in bins.values()
    )
    found = scores(logits, labels)
    assert found.accuracy == pytest.approx(sum(t == y for t, y in zip(tops, truth, strict=True)) / count)
    assert found.log_loss == pytest.approx(-sum(math.log(weights[i][y]) for i, y in enumerate(truth)) / count)
    assert found.mean_entropy == pytest.approx(-sum(w * math.log(w) for row in weights for w in row) / count)
    assert found.ece == pytest.approx(ece, abs=1e-9)
    table = confusion(logits, labels, adapters)
    assert sum(map(sum, table)) == count
    assert all(
        table[a][b] == sum(y == a and t == b for t, y in zip(tops, truth, strict=True))
        for a in range(adapters)
        for b in range(adapters)
    )


def test_a_perfectly_calibrated_gate_has_no_error() -> None:
    weights = torch.tensor([[0.75, 0.25]] * 4)
    assert expected_calibration_error(weights, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0)
    assert expected_calibration_error(weights, torch.tensor([1, 1, 1, 1])) == pytest.approx(0.75)


@pytest.mark.parametrize("sharp", [0.5, 2.0, 8.0])
def test_the_temperature_is_the_minimum_of_the_log_loss(sharp: float) -> None:
    logits, labels = _logits(80, 3, 5, sharp)
    best = best_temperature(logits, labels)
    at_best = scores(logits / best, labels).log_loss
    dense = min(scores(logits / (0.05 * 1.02**step), labels).log_loss for step in range(300))
    assert at_best <= dense + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.integers(2, 6), st.integers(0, 99))
def test_folds_are_stratified_and_even(labels: list[int], folds: int, seed: int) -> None:
    assigned = stratified_folds(labels, folds, seed)
    assert assigned == stratified_folds(labels, folds, seed)
    sizes = [assigned.count(fold) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        per_fold = [
            sum(one == label and fold == at for one, at in zip(labels, assigned, strict=True)) for fold in range(folds)
        ]
        assert max(per_fold) - min(per_fold) <= 1


def test_the_distance_is_a_shrunk_mahalanobis_distance() -> None:
    rows = torch.randn(20, 9, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 3, 9)
    ood_score = fit_ood(rows, [0, 1] * 10, 0)
    assert ood_score is not None
    x = rows.double()
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / 19
    share = 9 / (9 + 20)
    shrunk = (1 - share) * covariance + share * covariance.trace() / 9 * torch.eye(9).double()
    point = torch.randn(4, 9, generator=torch.Generator().manual_seed(2)).double() * 3
    offset = point - x.mean(0)
    expected = ((offset @ torch.linalg.inv(shrunk)) * offset).sum(-1).div(9).sqrt()
    assert torch.allclose(ood_score.distance(point.float()), expected, rtol=1e-4)
    assert torch.equal(ood_score.held_out, ood_score.held_out.sort().values) and len(ood_score.held_out) == 20
    assert float((ood_score.held_out <= ood_score.limit).double().mean()) == 0.95


def test_the_leading_axes_are_those_of_a_full_decomposition() -> None:
    rows = torch.randn(200, 120, generator=torch.Generator().manual_seed(3)).double() * torch.logspace(0, -1.5, 120)
    centred = rows - rows.mean(0)
    variances, axes = _leading(centred, 32)
    _, singular, exact = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(variances, singular[:32].square() / 199, rtol=1e-2)
    assert torch.allclose(axes @ axes.T, torch.eye(32).double(), atol=1e-9)
    assert torch.allclose((axes[:8] @ exact[:8].T).abs(), torch.eye(8).double(), atol=1e-2)


def test_the_ood_score_tells_noise_from_the_same_kind() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(60, 40, generator=generator) * torch.logspace(-2, 0, 40)
    ood_score = fit_ood(rows[:40], [0, 1] * 20, 0)
    assert ood_score is not None
    same = [ood_score.judge(row) for row in rows[40:]]
    assert sum(is_ood for _, is_ood in same) <= 2 and 0.2 < sum(share for share, _ in same) / 20 < 0.8
    assert ood_score.judge(torch.randn(40, generator=generator)) == (1.0, True)
    assert ood_score.judge(torch.full((40,), float("nan"))) == (1.0, True)
    restored = OodDetector.restore(ood_score.tensors())
    assert torch.allclose(restored.distance(rows), ood_score.distance(rows), rtol=1e-5)
    with pytest.raises(ValueError, match="inconsistent"):
        OodDetector.restore({**ood_score.tensors(), "mean": torch.zeros(3)})


def test_no_ood_score_without_enough_to_go_by() -> None:
    assert fit_ood(torch.randn(MINIMUM - 1, 4), [0] * (MINIMUM - 1), 0) is None
    assert fit_ood(torch.ones(20, 4), [0, 1] * 10, 0) is None


def test_verdicts_say_what_to_do() -> None:
    text = collapse_text("a", 0.95, 0.1, 0.01, {"a": 40, "b": 4})
    assert "entropy_lambda" in text and "a 40" in text and "b 4" in text
    assert verdict_text(0.9, 0.9, 3, text, 0.0, 1.0) == text
    assert "chance is 33%" in verdict_text(0.36, 0.36, 3, None, 0.0, 1.0)
    # Of 60 and 2 sections always the same adapter: 97 % right, and nothing was learned.
    assert "does not tell the adapters apart" in verdict_text(60 / 62, 0.5, 2, None, 0.0, 1.0)
    assert "routes 100%" in verdict_text(1.0, 1.0, 2, None, 0.0, 1.0)
    sure = verdict_text(0.8, 0.8, 3, None, 0.2, 2.0)
    assert "too sure" in sure and "2.00" in sure
    assert "loses most" in frozen_text(0.1, 0.9, 1.0, 0.5) and "--mix best" in frozen_text(0.1, 0.9, 1.0, 0.5)
    assert "keeps 90%" in frozen_text(0.9, 0.1, 1.0, 0.1)


def test_no_share_is_told_of_differences_that_are_told_as_nothing() -> None:
    assert kept_share(3e-5, 2e-5) is None and kept_share(3e-5, 6e-5) == pytest.approx(0.5)
    none = "The gate makes no measurable difference on these prompts"
    assert frozen_text(None, 3e-5, 2e-5, 1e-6) == (
        f"{none}: a uniform mix answers as the live gate does, and so does the frozen one."
    )
    assert frozen_text(None, 0.3, 2e-5, 1e-6).endswith("live gate does, this one 0.3000 nats off.")
    assert "--mix best" not in frozen_text(0.9, 4e-5, 4e-4, 1e-6)
