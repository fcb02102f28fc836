"""What a training will do, resolved once from document and request: adapters, phases, numbers, rows. No torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
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
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.document.seeds import seed_in_range, seed_note
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.losses import loss_kind
from dlm_tui.store.adapter_kind import (
    PAIR_SELECTION,
    TEXT_SELECTIONS,
    AdapterKind,
    KindChoices,
    Parameterization,
    Selection,
    check_kind,
    kind_words,
)

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
_LARGEST_RATE = 1e36
"""Adam's first step is ten times the rate, and has to be a float32."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One optimisation: `name` is sft, dpo, orpo or signed (pairs at +C and −C). `warmup_ratio` is a share of the
    steps; the rate falls to `min_lr_ratio` of its peak where that is given. In the first `embed_warmup_steps` steps a
    pair on the token embedding learns, too."""

    name: Literal["sft", "dpo", "orpo", "signed"]
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
    """One adapter: how it is made, on what, in which phases. `target_modules` is empty where the base is not known.

    `coefficient` is that of signed pairs, 1 without them; `kind` is what the next training will take up of it.
    """

    name: str
    parameterization: Parameterization
    selection: Selection | None
    rank: int
    signed: bool
    coefficient: float
    kind: AdapterKind
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    phases: tuple[Phase, ...]
    rows: PlannedRows

    @property
    def words(self) -> str:
        """`pissa wanda r8 ±2`."""
        return kind_words(self.parameterization, self.selection, self.rank, self.signed, self.coefficient)

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

    @property
    def total_steps(self) -> int:
        """Optimiser updates of all adapters."""
        return sum(self.steps(one.phase_rows(phase), phase) for one in self.adapters for phase in one.phases)

    def loss_kind(self, phase: str) -> str:
        """What kind of loss a phase has, a key of `losses.UNITS`."""
        return loss_kind(phase, self.preference.loss_type)

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
            "signed": adapter.coefficient if adapter.signed else None,
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
            **self.trainer.deciding(),
        }

    def deciding(self) -> dict[str, Any]:
        """What decides the result beside the adapters themselves."""
        values = {key: value for key, value in self.as_json().items() if key not in {"adapters", "notes"}}
        return {**values, "trainer": self.trainer.deciding()}

    def as_json(self) -> dict[str, Any]:
        """The plan with counts instead of rows."""
        own = {"adapters", "preference", "notes", "trainer"}
        shared = {key: value for key, value in vars(self).items() if key not in own}
        preferred = any(phase.name in {"dpo", "orpo"} for adapter in self.adapters for phase in adapter.phases)
        return {
            **shared,
            "trainer": msgspec.structs.asdict(self.trainer),
            "preference": msgspec.to_builtins(self.preference) if preferred else None,
            "adapters": {adapter.name: self._adapter_json(adapter) for adapter in self.adapters},
            "notes": list(self.notes),
        }

    def _adapter_json(self, adapter: AdapterPlan) -> dict[str, Any]:
        values = {key: value for key, value in vars(adapter).items() if key not in {"name", "kind", "phases", "rows"}}
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
    choices: KindChoices | None = None,
    before: Mapping[str, AdapterKind] | None = None,
    prompts: int | None = None,
    weights: sources.Weights | None = None,
    trainer: TrainerSettings | None = None,
) -> TrainingPlan:
    """Resolve the document's training keys for these adapters (None: all), whose default layers are `base_modules`.

    How an adapter is trained follows the `choices`, then how it was trained `before`, then the document. `prompts` is
    the size of the prompt set to calibrate on, None for the adapters' own sections. An adapter that no row reaches is
    left out, with a note. `weights` are those of the source folders, `trainer` the settings instead of those of the
    side file. Raises UsageError for an adapter that is not declared, or that lacks what its kind of training needs, and
    for settings that exclude each other, SideFileError, DlmTuiError for what cannot be trained exactly, and the errors
    of malformed bodies.
    """
    routed = route_sections(document)
    training = document.training
    settings_beside = document_side_file(document).training if trainer is None else trainer
    notes = [*filter(None, [seed_note(training.seed)]), *_unused(document)]
    planned = []
    choices, before = choices or KindChoices(), before or {}
    refuse_undeclared(document, adapters)
    refuse_choices(document, adapters, choices, before)
    for name in adapters or list(routed):
        settings = document.adapter_settings(name)
        notes += _unsupported(name, settings, document_side_file(document).quantize)
        rows = planned_rows(document, routed[name], weights)
        chosen, earlier = choices.of(name), before.get(name, AdapterKind())
        kind = _resolved_kind(name, chosen, earlier, settings)
        _refuse_together(settings_beside, name, kind, training.optimizer)
        phases = _phases(document, settings, rows, kind)
        for phase in phases:
            _refuse_rate(name, phase)
        notes += _unused_warmup(document, name, phases, kind)
        if not phases:
            notes.append(f"{name}: no section reaches this adapter, it is left as it is")
            continue
        refuse_lacking(name, kind, texts=len(rows.train) if prompts is None else prompts, pairs=len(rows.preference))
        notes += _kind_notes(name, kind, chosen, earlier, settings)
        if rows.preference and not kind.signed and not _trains_preferences(document):
            notes.append(f"{name}: {len(rows.preference)} preference rows are not used, preference.enabled is false")
        planned.append(
            AdapterPlan(
                name=name,
                parameterization=kind.parameterization or "lora",
                selection=kind.selection,
                rank=kind.rank or settings.lora_r,
                signed=bool(kind.signed),
                coefficient=kind.coefficient or 1.0,
                kind=kind,
                alpha=settings.lora_alpha,
                dropout=settings.lora_dropout,
                target_modules=_target_modules(settings, base_modules),
                phases=phases,
                rows=rows,
            )
        )
    if prompts is not None and not any(adapter.selection in TEXT_SELECTIONS for adapter in planned):
        raise UsageError(
            f"a prompt set calibrates the selections {' and '.join(TEXT_SELECTIONS)}, and no adapter of this training "
            "has one of them"
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


def _refuse_rate(name: str, phase: Phase) -> None:
    """Raises UsageError for a rate whose steps no float32 weight can take, which the format lets pass."""
    if not phase.learning_rate < _LARGEST_RATE:
        raise UsageError(
            f"learning_rate {phase.learning_rate:g} of adapter {name!r} ({phase.name}) is too large for its weights; "
            "rates that train are between 1e-6 and 1e-2"
        )


def _refuse_together(settings: TrainerSettings, name: str, kind: AdapterKind, optimizer: str) -> None:
    """Raises UsageError for trainer settings that an adapter's kind of training or the optimiser has no place for."""
    if kind.parameterization == "pissa":
        for setting in ("rslora", "loraplus_ratio"):
            if getattr(settings, setting):
                raise UsageError(
                    f"{setting} is about LoRA's two factors, which --parameterization pissa does not train; it is that "
                    f"of adapter {name!r}"
                )
    if kind.signed and settings.activation_checkpointing:
        raise UsageError(
            "activation_checkpointing computes a forward pass again when the coefficient is another by then; it cannot "
            f"be used with --signed, which adapter {name!r} has"
        )
    if settings.loraplus_ratio is not None and optimizer.startswith("galore"):
        raise UsageError(f"loraplus_ratio cannot be used with training.optimizer {optimizer}; use adamw_torch")


