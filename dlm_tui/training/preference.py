"""Preference losses on a causal LM: DPO (sigmoid, hinge, IPO) and ORPO."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dlm_tui.training.adapter_trainer import AdapterTrainer


def answer_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability (nats) and length of the labelled tokens of each row.

    logits [B, T, V], labels [B, T] with -100 where nothing is scored; returns two float tensors [B].
    """
    shifted = labels[:, 1:]
    known = shifted != -100
    logp = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    picked = logp.gather(2, shifted.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (picked * known).sum(1), known.sum(1).clamp(min=1).float()


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    loss_type: str,
) -> torch.Tensor:
    """Mean DPO loss of summed answer log-probabilities [B] against a reference.

    With h = (chosen - ref_chosen) - (rejected - ref_rejected): sigmoid is -log σ(βh) (Rafailov et al. 2023),
    hinge max(0, 1 - βh) (Zhao et al. 2023), ipo (h - 1/2β)² (Azar et al. 2023).
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    if loss_type == "sigmoid":
        return -F.logsigmoid(beta * margin).mean()
    if loss_type == "hinge":
        return torch.relu(1 - beta * margin).mean()
    return (margin - 1 / (2 * max(beta, 1e-6))).square().mean()


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """ORPO (Hong et al. 2024) on mean token log-probabilities [B]: -chosen - α log σ(log odds ratio)."""

    def log_odds(mean_logp: torch.Tensor) -> torch.Tensor:
        return mean_logp - torch.log1p(-torch.exp(mean_logp).clamp(max=1 - 1e-6))

    ratio = log_odds(chosen) - log_odds(rejected)
    return (-chosen - alpha * F.logsigmoid(ratio)).mean()


class PreferenceTrainer(AdapterTrainer):
    """A Trainer whose batches are chosen rows followed by rejected rows."""

    def __init__(self, *, method: str, beta: float, alpha: float, loss_type: str, reference: Any, **kwargs: Any):
        """`reference` is a context-manager factory under which the model is the reference model (DPO only)."""
        super().__init__(**kwargs)
        self._method, self._beta, self._alpha, self._loss_type = method, beta, alpha, loss_type
        self._reference = reference

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **more: Any
    ) -> Any:
        """The preference loss of one batch, in nats."""
        features = dict(inputs)
        labels = features.pop("labels")
        outputs = model(**features)
        sums, lengths = answer_logprobs(outputs.logits, labels)
        chosen, rejected = sums.chunk(2)
        if self._method == "orpo":
            chosen_length, rejected_length = lengths.chunk(2)
            loss = orpo_loss(chosen / chosen_length, rejected / rejected_length, alpha=self._alpha)
        else:
            with torch.no_grad(), self._reference():
                reference_sums = answer_logprobs(model(**features).logits, labels)[0]
            ref_chosen, ref_rejected = reference_sums.chunk(2)
            loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=self._beta, loss_type=self._loss_type)
        return (loss, outputs) if return_outputs else loss
