"""QLoRA: the steps are those of a plain loop over PEFT and bitsandbytes, and the quantised base stays as it was."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler, set_seed

from dlm_tui.errors import DlmTuiError
from dlm_tui.model import Base, MixedModel, load_base, load_peft_adapter, resolve_base
from dlm_tui.model.quantised import compute_exactly, quantisation_config
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import AdapterKind, KindChoices, Store, current_version
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.finetune import finetune
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.rows import AdapterRows, collate_sequences, filler_id, tokenised
from tests.tiny_models import write_tiny_base
from tests.training_samples import sample

pytest.importorskip("bitsandbytes")
KINDS = ("nf4", "int8", *(("torchao-int8",) if importlib.util.find_spec("torchao") else ()))  # see test_torchao.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), "llama", hidden_size=64, intermediate_size=96)


def opened(folder: Path, quantize: Any) -> Base:
    source = msgspec.structs.replace(resolve_base("hf:test/llama", folder), quantize=quantize)
    return run_to_end(load_base(source, device="cpu"))


def library_model(folder: Path, kind: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantisation_config(kind), device_map={"": "cpu"}
    )


def request(folder: Path, base: Base, **more: Any) -> TrainRequest:
    document = sample(folder, sections=3, epochs=4, facts="lora_r: 4, learning_rate: 0.01, lora_dropout: 0.0")
    return TrainRequest(document=document, store=Store(folder / "home", document.dlm_id), base=base, **more)


def quiet(_: Progress) -> None:
    """Nobody watches."""


def plain_loop(model: Any, plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows, filler: int) -> list[float]:
    """The losses in nats per token, all rows in one batch, of AdamW over PEFT's LoRA."""
    (phase,) = adapter.phases
    set_seed(plan.seed)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=list(adapter.target_modules),
        task_type="CAUSAL_LM",
    )
    peft: Any = get_peft_model(model, config).train()
    weights = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=phase.learning_rate, weight_decay=0.0)
    warmup = math.ceil(phase.epochs * phase.warmup_ratio)
    schedule = get_scheduler(phase.lr_scheduler, optimizer, warmup, phase.epochs)
    losses = []
    for _ in range(phase.epochs):
        loss = peft(**collate_sequences(rows.train, filler)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_nf4_losses_are_those_of_peft_over_bitsandbytes(folder: Path, tmp_path: Path) -> None:
    base = opened(folder, "nf4")
    plan = request(tmp_path, base).plan()
    adapter = next(item for item in plan.adapters if item.name == "facts")
    rows = tokenised(adapter.rows, plan.sequence_len, base)
    plan = replace(plan, micro_batch=len(rows.train), grad_accum=1)
    losses: list[float] = []
    finetune(base, plan, adapter, rows, lambda step: losses.append(step.loss) if step.loss is not None else None)
    wanted = plain_loop(library_model(folder, "nf4"), plan, adapter, rows, filler_id(base))
    assert wanted[-1] < wanted[0] - 0.01
    assert losses == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_adapter_loads_in_peft_and_the_base_stays(kind: str, folder: Path, tmp_path: Path) -> None:
    base = opened(folder, kind)
    ids = torch.arange(3, 20)[None]
    before = MixedModel(base, {}).backbone.forward(ids)
    asked = request(tmp_path, base)
    outcome = train_document(asked, quiet)
    assert outcome.gate is not None and outcome.gate.mode == "trained", outcome.gate_error
    assert torch.equal(MixedModel(base, {}).backbone.forward(ids), before)

    version = current_version(asked.store, "facts")
    assert version is not None
    backbone = MixedModel(base, {"facts": load_peft_adapter(version.path, "facts", base)}).backbone
    ours = backbone.logits(backbone.forward(ids, None, torch.ones(1, 1)))
    loaded = library_model(folder, kind)
    compute_exactly(loaded)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(loaded, version.path).eval()(ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - backbone.logits(before)).abs().max() > 1e-2


def test_pissa_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    choices = KindChoices(every=AdapterKind(parameterization="pissa"))
    with pytest.raises(DlmTuiError, match=r"quantised as nf4.*--parameterization lora.*--quantize none"):
        train_document(request(tmp_path, opened(folder, "nf4"), choices=choices), quiet)
