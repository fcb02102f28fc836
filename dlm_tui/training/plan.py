"""What a training will do, resolved once from document and request: adapters, phases, numbers, rows. No torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from dlm_tui.document import (
    AdapterSettings,
    Document,
    Row,
    TrainerSettings,
    document_side_file,
    route_sections,
    sources,
    split_side,
    training_rows,
)
from dlm_tui.document.seeds import seed_in_range, seed_note
from dlm_tui.errors import DlmTuiError, UsageError

Parameterization = Literal["lora", "pissa"]

# Optimiser of the schema -> the package it needs beside torch.
_OPTIMISER_PACKAGES = {
    "adamw_torch": None,
    "adamw_bnb_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "galore_adamw": "galore_torch",
    "galore_adamw_8bit": "galore_torch",
}
# Rows of an optimiser step where the document leaves them to us.
_AUTO_ROWS = 4
_MOSTLY_PROSE = 0.7
# Continued pretraining: a long warm-up, and a rate that falls to a tenth of its peak instead of to nothing.
_PRETRAINING_WARMUP, _PRETRAINING_FLOOR = 0.2, 0.1


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One optimisation: `name` is sft, dpo or orpo. `warmup_ratio` is a share of the steps; the rate falls to
    `min_lr_ratio` of its peak where that is given. In the first `embed_warmup_steps` steps a pair on the token
    embedding learns, too."""

    name: Literal["sft", "dpo", "orpo"]
    learning_rate: float
    epochs: int
    lr_scheduler: str
    warmup_ratio: float
    min_lr_ratio: float | None = None
    embed_warmup_steps: int = 0


class PreferencePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The preference loss, in the words of the schema."""

    method: Literal["dpo", "orpo"]
    beta: float
    alpha: float
    loss_type: str
    reference: Literal["pre_adapter", "base"]


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """Rows of one adapter before they become tokens, in document order; weighted, and split by section and seed."""

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    preference: list[Row] = field(default_factory=list)
    section_ids: list[str] = field(default_factory=list)
    weight_distribution: dict[str, dict[str, int]] | None = None

    @property
    def prose_share(self) -> float:
        """The part of the training rows that is plain text."""
        return sum(row.kind == "text" for row in self.train) / len(self.train) if self.train else 0.0


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """One adapter: how it is made, on what, in which phases. `target_modules` is empty where the base is not known."""

    name: str
    parameterization: Parameterization
    selection: str | None
    rank: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    phases: tuple[Phase, ...]
    rows: PlannedRows

    def phase_rows(self, phase: Phase) -> int:
        """How many rows a phase goes over per epoch."""
        return len(self.rows.train if phase.name == "sft" else self.rows.preference)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything a run does; `notes` say what of the document is not used, or not as it says.

    `micro_batch` rows go through the model at once, `grad_accum` times a step; where `micro_batch_auto` holds, fewer
    at once where memory is short (`within`).
    """

    adapters: tuple[AdapterPlan, ...]
    seed: int
    sequence_len: int
    micro_batch: int
    micro_batch_auto: bool
    grad_accum: int
    trainer: TrainerSettings
    optimizer: str
    precision: str | None
    preference: PreferencePlan
    notes: tuple[str, ...]

    def steps(self, rows: int, phase: Phase) -> int:
        """Optimiser updates of a phase over `rows` rows."""
        return math.ceil(math.ceil(rows / self.micro_batch) / self.grad_accum) * phase.epochs

    def within(self, micro_batch: int) -> TrainingPlan:
        """The same rows a step with at most `micro_batch` of them at once, where the document leaves that to us."""
        if not self.micro_batch_auto or micro_batch >= self.micro_batch:
            return self
        rows = self.micro_batch * self.grad_accum
        return replace(self, micro_batch=micro_batch, grad_accum=math.ceil(rows / micro_batch))

    def settings(self, adapter: AdapterPlan) -> dict[str, Any]:
        """Everything that a person chose for one adapter's training, flat, in the words of the document."""
        first = adapter.phases[0]
        return {
            "parameterization": adapter.parameterization,
            "lora_r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "target_modules": list(adapter.target_modules),
            "learning_rate": first.learning_rate,
            "num_epochs": first.epochs,
            "lr_scheduler": first.lr_scheduler,
            "warmup_ratio": first.warmup_ratio,
            "micro_batch_size": self.micro_batch,
            "grad_accum": self.grad_accum,
            "sequence_len": self.sequence_len,
            "optimizer": self.optimizer,
            "precision": self.precision,
            **msgspec.structs.asdict(self.trainer),
        }

    def as_json(self) -> dict[str, Any]:
        """The plan with counts instead of rows."""
        own = {"adapters", "preference", "notes", "trainer"}
        shared = {key: value for key, value in vars(self).items() if key not in own}
        preferred = any(phase.name != "sft" for adapter in self.adapters for phase in adapter.phases)
        return {
            **shared,
            "trainer": msgspec.structs.asdict(self.trainer),
            "preference": msgspec.to_builtins(self.preference) if preferred else None,
            "adapters": {adapter.name: self._adapter_json(adapter) for adapter in self.adapters},
            "notes": list(self.notes),
        }

    def _adapter_json(self, adapter: AdapterPlan) -> dict[str, Any]:
        values = {key: value for key, value in vars(adapter).items() if key not in {"name", "phases", "rows"}}
        rows = adapter.rows
        return {
            **values,
            "target_modules": list(adapter.target_modules) or "the base's own",
            "rows": {"train": len(rows.train), "validation": len(rows.validation), "preference": len(rows.preference)},
            "phases": [
                {**msgspec.to_builtins(phase), "steps": self.steps(adapter.phase_rows(phase), phase)}
                for phase in adapter.phases
            ],
        }


