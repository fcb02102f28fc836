"""One adapter in singular-value space: the same phases, trained on the deltas of chosen singular values."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import set_seed

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import temporary_folder
from dlm_tui.model.modulated.calibration import build_pissa, collect_calibration
from dlm_tui.model.modulated.convert import save_peft
from dlm_tui.small_files import read_file
from dlm_tui.store.adapter_kind import PAIR_SELECTION
from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.early_answers import EarlyPrompt
from dlm_tui.training.finetune import finite_tensors, leave_as_it_was
from dlm_tui.training.phases import Finetuned, OnStep, run_phases
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.rows import AdapterRows, filler_id, pad

if TYPE_CHECKING:
    from dlm_tui.model import Base

_CALIBRATION_BATCH = 8


class _Steered(nn.Module):
    """The frozen base as a module whose only trainable parameters are the deltas that hooks add to it."""

    def __init__(self, model: Any, parameters: Sequence[nn.Parameter]):
        super().__init__()
        self.model = model
        self.config = model.config
        if hasattr(model, "hf_device_map"):  # the Trainer moves what has none
            self.hf_device_map = model.hf_device_map
        self.deltas = nn.ParameterList(parameters)

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        self.model.activation_checkpointing_enable(**settings)

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()


def finetune_pissa(
    base: Base,
    plan: TrainingPlan,
    adapter: AdapterPlan,
    rows: AdapterRows,
    on_step: OnStep,
    checkpoints: AdapterCheckpoints | None = None,
    prompts: Sequence[list[int]] | None = None,
    *,
    asked: Sequence[EarlyPrompt] | None = None,
) -> Finetuned:
    """Train Δs of the `rank` singular directions chosen by the plan's selection; the result is an ordinary LoRA.

    A selection that looks at text looks at `prompts`, token ids, or at the adapter's own rows; `asked` are those
    of the looks on the way. Raises Diverged,
    DlmTuiError for a quantised base, and whatever `on_step` raises.
    """
    if base.quantisation is not None:
        raise DlmTuiError(
            f"PiSSA needs singular values, which weights quantised as {base.quantisation} do not have: train"
            f" {adapter.name} with --parameterization lora, or take the base as it is with --quantize none"
        )
    set_seed(plan.seed)
    targets, selection = list(adapter.target_modules), adapter.selection or "s_only"
    texts = rows.train if prompts is None else prompts
    pissa = build_pissa(
        base.model,
        targets,
        adapter.rank,
        selection,
        _calibration(base, texts, rows, targets, selection),
        seed=plan.seed,
    )
    model = _Steered(base.model, list(pissa.parameters()))

    @contextlib.contextmanager
    def turned(c: float) -> Iterator[None]:
        coefficient = pissa.c
        pissa.set_coeff(c)
        try:
            yield
        finally:
            pissa.set_coeff(coefficient)

    try:
        with pissa(base.model, c=1.0):
            result = run_phases(
                model,
                base,
                plan,
                adapter,
                rows,
                on_step,
                adapter_off=lambda: turned(0.0),
                turned=turned,
                checkpoints=checkpoints,
                asked=asked,
            )
    finally:
        leave_as_it_was(base)
    with temporary_folder("pissa") as folder:
        save_peft(pissa, folder, base.identity.id, extra={"dlm_parameterization": "pissa"})
        result.tensors = finite_tensors(load_file(folder / "adapter_model.safetensors"))
        result.config = json.loads(read_file(folder / "adapter_config.json"))
    result.tail_depth = pissa.tail_depth
    return result


def _calibration(base: Base, texts: Sequence[list[int]], rows: AdapterRows, targets: list[str], selection: str) -> Any:
    """Layer inputs on text or on preference pairs, when the score looks at them."""
    if selection == "s_only":
        return None
    filler = filler_id(base)
    if selection == PAIR_SELECTION:
        sides = {
            "cho": _batches([pair.chosen for pair in rows.preference], filler),
            "rej": _batches([pair.rejected for pair in rows.preference], filler),
        }
        return collect_calibration(base.model, sides, targets)
    return collect_calibration(base.model, _batches(texts, filler), targets)


def _batches(sequences: Sequence[list[int]], filler: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    for start in range(0, len(sequences), _CALIBRATION_BATCH):
        ids, mask = pad(sequences[start : start + _CALIBRATION_BATCH], filler)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches
