"""Preference losses against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from dlm_tui.training.preference import answer_logprobs, dpo_loss, orpo_loss
from dlm_tui.training.rows import PreferencePair, collate_pairs, collate_sequences


def test_answer_logprobs_sum_only_the_answer() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, -100, -100]])
    sums, lengths = answer_logprobs(logits, labels)
    table = torch.log_softmax(logits, dim=-1)
    assert sums[0].item() == pytest.approx((table[0, 1, 3] + table[0, 2, 4]).item(), abs=1e-5)
    assert sums[1].item() == pytest.approx(table[1, 0, 1].item(), abs=1e-5)
    assert lengths.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_dpo_follows_its_formula(loss_type: str) -> None:
    chosen, rejected, ref_chosen, ref_rejected, beta = -3.0, -5.0, -4.0, -4.5, 0.3
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    expected = {
        "sigmoid": math.log1p(math.exp(-beta * margin)),
        "hinge": max(0.0, 1 - beta * margin),
        "ipo": (margin - 1 / (2 * beta)) ** 2,
    }[loss_type]
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, ref_chosen, ref_rejected)]
    assert dpo_loss(*tensors, beta=beta, loss_type=loss_type).item() == pytest.approx(expected, abs=1e-12)


def test_orpo_follows_its_formula() -> None:
    chosen, rejected, alpha = -0.7, -1.9, 0.2

    def odds(logp: float) -> float:
        return math.exp(logp) / (1 - math.exp(logp))

    expected = -chosen + alpha * math.log1p(odds(rejected) / odds(chosen))
    got = orpo_loss(
        torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64), alpha=alpha
    )
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_batches_put_the_loss_where_it_belongs() -> None:
    causal = collate_sequences([[5, 6, 7], [8]], filler=0)
    assert causal["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    pairs = collate_pairs([PreferencePair(chosen=[1, 2, 3], rejected=[1, 4], prompt_length=1)], filler=0)
    assert pairs["labels"].tolist() == [[-100, 2, 3], [-100, 4, -100]]
    assert pairs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
