"""`training.cpt`: the schedule of continued pretraining, and an embedding pair that learns in the first steps only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dlm_tui.document import TrainerSettings, load
from dlm_tui.errors import Cancelled
from dlm_tui.model import Base, MixedModel, load_peft_adapter
from dlm_tui.progress import Progress
from dlm_tui.store import AdapterKind, KindChoices, Store, current_version
from dlm_tui.store.checkpoints import FOLDER
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.plan import plan_training
from tests.tiny_models import tiny_base

HEAD = """---
dlm_id: 01KTESTTESTTESTTESTTESTTES
dlm_version: 15
base_model: tiny
training:
  num_epochs: 3
  micro_batch_size: 2
  learning_rate: 0.01
  lora_r: 4
{more}---
"""
PROSE = "\n\n".join(f"::prose::\nThe harbour is quiet in winter, and boat {n} lies still." for n in range(7))
QUESTIONS = "\n\n".join(f"::instruction::\n### Q\nWho is {n}?\n### A\nNumber {n}." for n in range(3))
PISSA = KindChoices(every=AdapterKind(parameterization="pissa"))
WARM = "  cpt: {{schedule: {}, embed_warmup_steps: {}}}\n"
PAIR = "base_model.model.model.embed_tokens.lora_embedding_{}"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def written(folder: Path, body: str = PROSE, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "d.dlm"
    path.write_text(HEAD.format(more=more) + body + "\n")
    return path


def train(path: Path, base: Base, stop_at: int | None = None, **more: Any) -> Store:
    store = Store(path.parent / "home", load(path).dlm_id)

    def report(step: Progress) -> None:
        if stop_at is not None and step.stage == "sft" and step.done >= stop_at:
            raise Cancelled("cancelled")

    train_document(TrainRequest(document=load(path), store=store, base=base, **more), report)
    return store


def tensors(store: Store) -> dict[str, torch.Tensor]:
    version = current_version(store, "default")
    assert version is not None
    return load_file(version.path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("schedule", "body", "pretrains"),
    [("auto", PROSE, True), ("auto", QUESTIONS, False), ("dapt", QUESTIONS, True), ("sft", PROSE, False)],
)
def test_the_schedule_decides_rate_and_warm_up(schedule: str, body: str, pretrains: bool, tmp_path: Path) -> None:
    found = plan_training(load(written(tmp_path, body, WARM.format(schedule, 4))))
    (phase,) = found.adapters[0].phases
    assert phase.embed_warmup_steps == (4 if pretrains else 0)
    assert (phase.lr_scheduler, phase.min_lr_ratio) == (("cosine_with_min_lr", 0.1) if pretrains else ("cosine", None))
    assert phase.warmup_ratio == (0.2 if pretrains else 0.1)
    assert any("embed_warmup_steps is not used" in note for note in found.notes) == (not pretrains)
    steered = plan_training(load(written(tmp_path, body, WARM.format(schedule, 4))), choices=PISSA)
    assert steered.adapters[0].phases[0].embed_warmup_steps == 0
    assert any("PiSSA" in note for note in steered.notes)


def test_the_embedding_learns_in_the_first_steps_and_is_then_held(base: Base, tmp_path: Path) -> None:
    path = written(tmp_path, more=WARM.format("dapt", 3))
    before = base.model.get_input_embeddings().weight.clone()  # type: ignore[operator]
    with pytest.raises(Cancelled):
        train(path, base, stop_at=3)
    store = Store(tmp_path / "home", load(path).dlm_id)
    (kept,) = (store.root / FOLDER).rglob("weights.safetensors")
    third = {name.replace(".default", ""): tensor for name, tensor in load_file(kept).items()}
    found = tensors(train(path, base, resume=True))
    for side in "AB":
        assert torch.equal(found[PAIR.format(side)], third[PAIR.format(side)]), "held since the third step"
    assert float(found[PAIR.format("A")].abs().max()) > 0, "A begins as zeros: it has learned"
    assert not torch.equal(found[LAYER], third[LAYER]), "the other layers go on"
    assert torch.equal(base.model.get_input_embeddings().weight, before)  # type: ignore[operator]
    whole = tensors(train(written(tmp_path / "again", more=WARM.format("dapt", 3)), base))
    assert all(torch.equal(whole[name], tensor) for name, tensor in found.items()), "an interruption changes nothing"
    longer = tensors(train(written(tmp_path / "longer", more=WARM.format("dapt", 99)), base))
    assert not torch.equal(longer[PAIR.format("A")], found[PAIR.format("A")])
    none = tensors(train(written(tmp_path / "none"), base))
    assert not any("embed_tokens" in name for name in none) and set(none) < set(whole)


def test_peft_loads_it_and_answers_alike(base: Base, tmp_path: Path) -> None:
    store = train(written(tmp_path, more=WARM.format("dapt", 4)), base)
    version = current_version(store, "default")
    assert version is not None
    ids = torch.tensor([base.encode_raw("The harbour is quiet in winter.")])
    plain = AutoModelForCausalLM.from_pretrained(base.source.path, dtype=torch.float32)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(plain, str(version.path)).eval()(ids).logits[0]
    model = MixedModel(base, {"default": load_peft_adapter(version.path, "default", base)})
    found = model.backbone.logits(model.backbone.forward(ids, None, torch.ones(1, 1)))[0]
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_lora_plus_leaves_the_embedding_its_rate(base: Base, tmp_path: Path) -> None:
    path = written(tmp_path, more=WARM.format("dapt", 4))
    trained = tensors(train(path, base, trainer=TrainerSettings(loraplus_ratio=4.0)))
    assert float(trained[PAIR.format("A")].abs().max()) > 1e-3, "a rate of 1e-6 would leave it near zero"
