"""One adapter by LoRA: transformers' Trainer over PEFT, from the base and the seed alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from transformers import set_seed

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.offloaded import as_if_in_memory
from dlm_tui.system_errors import first_line
from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.early_answers import EarlyPrompt
from dlm_tui.training.embeddings import embedding_name
from dlm_tui.training.phases import LOWER, Diverged, Finetuned, OnStep, run_phases
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.rows import AdapterRows

if TYPE_CHECKING:
    from dlm_tui.model import Base


def finetune(
    base: Base,
    plan: TrainingPlan,
    adapter: AdapterPlan,
    rows: AdapterRows,
    on_step: OnStep,
    checkpoints: AdapterCheckpoints | None = None,
    *,
    asked: Sequence[EarlyPrompt] | None = None,
) -> Finetuned:
    """Train a LoRA adapter on `rows`, from the start or from a checkpoint; the base is left as it was.

    The result depends only on the base, the rows and the plan; `asked` are the prompts of the looks on the way. Raises
    Diverged, DlmTuiError, and whatever `on_step` raises.
    """
    set_seed(plan.seed)
    layers = list(adapter.target_modules)
    if any(phase.embed_warmup_steps for phase in adapter.phases):
        layers.append(embedding_name(base))
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=layers,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=plan.trainer.rslora,
        base_model_name_or_path=base.identity.id,
        revision=base.identity.revision,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks that a base loaded from a folder has another name
            with as_if_in_memory(base.model):
                model = get_peft_model(base.model, config)
    except ValueError as error:
        raise DlmTuiError(f"the base cannot take this adapter: {first_line(error)}") from error
    try:
        result = run_phases(
            model,
            base,
            plan,
            adapter,
            rows,
            on_step,
            adapter_off=model.disable_adapter,
            turned=lambda c: rescale_adapter_scale(model, c),
            checkpoints=checkpoints,
            asked=asked,
        )
        # the base's own embedding is not changed, so it is not stored either
        result.tensors = finite_tensors(get_peft_model_state_dict(model, save_embedding_layers=False))
        result.config = {**saved_config(config), "base_model_name_or_path": base.identity.id}
    finally:
        with as_if_in_memory(base.model):
            model.unload()
        leave_as_it_was(base)
    return result


def leave_as_it_was(base: Base) -> None:
    """Frozen, in eval mode, keeping its activations: what a training switches is switched back."""
    model: Any = base.model
    model.eval().requires_grad_(False)
    if model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()


def finite_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous float32 copies on the CPU, in name order. Raises Diverged for a non-finite weight."""
    kept = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous().clone()
        if not torch.isfinite(tensor).all():
            raise Diverged(f"the trained weight {name} holds a value that is not finite; {LOWER}")
        kept[name] = tensor
    return kept


def saved_config(config: LoraConfig) -> dict[str, Any]:
    """The PEFT config as it is stored: sets sorted, so that equal runs give equal bytes."""
    values = dict(config.to_dict())
    values["inference_mode"] = True
    for key, value in values.items():
        if isinstance(value, set):
            values[key] = sorted(value)
    return {key: getattr(value, "value", value) for key, value in values.items()}