def plan_training(
    document: Document,
    *,
    base_modules: Sequence[str] = (),
    adapters: Sequence[str] | None = None,
    parameterization: Parameterization = "lora",
    selection: str = "s_only",
    weights: sources.Weights | None = None,
    trainer: TrainerSettings | None = None,
) -> TrainingPlan:
    """Resolve the document's training keys for these adapters (None: all), whose default layers are `base_modules`.

    An adapter that no row reaches is left out, with a note. `weights` are those of the source folders, `trainer` the
    settings instead of those of the side file. Raises UsageError for an adapter that is not declared and for settings
    that exclude each other, SideFileError, DlmTuiError for what cannot be trained exactly, and the errors of malformed
    bodies.
    """
    routed = route_sections(document)
    training = document.training
    settings_beside = document_side_file(document).training if trainer is None else trainer
    _refuse_together(settings_beside, parameterization, training.optimizer)
    notes = [*filter(None, [seed_note(training.seed)]), *_unused(document)]
    planned = []
    refuse_undeclared(document, adapters)
    for name in adapters or list(routed):
        settings = document.adapter_settings(name)
        notes += _unsupported(name, settings)
        rows = planned_rows(document, routed[name], weights)
        phases = _phases(document, settings, rows, parameterization)
        notes += _unused_warmup(document, name, phases, parameterization)
        if not phases:
            notes.append(f"{name}: no section reaches this adapter, it is left as it is")
            continue
        if rows.preference and not _trains_preferences(document):
            notes.append(f"{name}: {len(rows.preference)} preference rows are not used, preference.enabled is false")
        planned.append(
            AdapterPlan(
                name=name,
                parameterization=parameterization,
                selection=selection if parameterization == "pissa" else None,
                rank=settings.lora_r,
                alpha=settings.lora_alpha,
                dropout=settings.lora_dropout,
                target_modules=_target_modules(settings, base_modules),
                phases=phases,
                rows=rows,
            )
        )
    preference = training.preference
    return TrainingPlan(
        adapters=tuple(planned),
        seed=seed_in_range(training.seed),
        sequence_len=training.sequence_len,
        micro_batch=_AUTO_ROWS if training.micro_batch_size == "auto" else int(training.micro_batch_size),
        micro_batch_auto=training.micro_batch_size == "auto",
        grad_accum=1 if training.grad_accum == "auto" else int(training.grad_accum),
        trainer=settings_beside,
        optimizer=training.optimizer,
        precision=training.precision,
        preference=PreferencePlan(
            method=preference.method,
            beta=preference.hyperparams.beta,
            alpha=preference.hyperparams.alpha,
            loss_type=preference.loss_type,
            reference=preference.reference,
        ),
        notes=tuple(notes),
    )


def _refuse_together(settings: TrainerSettings, parameterization: Parameterization, optimizer: str) -> None:
    """Raises UsageError for trainer settings that the parameterization or the optimiser has no place for."""
    if parameterization == "pissa":
        for name in ("rslora", "loraplus_ratio"):
            if getattr(settings, name):
                raise UsageError(f"{name} is about LoRA's two factors, which --parameterization pissa does not train")
    if settings.loraplus_ratio is not None and optimizer.startswith("galore"):
        raise UsageError(f"loraplus_ratio cannot be used with training.optimizer {optimizer}; use adamw_torch")


def refuse_undeclared(document: Document, adapters: Sequence[str] | None) -> None:
    """Raises UsageError for the first name that the document does not declare."""
    declared = document.routing_names
    for name in adapters or ():
        if name not in declared:
            raise UsageError(f"the document declares no adapter {name!r} (declared: {', '.join(declared)})")


def refuse_impossible(plan: TrainingPlan, *, gpu: bool) -> None:
    """Raises DlmTuiError for what this machine cannot do, before anything is trained."""
    package = _OPTIMISER_PACKAGES[plan.optimizer]
    if package and importlib.util.find_spec(package) is None:
        raise DlmTuiError(
            f"training.optimizer {plan.optimizer!r} needs the package {package}, which is not installed; "
            "use adamw_torch or install it"
        )
    if plan.precision == "fp16" and not gpu:
        raise DlmTuiError("training.precision fp16 needs a GPU; use bf16 or fp32 on this machine")


