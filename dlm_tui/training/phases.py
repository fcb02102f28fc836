"""The phases of training an adapter, each one run of transformers' Trainer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import temporary_folder
from dlm_tui.model.linear import onednn_works
from dlm_tui.model.onednn import frozen_linears, through_onednn
from dlm_tui.progress import EarlyLook
from dlm_tui.store.checkpoints import PhaseResult
from dlm_tui.training.adapter_trainer import AdapterTrainer
from dlm_tui.training.checkpoints import AdapterCheckpoints, CheckpointedTrainer, CheckpointTimer, last_loss
from dlm_tui.training.early_answers import EarlyPrompt, Looker, held_out_loss
from dlm_tui.training.embeddings import EmbeddingWarmup
from dlm_tui.training.packing import collate_cheaper, packs_exactly
from dlm_tui.training.plan import AdapterPlan, Phase, TrainingPlan
from dlm_tui.training.preference import PreferenceTrainer
from dlm_tui.training.rows import AdapterRows, collate_pairs, collate_sequences, filler_id
from dlm_tui.training.signed import SignedTrainer, Turned

if TYPE_CHECKING:
    from dlm_tui.model import Base


LOWER = "lower the learning rate"


class Diverged(DlmTuiError):
    """The loss or a weight stopped being a finite number."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step, one validation pass or one look.

    `loss` is in the unit of its `loss_kind` (a key of `losses.UNITS`), `val_loss` in nats per token.
    `tokens` are those of the batches that the step computed, without padding and of pairs those of both sides, and
    `tokens_per_second` is by its own time: what is done between two steps is not in it.
    """

    phase: str
    step: int
    loss: float | None = None
    loss_kind: str | None = None
    val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    look: EarlyLook | None = None


# Called in the training thread; raising in it ends the training.
OnStep = Callable[[Step], None]


@dataclass(kw_only=True)
class Finetuned:
    """Weights and PEFT config of a trained adapter, on the CPU in float32; `tail_depth` per layer where singular
    directions were selected."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    tail_depth: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    train_loss: dict[str, float] = field(default_factory=dict)
    val_losses: dict[str, float | None] = field(default_factory=dict)

    def add(self, phase: PhaseResult) -> None:
        """A phase is over."""
        self.steps[phase.name] = phase.steps
        self.train_loss[phase.name] = phase.loss
        self.val_losses[phase.name] = phase.val_loss

    @property
    def val_loss(self) -> float | None:
        """The loss on the validation rows behind the last phase, nats per token: that of the weights there are."""
        return next(reversed(self.val_losses.values()), None)

    @property
    def phases(self) -> list[PhaseResult]:
        """What `add` was told."""
        return [
            PhaseResult(name=name, steps=steps, loss=self.train_loss[name], val_loss=self.val_losses[name])
            for name, steps in self.steps.items()
        ]


class PhaseArguments(TrainingArguments):
    """Arguments whose warm-up leaves a step to learn in. Transformers rounds a share of the steps up, and the last step
    of a warm-up over all of them, the only one of a short training, has the rate 0."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """The steps of the warm-up, rounded up as everywhere else, and never all."""
        return max(0, min(int(super().get_warmup_steps(num_training_steps)), num_training_steps - 1))


class _Watch(TrainerCallback):
    """Passes every logged number on, and counts the tokens and the seconds of each step."""

    def __init__(
        self,
        phase: str,
        loss_kind: str,
        on_step: OnStep,
        timer: CheckpointTimer | None = None,
        *,
        first: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.phase, self._on_step, self._timer, self._is_first = phase, on_step, timer, first
        self._loss_kind, self._clock = loss_kind, clock
        self._tokens, self._since = 0, clock()
        self.steps, self.last_loss = 0, math.nan
        self.val_loss: float | None = None

    def judged(self, val_loss: float | None) -> None:
        """The loss on the validation rows behind a phase whose own loss is of another kind."""
        self.val_loss = val_loss
        if val_loss is not None:
            self.on_step(Step(phase=self.phase, step=self.steps, val_loss=val_loss))

    def count(self, tokens: int) -> None:
        """A batch of so many tokens is computed in this step."""
        self._tokens += tokens

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Looks, validation and checkpoints lie behind, and what was fetched ahead is not computed yet."""
        self._tokens, self._since = 0, self._clock()

    def on_step(self, step: Step) -> None:
        """Tell it; whoever listens may end the training by raising."""
        try:
            self._on_step(step)
        except BaseException as reason:
            if self._timer is None or not self._timer.stop(reason):
                raise

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            self.val_loss = float(logs["eval_loss"])
            self.on_step(Step(phase=self.phase, step=state.global_step, val_loss=self.val_loss))
        elif "loss" in logs:
            rate = self._tokens / max(self._clock() - self._since, 1e-9)
            self.steps, self.last_loss = state.global_step, float(logs["loss"])
            if not math.isfinite(self.last_loss):
                untouched = self._is_first and state.global_step == 1
                remedy = "what it began with is damaged: fetch the base again" if untouched else LOWER
                raise Diverged(f"the {self.phase} loss became {self.last_loss} at step {state.global_step}; {remedy}")
            self.on_step(
                Step(
                    phase=self.phase,
                    step=state.global_step,
                    loss=self.last_loss,
                    loss_kind=self._loss_kind,
                    learning_rate=float(logs["learning_rate"]) if "learning_rate" in logs else None,
                    grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
                    tokens=self._tokens,
                    tokens_per_second=rate,
                )
            )


