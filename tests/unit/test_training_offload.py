"""Training on a base of which weights lie on the disk: the same bytes as in memory, one layer fetched at a time."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from dlm_tui.errors import Cancelled, UsageError
from dlm_tui.model import Base, MixedModel, load_peft_adapter
from dlm_tui.progress import Progress
from dlm_tui.store import AdapterKind, KindChoices, Store, current_version
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.memory import activation_bytes, fitting_rows
from dlm_tui.training.phases import Finetuned, Step
from dlm_tui.training.rows import tokenised
from tests.fetched_weights import watched_fetches
from tests.tiny_models import offloaded_base, tiny_base, write_tiny_base
from tests.training_samples import PAIRS, sample

STEERED = KindChoices(every=AdapterKind(parameterization="pissa"))
SIGNED = KindChoices(by_name={"facts": AdapterKind(signed=True)})


def quiet(_: Progress) -> None:
    """Nobody watches."""


def request(folder: Path, base: Base, **more: Any) -> TrainRequest:
    facts = "lora_r: 4, learning_rate: 0.01, lora_dropout: 0.1" + more.pop("targets", "")
    document = sample(folder, sections=4, epochs=2, facts=facts, extra=more.pop("extra", ""))
    return TrainRequest(document=document, store=Store(folder / "home", document.dlm_id), base=base, **more)


def trained(one: TrainRequest, **settings: Any) -> tuple[Finetuned, list[float]]:
    """The first adapter of a request, and the losses of its steps."""
    plan = one.plan()
    plan = replace(plan, trainer=msgspec.structs.replace(plan.trainer, **settings))
    adapter = plan.adapters[0]
    rows = tokenised(adapter.rows, plan.sequence_len, one.base)
    losses: list[float] = []

    def on_step(step: Step) -> None:
        losses.extend(value for value in (step.loss, step.val_loss) if value is not None)

    return train_adapter(one.base, AdapterWork(plan=plan, adapter=adapter, rows=rows), on_step), losses


def away(base: Base) -> set[str]:
    """The names of the weights that lie on the disk; tied ones have two."""
    return {name for name, weight in base.model.named_parameters(remove_duplicate=False) if weight.is_meta}


def left_alone(base: Base, on_disk: set[str]) -> bool:
    """Whether the base is as it was: weights back on the disk, nothing learned, no layer of PEFT's left."""
    return (
        away(base) == on_disk
        and not any(weight.requires_grad or weight.grad is not None for weight in base.model.parameters())
        and not any("lora" in name for name, _ in base.model.named_modules())
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_adapter_is_that_of_the_base_in_memory(
    architecture: str, share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tiny_base(tmp_path / "base", architecture)
    room = int(4 * whole.parameters * share) or 1000
    base = offloaded_base(tmp_path / "base", tmp_path / "disk", room, architecture)
    on_disk = away(base)
    assert on_disk
    targets = ", target_modules: [c_attn, c_fc]" if architecture == "gpt2" else ""
    wanted, losses = trained(request(tmp_path / "a", whole, targets=targets))
    found, same = trained(request(tmp_path / "b", base, targets=targets))
    assert not any("device" in record.getMessage() for record in caplog.records)
    assert same == losses and len(losses) > 2
    assert wanted.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    assert found.config == wanted.config
    assert left_alone(base, on_disk)


def test_what_has_to_be_converted_trains_too(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base")
    narrow = tmp_path / "narrow"
    model: Any = tiny_base(folder).model
    model.half().save_pretrained(narrow)
    tiny_base(folder).tokenizer.save_pretrained(narrow)
    whole, base = tiny_base(narrow), offloaded_base(narrow, tmp_path / "disk")
    assert base.dtype == torch.float32
    wanted, losses = trained(request(tmp_path / "a", whole))
    found, same = trained(request(tmp_path / "b", base))
    assert same == losses
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())


@pytest.mark.parametrize("kind", ["pissa", "preferences"])
def test_other_kinds_of_training(kind: str, tmp_path: Path) -> None:
    whole = tiny_base(tmp_path / "base", tie_word_embeddings=False)
    base = offloaded_base(tmp_path / "base", tmp_path / "disk")
    on_disk = away(base)
    results = []
    for one, name in ((whole, "a"), (base, "b")):
        more: dict[str, Any] = {"choices": STEERED} if kind == "pissa" else {"extra": PAIRS}
        results.append(trained(request(tmp_path / name, one, **more)))
    (wanted, losses), (found, same) = results
    assert same == losses and found.steps == wanted.steps
    assert len(found.steps) == (1 if kind == "pissa" else 2)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    assert left_alone(base, on_disk)


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", tie_word_embeddings=False, num_hidden_layers=8)
    base = offloaded_base(folder, tmp_path / "disk")
    sizes = {name: 4 * weight.numel() for name, weight in base.model.named_parameters()}
    layer = sum(size for name, size in sizes.items() if ".layers.0." in name)
    around = sum(size for name, size in sizes.items() if ".layers." not in name)
    assert sum(sizes.values()) == around + 8 * layer
    with watched_fetches() as fetched:
        trained(request(tmp_path / "a", base))
    assert layer < fetched.peak <= layer + around
    assert not fetched.alive


def test_rows_at_once_are_counted_beside_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = offloaded_base(write_tiny_base(tmp_path / "base"), tmp_path / "disk")
    need = activation_bytes(base.config, 2 * 64, item=4, checkpointing=True)
    monkeypatch.setattr("dlm_tui.training.memory.training_memory", lambda device: need)
    assert fitting_rows(base.model, base.config, 64, 4, checkpointing=False) == 2


def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = tiny_base(tmp_path / "base")
    base = offloaded_base(tmp_path / "base", tmp_path / "disk")
    found = []
    for one, stops in ((whole, []), (base, [1, 3])):
        for turn, stop in enumerate([*stops, None]):

            def report(step: Progress, stop: int | None = stop) -> None:
                if stop is not None and step.stage == "sft" and step.done >= stop:
                    raise Cancelled("cancelled")

            work = request(tmp_path / f"{len(stops)}", one, checkpoint_steps=1, resume=turn > 0)
            with pytest.raises(Cancelled) if stop is not None else contextlib.nullcontext():
                train_document(work, report)
        versions = [current_version(work.store, name) for name in work.document.adapter_names]
        found.append([(kept.path / "adapter_model.safetensors").read_bytes() for kept in versions if kept is not None])
    assert found[0] == found[1] and len(found[0]) == 2
    assert away(base)


def test_signed_pairs_are_refused(tmp_path: Path) -> None:
    base = offloaded_base(write_tiny_base(tmp_path / "base"), tmp_path / "disk")
    with pytest.raises(UsageError, match=r"'facts' is trained with --signed.*--offload none --quantize nf4"):
        trained(request(tmp_path / "a", base, choices=SIGNED, extra=PAIRS))


def test_a_document_is_trained_with_its_gate_and_answers_alike(tmp_path: Path) -> None:
    whole = tiny_base(tmp_path / "base")
    base = offloaded_base(tmp_path / "base", tmp_path / "disk")
    one = request(tmp_path / "a", base)
    outcome = train_document(one, quiet)
    assert outcome.gate is not None and outcome.gate.mode == "trained"
    adapters = {}
    for name in one.document.adapter_names:
        version = current_version(one.store, name)
        assert version is not None
        adapters[name] = load_peft_adapter(version.path, name, whole)
    ids = torch.tensor([[5, 9, 40, 7, 200, 11]])
    mixes = torch.tensor([[0.7, 0.3]])
    plain, slow = MixedModel(whole, adapters, fast=False), MixedModel(base, adapters)
    wanted, found = (model.backbone.logits(model.backbone.forward(ids, None, mixes)) for model in (plain, slow))
    assert torch.equal(found, wanted)
    assert (wanted - plain.backbone.logits(plain.backbone.forward(ids))).abs().max() > 0.01
    effect = outcome.adapters["facts"].effect
    assert effect is not None and effect.kl > 0