def refuse_undeclared(document: Document, adapters: Sequence[str] | None) -> None:
    """Raises UsageError for the first name that the document does not declare."""
    for name in adapters or ():
        refuse_unknown_adapter(name, document.routing_names)


def refuse_lacking(name: str, kind: AdapterKind, *, texts: int, pairs: int) -> None:
    """Raises UsageError naming the adapter whose kind of training needs preference pairs or text that is not there."""
    if kind.signed and not pairs:
        raise UsageError(
            f"adapter {name!r} has no preference pairs: a signed training takes the chosen answers at +C and the "
            "rejected ones at −C; give it preference sections, or train it without (--no-signed)"
        )
    if kind.selection == PAIR_SELECTION and not pairs:
        raise UsageError(
            f"adapter {name!r} has no preference pairs: selection {PAIR_SELECTION} compares chosen and rejected "
            "answers; give it preference sections or another selection"
        )
    if kind.selection in TEXT_SELECTIONS and not texts:
        raise UsageError(
            f"adapter {name!r} has no text to calibrate selection {kind.selection} on; give it sections, a prompt set "
            "(--calibration), or selection s_only"
        )


def refuse_choices(
    document: Document, adapters: Sequence[str] | None, choices: KindChoices, before: Mapping[str, AdapterKind]
) -> None:
    """Raises UsageError for choices that mean nothing, or for an adapter that is not trained now."""
    trained = list(adapters or document.routing_names)
    check_kind(choices.every, "the training")
    for name, kind in choices.by_name.items():
        if name not in trained:
            raise UsageError(f"a kind of training was chosen for {name!r}, which is not trained now")
        check_kind(kind, f"adapter {name!r}")
    for name in trained:
        _resolved_kind(name, choices.of(name), before.get(name, AdapterKind()), document.adapter_settings(name))