class _Looks(TrainerCallback):
    """Looks at the adapter behind some steps of a phase that `done` steps came before; last of the callbacks, so that
    a step is told before the look behind it, and whoever stops does not wait for one."""

    def __init__(self, looker: Looker, watch: _Watch, done: int, timer: CheckpointTimer | None):
        self._looker, self._watch, self._done, self._timer = looker, watch, done, timer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The untrained adapter, once."""
        if self._looker.first is None:
            self._tell(0, self._looker.look_before)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Behind a step that is one to look behind."""
        stopped = self._timer is not None and self._timer.stopped is not None
        if "loss" in (logs or {}) and not stopped and self._done + state.global_step in self._looker.steps:
            self._tell(state.global_step, lambda: self._looker.look(self._done + state.global_step))

    def _tell(self, step: int, take: Callable[[], EarlyLook]) -> None:
        look = take()
        self._watch.on_step(Step(phase=self._watch.phase, step=step, val_loss=look.held_out, look=look))


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def run_phases(
    model: Any,
    base: Base,
    plan: TrainingPlan,
    adapter: AdapterPlan,
    rows: AdapterRows,
    on_step: OnStep,
    *,
    adapter_off: Callable[[], contextlib.AbstractContextManager[Any]],
    turned: Turned,
    checkpoints: AdapterCheckpoints | None = None,
    asked: Sequence[EarlyPrompt] | None = None,
) -> Finetuned:
    """Every phase of the plan that has rows, in order, on the trainable weights of `model`.

    `adapter_off` is a context in which the model is the base, `turned` one in which the adapter has another
    coefficient than 1. With `checkpoints` the phases go on from where they were interrupted. With `asked` looks are
    taken on the way. The result has no tensors yet. Raises Diverged, and whatever `on_step` raises.
    """
    result = Finetuned(tensors={}, config={})
    for over in checkpoints.done if checkpoints is not None else ():
        result.add(over)
    looker = None
    if asked is not None:
        looker = Looker(model, base, plan, adapter, rows, asked, adapter_off)
    for phase in adapter.phases:
        if not rows.of(phase) or phase.name in result.steps:
            continue
        timer = None
        if checkpoints is not None:
            timer = CheckpointTimer(checkpoints.every)
        watch = _Watch(phase.name, plan.loss_kind(phase.name), on_step, timer, first=not result.steps)
        start = checkpoints.begin(phase.name, model) if checkpoints is not None else None
        if start is not None:
            watch.steps, watch.last_loss, watch.val_loss = last_loss(start)
        with temporary_folder("train") as scratch:
            if phase.name == "sft":
                trainer = _causal(model, base, plan, phase, rows, watch, scratch)
            elif phase.name == "signed":
                trainer = _signed(model, base, plan, phase, rows, watch, scratch, adapter.coefficient, turned)
            else:
                trainer = _preferences(model, base, plan, phase, rows, watch, scratch, adapter_off)
            warmup = EmbeddingWarmup(model, phase.embed_warmup_steps)
            trainer.add_callback(warmup)
            trainer.remove_callback(PrinterCallback)  # it prints to stdout, which carries data
            if checkpoints is not None and timer is not None:
                trainer.checkpoints, trainer.phase_name = checkpoints, phase.name
                trainer.steps_per_epoch = plan.steps(rows.of(phase), phase) // phase.epochs
                trainer.add_callback(timer)
            if looker is not None:
                trainer.add_callback(_Looks(looker, watch, sum(result.steps.values()), timer))
            with warmup.in_force(), _quick_base(base):
                trainer.train_from(start)
        if timer is not None and timer.stopped is not None:
            raise timer.stopped
        if phase.name != "sft":
            watch.judged(held_out_loss(model, base, plan, rows))
        over = PhaseResult(name=phase.name, steps=watch.steps, loss=watch.last_loss, val_loss=watch.val_loss)
        result.add(over)
        if checkpoints is not None:
            checkpoints.end(over)
    return result


