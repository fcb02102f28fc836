"""The frontmatter schema, version 15 (formats.md section 4). Only loaded by a parse: pydantic takes long."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from dlm_tui.document.errors import SchemaValidationError, printable, shortened
from dlm_tui.document.names import ADAPTER_NAME, ADAPTER_NAME_RULE, DLM_ID, fresh_dlm_id
from dlm_tui.document.yaml_profile import key_as_written
from dlm_tui.meant import meant

_SHOWN_PROBLEMS = 40
_UNION_FIELDS = frozenset({"target_modules", "micro_batch_size", "grad_accum"})

AdapterKind = Literal["lora", "qlora", "dora"]
Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, le=0.5)]
LearningRate = Annotated[float, Field(gt=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
AutoCount = Literal["auto"] | Positive
TargetModules = Literal["auto"] | list[str]


class Block(BaseModel):
    """Unknown keys are errors at every level; a read document never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class AdapterSettings(Block):
    """How one adapter is trained. `target_modules` is carried but never used: the base decides."""

    adapter: AdapterKind = "lora"
    lora_r: Rank = 8
    lora_alpha: Alpha = 16
    lora_dropout: Dropout = 0.05
    target_modules: TargetModules = "auto"
    learning_rate: LearningRate = 2e-4


class PreferenceHyperparams(Block):
    """Numbers of the preference phase."""

    beta: Fraction = 0.1
    alpha: Fraction = 0.1
    learning_rate: LearningRate = 5e-6
    num_epochs: Positive = 1


class Preference(Block):
    """The preference phase."""

    enabled: bool = False
    method: Literal["dpo", "orpo"] = "dpo"
    hyperparams: PreferenceHyperparams = PreferenceHyperparams()
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    reference: Literal["pre_adapter", "base"] = "pre_adapter"


class Cpt(Block):
    """Continued pre-training on prose."""

    schedule: Literal["auto", "dapt", "sft"] = "auto"
    embed_warmup_steps: Annotated[int, Field(ge=0)] = 0


class GateSettings(Block):
    """The gate: a small network that weighs the named adapters per prompt."""

    enabled: bool = False
    hidden_proj_dim: Annotated[int, Field(ge=8, le=2048)] = 64
    steps: Annotated[int, Field(ge=1, le=10000)] = 200
    lr: Annotated[float, Field(gt=0, le=1)] = 3e-4
    cold_start_floor: Annotated[int, Field(ge=1, le=1024)] = 4
    entropy_lambda: Fraction = 0.01


class Cache(Block):
    """The other tool's tokenization cache."""

    enabled: bool = True
    max_bytes: Positive = 10737418240
    prune_older_than_days: Positive = 90


class Audio(Block):
    """Settings for audio sections."""

    auto_resample: bool = False


class Source(Block):
    """A folder that the other tool ingests."""

    path: str = Field(min_length=1)
    include: list[str] = ["**/*"]
    exclude: list[str] = []
    max_bytes_per_file: Positive | None = None
    max_files: Positive | None = None


