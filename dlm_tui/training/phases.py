"""The phases of training an adapter, each one run of transformers' Trainer."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from dlm_tui.document import Document
from dlm_tui.errors import DlmTuiError
from dlm_tui.training.preference import PreferenceTrainer
from dlm_tui.training.rows import AdapterRows, collate_pairs, collate_sequences, filler_id
from dlm_tui.training.settings import Phase, trainer_arguments

if TYPE_CHECKING:
    from dlm_tui.model import Base


class Diverged(DlmTuiError):
    """The loss or a weight stopped being a finite number."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step or one validation pass (`loss` or `val_loss` in nats per token)."""

    phase: str
    step: int
    loss: float | None = None
    val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None


# Called in the training thread; raising in it ends the training.
OnStep = Callable[[Step], None]


@dataclass(kw_only=True)
class Finetuned:
    """Weights and PEFT config of a trained adapter, on the CPU in float32."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    phases: list[Phase]
    steps: dict[str, int] = field(default_factory=dict)
    train_loss: dict[str, float] = field(default_factory=dict)
    val_loss: float | None = None


class _Watch(TrainerCallback):
    """Passes every logged number on, and counts tokens for the rate."""

    def __init__(self, phase: str, on_step: OnStep):
        self.phase, self.on_step = phase, on_step
        self.tokens, self.since = 0, time.monotonic()
        self.steps, self.last_loss = 0, math.nan
        self.val_loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            self.val_loss = float(logs["eval_loss"])
            self.on_step(Step(phase=self.phase, step=state.global_step, val_loss=self.val_loss))
        elif "loss" in logs:
            now = time.monotonic()
            rate = self.tokens / max(now - self.since, 1e-9)
            self.tokens, self.since = 0, now
            self.steps, self.last_loss = state.global_step, float(logs["loss"])
            if not math.isfinite(self.last_loss):
                raise Diverged(f"the {self.phase} loss became {self.last_loss} at step {state.global_step}")
            self.on_step(
                Step(
                    phase=self.phase,
                    step=state.global_step,
                    loss=self.last_loss,
                    learning_rate=float(logs["learning_rate"]) if "learning_rate" in logs else None,
                    grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
                    tokens_per_second=rate,
                )
            )


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def run_sft(
    model: Any,
    base: Base,
    document: Document,
    phase: Phase,
    rows: AdapterRows,
    on_step: OnStep,
    result: Finetuned,
) -> None:
    """Causal-LM loss on the training rows, validation loss after every epoch; fills `result`."""
    filler = filler_id(base)
    watch = _Watch(phase.name, on_step)

    def collate(batch: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        watch.tokens += sum(map(len, batch))
        return collate_sequences(batch, filler)

    with tempfile.TemporaryDirectory(prefix="dlm-tui-train-") as scratch:
        trainer = Trainer(
            model=model,
            args=trainer_arguments(document, phase, Path(scratch), evaluate=bool(rows.validation)),
            data_collator=collate,
            train_dataset=_Rows(rows.train),
            eval_dataset=_Rows(rows.validation) if rows.validation else None,
            callbacks=[watch],
        )
        _run(trainer, watch, phase, result)
    result.val_loss = watch.val_loss


def run_preferences(
    model: Any,
    base: Base,
    document: Document,
    phase: Phase,
    rows: AdapterRows,
    on_step: OnStep,
    result: Finetuned,
    *,
    adapter_off: Callable[[], contextlib.AbstractContextManager[Any]],
) -> None:
    """The preference loss on the pairs; `adapter_off` is a context in which the model is the base. Fills `result`."""
    preference = document.training.preference
    filler = filler_id(base)
    watch = _Watch(phase.name, on_step)
    reference = adapter_off if preference.reference == "base" else _frozen_copy(model)
    with tempfile.TemporaryDirectory(prefix="dlm-tui-train-") as scratch:
        trainer = PreferenceTrainer(
            method=phase.name,
            beta=preference.hyperparams.beta,
            alpha=preference.hyperparams.alpha,
            loss_type=preference.loss_type,
            reference=_evaluating(model, reference),
            model=model,
            args=trainer_arguments(document, phase, Path(scratch), evaluate=False),
            data_collator=lambda batch: collate_pairs(batch, filler),
            train_dataset=_Rows(rows.preference),
            callbacks=[watch],
        )
        _run(trainer, watch, phase, result)


def _run(trainer: Trainer, watch: _Watch, phase: Phase, result: Finetuned) -> None:
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which carries data
    trainer.train()
    result.phases.append(phase)
    result.steps[phase.name] = watch.steps
    result.train_loss[phase.name] = watch.last_loss


def _frozen_copy(model: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context in which the trainable weights are what they are now: the model before the preference phase."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [weight.detach().clone() for weight in weights]

    @contextlib.contextmanager
    def swapped() -> Iterator[None]:
        current = [weight.data for weight in weights]
        for weight, old in zip(weights, frozen, strict=True):
            weight.data = old
        try:
            yield
        finally:
            for weight, new in zip(weights, current, strict=True):
                weight.data = new

    return swapped


def _evaluating(
    model: Any, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`context` without dropout."""

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        was_training = model.training
        model.eval()
        try:
            with context():
                yield
        finally:
            model.train(was_training)

    return entered
