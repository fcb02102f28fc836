"""The document's training keys as Trainer arguments; what is not used is said."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from dlm_tui.document import AdapterSettings, Document
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import DlmTuiError

# Optimiser of the schema -> (Trainer's name, package it needs).
_OPTIMISERS = {
    "adamw_torch": ("adamw_torch", None),
    "adamw_bnb_8bit": ("adamw_bnb_8bit", "bitsandbytes"),
    "paged_adamw_8bit": ("paged_adamw_8bit", "bitsandbytes"),
    "galore_adamw": ("galore_adamw", "galore_torch"),
    "galore_adamw_8bit": ("galore_adamw_8bit", "galore_torch"),
}
_AUTO_MICRO_BATCH = 4
_MOSTLY_PROSE = 0.7
# Continued pretraining: a long warm-up, and a rate that falls to a tenth of its peak instead of to nothing.
_PRETRAINING_WARMUP, _PRETRAINING_FLOOR = 0.2, 0.1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimisation: "sft", "dpo" or "orpo", with its own rate and epochs.

    `pretraining` is the schedule for continued pretraining on prose, instead of the document's.
    """

    name: str
    learning_rate: float
    epochs: int
    pretraining: bool = False


def sft_phase(document: Document, settings: AdapterSettings, prose_share: float = 0.0) -> Phase:
    """Supervised fine-tuning with the adapter's own learning rate.

    `cpt.schedule` chooses the schedule; `auto` is that of pretraining when more than 70 % of the training rows are
    prose.
    """
    schedule = document.training.cpt.schedule
    pretraining = schedule == "dapt" or (schedule == "auto" and prose_share > _MOSTLY_PROSE)
    return Phase(
        name="sft",
        learning_rate=settings.learning_rate,
        epochs=document.training.num_epochs,
        pretraining=pretraining,
    )


def preference_phase(document: Document) -> Phase:
    """The preference phase of the document."""
    preference = document.training.preference
    hyper = preference.hyperparams
    return Phase(name=preference.method, learning_rate=hyper.learning_rate, epochs=hyper.num_epochs)


def trains_preferences(document: Document) -> bool:
    """`preference.enabled`; when the key is absent, preference sections in the body turn it on."""
    preference = document.training.preference
    if "enabled" in preference.model_fields_set:
        return bool(preference.enabled)
    return any(section.type == "preference" for section in document.sections)


def batch_shape(document: Document) -> tuple[int, int]:
    """(micro batch, gradient accumulation); `auto` is 4 rows and no accumulation."""
    training = document.training
    micro = _AUTO_MICRO_BATCH if training.micro_batch_size == "auto" else int(training.micro_batch_size)
    accumulate = 1 if training.grad_accum == "auto" else int(training.grad_accum)
    return micro, accumulate


def optimiser_steps(document: Document, rows: int, epochs: int) -> int:
    """Updates the Trainer will make over `rows` rows."""
    micro, accumulate = batch_shape(document)
    return math.ceil(math.ceil(rows / micro) / accumulate) * epochs


def trainer_arguments(document: Document, phase: Phase, scratch: Path, *, evaluate: bool) -> TrainingArguments:
    """Trainer arguments for one phase. Raises DlmTuiError when the optimiser's package is not installed."""
    training = document.training
    optimiser, package = _OPTIMISERS[training.optimizer]
    if package and importlib.util.find_spec(package) is None:
        raise DlmTuiError(
            f"training.optimizer {training.optimizer!r} needs the package {package}, which is not installed; "
            "use adamw_torch or install it"
        )
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise DlmTuiError("training.precision fp16 needs a GPU; use bf16 or fp32 on this machine")
    micro, accumulate = batch_shape(document)
    extra: dict[str, Any] = {}
    scheduler, warmup = str(training.lr_scheduler), training.warmup_ratio
    if phase.pretraining:
        scheduler, warmup = "cosine_with_min_lr", _PRETRAINING_WARMUP
        extra["lr_scheduler_kwargs"] = {"min_lr_rate": _PRETRAINING_FLOOR}
    if optimiser.startswith("galore"):
        extra["optim_target_modules"] = ["lora_A", "lora_B"]
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        learning_rate=phase.learning_rate,
        num_train_epochs=phase.epochs,
        optim=optimiser,
        lr_scheduler_type=scheduler,
        warmup_steps=warmup if warmup > 0 else 0,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        seed=seed_in_range(training.seed),
        data_seed=seed_in_range(training.seed),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        **extra,
    )


def unused_settings(document: Document) -> list[str]:
    """A sentence per key of the document that this program reads but does not use."""
    training = document.training
    given = training.model_fields_set
    notes = []
    if training.cpt.embed_warmup_steps:
        notes.append(
            "training.cpt.embed_warmup_steps is not used: an adapter with embeddings of its own cannot be mixed exactly"
        )
    if "cache" in given:
        notes.append("training.cache is not used: rows are tokenised in memory at every run")
    if "audio" in given:
        notes.append("training.audio is not used: audio sections are shown, not trained")
    if training.lr_scheduler == "constant" and training.warmup_ratio > 0:
        notes.append("training.warmup_ratio is not used: a constant learning rate has no warm-up")
    return notes


def target_modules(settings: AdapterSettings, defaults: Sequence[str]) -> list[str]:
    """Names of the layers to adapt: the document's list when it gives one, else the base's own."""
    if settings.target_modules == "auto":
        return sorted(defaults)
    if not settings.target_modules:
        raise DlmTuiError("target_modules is an empty list: an adapter needs at least one layer")
    return sorted(settings.target_modules)


def refuse_unsupported(name: str, settings: AdapterSettings) -> str | None:
    """Raises DlmTuiError for DoRA; returns a note when QLoRA has to train as LoRA on this machine."""
    if settings.adapter == "dora":
        raise DlmTuiError(f"adapter {name!r} asks for DoRA, whose magnitude cannot be mixed exactly; use adapter: lora")
    if settings.adapter == "qlora":
        return f"adapter {name!r}: qlora is trained as plain LoRA on an unquantised base on this machine"
    return None