def _resolved_kind(name: str, chosen: AdapterKind, before: AdapterKind, settings: AdapterSettings) -> AdapterKind:
    """What was chosen, then what was before, then the document's; a rank that is the document's stays the document's,
    so that the document can change it."""
    parameterization: Parameterization = chosen.parameterization or before.parameterization or "lora"
    if chosen.selection is not None and parameterization != "pissa":
        raise UsageError(
            f"--selection chooses singular directions, which --parameterization pissa trains; adapter {name!r} is LoRA"
        )
    signed = before.signed if chosen.signed is None else chosen.signed
    if chosen.coefficient is not None and not signed:
        raise UsageError(f"--coefficient belongs to --signed, and adapter {name!r} is not trained on signed pairs")
    rank = chosen.rank or before.rank
    return AdapterKind(
        parameterization=parameterization,
        selection=(chosen.selection or before.selection or "s_only") if parameterization == "pissa" else None,
        rank=None if rank == settings.lora_r else rank,
        signed=signed or None,
        coefficient=(chosen.coefficient or before.coefficient or 1.0) if signed else None,
    )


def _kind_notes(
    name: str, kind: AdapterKind, chosen: AdapterKind, before: AdapterKind, settings: AdapterSettings
) -> list[str]:
    """That an adapter's kind comes from an earlier training, and not from the document or from a choice."""
    taken = any(
        getattr(chosen, field) is None and getattr(before, field) is not None
        for field in AdapterKind.__struct_fields__
        if getattr(kind, field) == getattr(before, field)
    )
    if not taken or kind == AdapterKind(parameterization="lora"):
        return []
    rank = kind.rank or settings.lora_r
    words = kind_words(kind.parameterization or "lora", kind.selection, rank, kind.signed, kind.coefficient)
    rest = "" if chosen == AdapterKind() else ", in what was not chosen now"
    return [f"{name}: {words}, as it was trained before{rest}"]


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


def _phases(document: Document, settings: AdapterSettings, rows: PlannedRows, kind: AdapterKind) -> tuple[Phase, ...]:
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
                embed_warmup_steps=training.cpt.embed_warmup_steps
                if pretraining and kind.parameterization == "lora"
                else 0,
            )
        )
    if kind.signed and rows.preference:
        phases.append(
            Phase(
                name="signed",
                learning_rate=settings.learning_rate,
                epochs=training.num_epochs,
                lr_scheduler=training.lr_scheduler,
                warmup_ratio=training.warmup_ratio,
            )
        )
    if not kind.signed and rows.preference and _trains_preferences(document):
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


def _unused_warmup(document: Document, name: str, phases: tuple[Phase, ...], kind: AdapterKind) -> list[str]:
    """Why `cpt.embed_warmup_steps` has no effect on an adapter, [] where it has or is not asked for."""
    if not document.training.cpt.embed_warmup_steps or any(phase.embed_warmup_steps for phase in phases):
        return []
    if kind.parameterization == "pissa":
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


def _unsupported(name: str, settings: AdapterSettings, quantize: str | None) -> list[str]:
    """Raises DlmTuiError for DoRA; a note when QLoRA trains as LoRA, as nobody asked for a quantised base."""
    if settings.adapter == "dora":
        raise DlmTuiError(f"adapter {name!r} asks for DoRA, whose magnitude cannot be mixed exactly; use adapter: lora")
    if settings.adapter == "qlora" and quantize is None:
        return [f"adapter {name!r}: qlora is LoRA on the base as it is opened; --quantize nf4 keeps that in 4 bits"]
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