def _quick_base(base: Base) -> contextlib.AbstractContextManager[None]:
    """The frozen layers through oneDNN, where that is right on this machine."""
    quick = base.device.type == "cpu" and onednn_works(base.dtype)
    return through_onednn(frozen_linears(base.model) if quick else [])


def _causal(
    model: Any, base: Base, plan: TrainingPlan, phase: Phase, rows: AdapterRows, watch: _Watch, scratch: Path
) -> CheckpointedTrainer:
    """Causal-LM loss on the training rows, validation loss after every epoch."""
    filler = filler_id(base)
    packing = packs(plan, model, base)

    def collate(batch: Sequence[list[int]]) -> dict[str, Any]:
        if packing:
            return collate_cheaper(batch, filler, base.hidden_size)
        return collate_sequences(batch, filler)

    return AdapterTrainer(
        settings=plan.trainer,
        lengths=[len(row) for row in rows.train],
        on_tokens=watch.count,
        validation_collator=lambda batch: collate_sequences(batch, filler),
        model=model,
        args=trainer_arguments(plan, phase, scratch, base.device, evaluate=bool(rows.validation)),
        data_collator=collate,
        train_dataset=_Rows(rows.train),
        eval_dataset=_Rows(rows.validation) if rows.validation else None,
        callbacks=[watch],
    )


def _preferences(
    model: Any,
    base: Base,
    plan: TrainingPlan,
    phase: Phase,
    rows: AdapterRows,
    watch: _Watch,
    scratch: Path,
    adapter_off: Callable[[], contextlib.AbstractContextManager[Any]],
) -> CheckpointedTrainer:
    """The preference loss on the pairs, against the base or against the model as it is before this phase."""
    preference = plan.preference
    return PreferenceTrainer(
        method=phase.name,
        beta=preference.beta,
        alpha=preference.alpha,
        loss_type=preference.loss_type,
        reference=_evaluating(model, adapter_off if preference.reference == "base" else _frozen_copy(model)),
        **_on_pairs(model, base, plan, phase, rows, watch, scratch),
    )


def _signed(
    model: Any,
    base: Base,
    plan: TrainingPlan,
    phase: Phase,
    rows: AdapterRows,
    watch: _Watch,
    scratch: Path,
    coefficient: float,
    turned: Turned,
) -> CheckpointedTrainer:
    """The pairs, chosen at +C and rejected at −C."""
    return SignedTrainer(
        coefficient=coefficient,
        turned=turned,
        **_on_pairs(model, base, plan, phase, rows, watch, scratch),
    )


def _on_pairs(
    model: Any, base: Base, plan: TrainingPlan, phase: Phase, rows: AdapterRows, watch: _Watch, scratch: Path
) -> dict[str, Any]:
    """What every training on preference pairs is given."""
    filler = filler_id(base)
    return {
        "settings": plan.trainer,
        "lengths": [max(len(pair.chosen), len(pair.rejected)) for pair in rows.preference],
        "on_tokens": watch.count,
        "model": model,
        "args": trainer_arguments(plan, phase, scratch, base.device, evaluate=False),
        "data_collator": lambda batch: collate_pairs(batch, filler),
        "train_dataset": _Rows(rows.preference),
        "callbacks": [watch],
    }


def trainer_arguments(
    plan: TrainingPlan, phase: Phase, scratch: Path, device: torch.device, *, evaluate: bool
) -> TrainingArguments:
    """The plan's numbers as arguments of transformers' Trainer, for one phase on a base that computes on `device`."""
    extra: dict[str, Any] = {}
    if phase.min_lr_ratio is not None:
        extra["lr_scheduler_kwargs"] = {"min_lr_rate": phase.min_lr_ratio}
    if plan.optimizer.startswith("galore"):
        extra["optim_target_modules"] = ["lora_A", "lora_B"]
    return PhaseArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.grad_accum,
        learning_rate=phase.learning_rate,
        num_train_epochs=phase.epochs,
        optim=plan.optimizer,
        activation_checkpointing=plan.trainer.activation_checkpointing,
        neftune_noise_alpha=plan.trainer.neftune_alpha,
        lr_scheduler_type=phase.lr_scheduler,
        warmup_steps=phase.warmup_ratio if phase.warmup_ratio > 0 else 0,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        label_names=["labels"],
        **extra,
    )


def packs(plan: TrainingPlan, model: Any, base: Base) -> bool:
    """Whether rows are packed: noise on embeddings is sized by the length of the row that it falls on, so not then."""
    return plan.trainer.packing and plan.trainer.neftune_alpha is None and packs_exactly(model, base.vocab_size)


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