def planned_rows(document: Document, indices: Iterable[int], weights: sources.Weights | None = None) -> PlannedRows:
    """Rows of the sections at `indices`; `weights` repeats or drops those of tagged sections.

    The validation share follows the section ids and the seed, so that a row keeps its side when the document grows; a
    document too small to spare anything trains on all. Raises MediaTrainingError, the errors of malformed bodies, and
    DlmTuiError if the weights drop every row.
    """
    given = training_rows(document, indices)
    sides: dict[str, list[Row]] = {"train": [], "validation": [], "preference": []}
    section_ids: dict[str, None] = {}
    for row in sources.weighted_rows(given, document, weights or {}):
        section_ids.setdefault(row.section_id)
        side = split_side(document.training.seed, row.section_id, row.sub_index)
        sides["preference" if row.kind == "preference" else "train" if side == "train" else "validation"].append(row)
    if not sides["train"]:
        sides["train"], sides["validation"] = sides["validation"], []
    return PlannedRows(
        **sides,
        section_ids=list(section_ids),
        weight_distribution=sources.weight_distribution(given, document, weights or {}),
    )


def _phases(
    document: Document, settings: AdapterSettings, rows: PlannedRows, parameterization: Parameterization
) -> tuple[Phase, ...]:
    training = document.training
    phases = []
    if rows.train:
        schedule = training.cpt.schedule
        pretraining = schedule == "dapt" or (schedule == "auto" and rows.prose_share > _MOSTLY_PROSE)
        phases.append(
            Phase(
                name="sft",
                learning_rate=settings.learning_rate,
                epochs=training.num_epochs,
                lr_scheduler="cosine_with_min_lr" if pretraining else training.lr_scheduler,
                warmup_ratio=_PRETRAINING_WARMUP if pretraining else training.warmup_ratio,
                min_lr_ratio=_PRETRAINING_FLOOR if pretraining else None,
                embed_warmup_steps=training.cpt.embed_warmup_steps if pretraining and parameterization == "lora" else 0,
            )
        )
    if rows.preference and _trains_preferences(document):
        hyper = training.preference.hyperparams
        phases.append(
            Phase(
                name=training.preference.method,
                learning_rate=hyper.learning_rate,
                epochs=hyper.num_epochs,
                lr_scheduler=training.lr_scheduler,
                warmup_ratio=training.warmup_ratio,
            )
        )
    return tuple(phases)


def _unused_warmup(
    document: Document, name: str, phases: tuple[Phase, ...], parameterization: Parameterization
) -> list[str]:
    """Why `cpt.embed_warmup_steps` has no effect on an adapter, [] where it has or is not asked for."""
    if not document.training.cpt.embed_warmup_steps or any(phase.embed_warmup_steps for phase in phases):
        return []
    if parameterization == "pissa":
        return [f"{name}: training.cpt.embed_warmup_steps is not used: PiSSA trains singular values of linear layers"]
    return [f"{name}: training.cpt.embed_warmup_steps is not used: it does not train on the schedule dapt"]


def _trains_preferences(document: Document) -> bool:
    """`preference.enabled`; when the key is absent, preference sections in the body turn it on."""
    preference = document.training.preference
    if "enabled" in preference.model_fields_set:
        return bool(preference.enabled)
    return any(section.type == "preference" for section in document.sections)


def _target_modules(settings: AdapterSettings, defaults: Sequence[str]) -> tuple[str, ...]:
    """Names of the layers to adapt: the document's list when it gives one, else the base's own."""
    if settings.target_modules == "auto":
        return tuple(sorted(defaults))
    if not settings.target_modules:
        raise DlmTuiError("target_modules is an empty list: an adapter needs at least one layer")
    return tuple(sorted(settings.target_modules))


def _unsupported(name: str, settings: AdapterSettings) -> list[str]:
    """Raises DlmTuiError for DoRA; a note when QLoRA has to train as LoRA on this machine."""
    if settings.adapter == "dora":
        raise DlmTuiError(f"adapter {name!r} asks for DoRA, whose magnitude cannot be mixed exactly; use adapter: lora")
    if settings.adapter == "qlora":
        return [f"adapter {name!r}: qlora is trained as plain LoRA on an unquantised base on this machine"]
    return []


def _unused(document: Document) -> list[str]:
    """A sentence per key of the document that this program reads but does not use."""
    training = document.training
    given = training.model_fields_set
    notes = []
    if "cache" in given:
        notes.append("training.cache is not used: rows are tokenised in memory at every run")
    if "audio" in given:
        notes.append("training.audio is not used: audio sections are shown, not trained")
    if training.lr_scheduler == "constant" and training.warmup_ratio > 0:
        notes.append("training.warmup_ratio is not used: a constant learning rate has no warm-up")
    return notes