class Training(Block):
    """Everything about training; flat adapter settings and named adapters exclude each other."""

    adapter: AdapterKind = "lora"
    lora_r: Rank = 8
    lora_alpha: Alpha = 16
    lora_dropout: Dropout = 0.05
    target_modules: TargetModules = "auto"
    sequence_len: Annotated[int, Field(ge=64, le=32768)] = 2048
    micro_batch_size: AutoCount = "auto"
    grad_accum: AutoCount = "auto"
    learning_rate: LearningRate = 2e-4
    num_epochs: Positive = 3
    optimizer: Literal["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "galore_adamw", "galore_adamw_8bit"] = (
        "adamw_torch"
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Dropout = 0.1
    precision: Literal["bf16", "fp16", "fp32"] | None = None
    seed: int = 42
    preference: Preference = Preference()
    cpt: Cpt = Cpt()
    gate: GateSettings = GateSettings()
    cache: Cache = Cache()
    audio: Audio = Audio()
    adapters: dict[str, AdapterSettings] | None = None
    sources: list[Source] | None = None
    sources_policy: Literal["permissive", "strict"] = "permissive"

    @field_validator("adapters")
    @classmethod
    def _check_names(cls, value: dict[str, AdapterSettings] | None) -> dict[str, AdapterSettings] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("must name at least one adapter")
        bad = [name for name in value if not re.fullmatch(ADAPTER_NAME, name)]
        if bad:
            shown = ", ".join(repr(name[:64]) for name in bad[:8])
            raise ValueError(f"bad adapter name {shown}; one is {ADAPTER_NAME_RULE}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Training:
        if self.gate.enabled and len(self.adapters or {}) < 2:
            raise ValueError("gate.enabled needs at least two named adapters")
        if self.adapters is not None:
            flat = [
                name for name, field in AdapterSettings.model_fields.items() if getattr(self, name) != field.default
            ]
            if flat:
                raise ValueError(f"{', '.join(flat)} cannot be set beside named adapters")
        return self


class Export(Block):
    """Defaults of the export command."""

    default_quant: Literal["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"] = "Q4_K_M"
    default_temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    default_top_p: Annotated[float, Field(gt=0, le=1)] | None = None


class Frontmatter(Block):
    """The head of a document, migrated to the newest schema version, all defaults filled in."""

    dlm_id: str = Field(pattern=f"^{DLM_ID}$")
    dlm_version: int = 15
    base_model: str = Field(min_length=1)
    training: Training = Training()
    export: Export = Export()
    system_prompt: str | None = None


def validate(mapping: dict[Any, Any], path: Path | None = None, text: str = "") -> Frontmatter:
    """The typed frontmatter of a migrated mapping; `text` is the YAML that it was read from, for what is said of it.

    Raises SchemaValidationError that lists every problem of the document at once.
    """
    try:
        return Frontmatter.model_validate(mapping)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    fields = [_field_path(problem["loc"]) for problem in problems]
    said = "; ".join(_sentence(problem, text) for problem in problems[:_SHOWN_PROBLEMS])
    if len(problems) > _SHOWN_PROBLEMS:
        said += f"; and {len(problems) - _SHOWN_PROBLEMS} more"
    if "dlm_id" in fields:
        said += f"; one that is free: dlm_id: {fresh_dlm_id()}"
    raise SchemaValidationError(said, fields=tuple(dict.fromkeys(fields)), path=path)


def _sentence(problem: ErrorDetails, text: str) -> str:
    field, reason = _unquoted(text, problem["type"], problem["loc"], problem["input"]) or (
        _field_path(problem["loc"]),
        _reason(problem["type"], problem["loc"], problem["msg"]),
    )
    return f"{shortened(field, 200)}: {reason}"


def _unquoted(text: str, kind: str, location: tuple[int | str, ...], key: Any) -> tuple[str, str] | None:
    """The path and the reason for a key that YAML reads as something else than text; None for any other problem."""
    if kind == "string_type" and location[-1] == "[key]":
        above = location[:-2]
    elif kind == "invalid_key":
        above = location[:-1]
    else:
        return None
    written = key_as_written(text, above, key)
    if written is None:
        return None
    read = str(key).lower() if isinstance(key, bool) else "a number" if isinstance(key, int | float) else "no text"
    return _field_path((*above, written)), f'YAML reads this key as {read}; write it in quotes: "{written}"'


def _reason(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """What pydantic says, but of a key that does not exist with the nearest that does."""
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    *above, key = location
    blocks: list[type[BaseModel]] = [Frontmatter]
    for part in above:  # the name of an adapter is no field, and leads no further down
        fields = [block.model_fields[str(part)] for block in blocks if part in block.model_fields]
        blocks = [block for field in fields for block in _blocks_in(field.annotation)] or blocks
    return f"there is no such key{meant(str(key), [name for block in blocks for name in block.model_fields])}"


def _blocks_in(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that a field may hold, whatever they are wrapped in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks_in(part)]


def _field_path(location: tuple[int | str, ...]) -> str:
    """Dotted path without the label that pydantic adds behind a field that may have several types."""
    # Those fields stand directly in `training` or in `training.adapters.NAME`.
    at = 3 if location[:2] == ("training", "adapters") else 1
    if location[:1] == ("training",) and _UNION_FIELDS.intersection(location[at : at + 1]):
        location = location[: at + 1] + location[at + 2 :]
    return ".".join(printable(str(part)) for part in location)
