"""What trainers offer beside the schema: packing, buckets, checkpointing, NEFTune, rsLoRA, LoRA+, memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from dlm_tui.cli.main import main
from dlm_tui.document import SideFileError, TrainerSettings, load, side_file_path
from dlm_tui.errors import Cancelled, UsageError
from dlm_tui.model.base import Base
from dlm_tui.progress import Progress
from dlm_tui.store import AdapterKind, KindChoices, MetricsReader, Store, current_version
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.memory import activation_bytes, fitting_rows
from dlm_tui.training.packing import collate_cheaper, collate_packed, packs_exactly
from dlm_tui.training.phases import Step, _Watch
from dlm_tui.training.plan import plan_training
from dlm_tui.training.report import TrainOutcome
from dlm_tui.training.rows import collate_sequences, tokenised
from tests.tiny_models import ARCHITECTURES, tiny_base
from tests.training_samples import PAIRS, write_document

ROWS = [[5, 9, 40, 7, 200, 11], [33, 8], [90, 12, 13, 150, 16, 17, 18, 19, 210, 77, 31, 5, 6], [44, 45, 300]]
EVERYTHING: dict[str, Any] = {
    "length_buckets": True,
    "activation_checkpointing": True,
    "neftune_alpha": 5.0,
    "rslora": True,
    "loraplus_ratio": 4.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def request(path: Path, base: Base, **settings: Any) -> TrainRequest:
    document = load(path)
    return TrainRequest(
        document=document,
        store=Store(path.parent / "home", document.dlm_id),
        base=base,
        checkpoint_steps=settings.pop("checkpoint_steps", None),
        resume=settings.pop("resume", False),
        trainer=TrainerSettings(**settings),
    )


def train(path: Path, base: Base, **settings: Any) -> TrainOutcome:
    return train_document(request(path, base, **settings), lambda step: None)


def stored(path: Path, name: str = "facts") -> Path:
    version = current_version(Store(path.parent / "home", load(path).dlm_id), name)
    assert version is not None
    return version.path


def new_document(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    return write_document(folder, **options)


def losses(path: Path, run: int) -> list[float]:
    reader = MetricsReader(Store(path.parent / "home", load(path).dlm_id))
    return [row["loss"] for row in reader.steps(run)]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_packed_rows_give_the_loss_and_the_gradients_of_padded_ones(architecture: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m", architecture)
    model = base.model
    assert packs_exactly(model, base.vocab_size)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][:3]
    for name in names:
        model.get_submodule(name).weight.requires_grad_(True)
    found = []
    for batch in (collate_sequences(ROWS, 2), collate_packed(ROWS)):
        model.zero_grad()
        count = int(batch["labels"][:, 1:].ne(-100).sum())
        loss = model(**batch, num_items_in_batch=torch.tensor(count)).loss
        loss.backward()
        found.append((count, float(loss.detach()), [model.get_submodule(name).weight.grad.clone() for name in names]))
    (count, padded, slow), (packed_count, packed, quick) = found
    assert count == packed_count == sum(len(row) - 1 for row in ROWS)
    assert packed == pytest.approx(padded, abs=1e-5)
    for one, other in zip(slow, quick, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))


def test_the_loss_is_that_of_a_float64_reference_of_each_row_alone(base: Base) -> None:
    double = base.model.double()
    try:
        total = torch.zeros((), dtype=torch.float64)
        for row in ROWS:
            logits = double(input_ids=torch.tensor([row])).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        reference = float(total) / sum(len(row) - 1 for row in ROWS)
    finally:
        base.model.float()
    assert float(base.model(**collate_packed(ROWS)).loss) == pytest.approx(reference, abs=1e-5)


def test_a_base_that_carries_state_across_rows_is_not_packed() -> None:
    class Carrying(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(50, 50))

        def forward(self, input_ids: torch.Tensor, position_ids: Any = None, **_: Any) -> Any:
            return SimpleNamespace(logits=self.weight[input_ids].cumsum(1))

    assert not packs_exactly(Carrying(), 50)


def test_rows_are_packed_only_where_that_is_less_work() -> None:
    assert "attention_mask" not in collate_cheaper([[1] * 20, [1] * 3, [1] * 4], 0, 64)
    assert "attention_mask" in collate_cheaper([[1] * 900, [1] * 900], 0, 64), "nothing is padded, all is compared"
    assert "attention_mask" in collate_cheaper([[1, 2, 3]], 0, 64)


def test_a_packed_training_has_the_losses_of_a_padded_one(base: Base, tmp_path: Path) -> None:
    still = "lora_r: 4, learning_rate: 0.01, lora_dropout: 0.0"
    paths = [new_document(tmp_path / name, facts=still, sections=7) for name in ("packed", "padded")]
    outcomes = [train(path, base, packing=packing) for path, packing in zip(paths, (True, False), strict=True)]
    runs = [outcome.adapters["facts"].run_id for outcome in outcomes]
    packed, padded = (losses(path, run) for path, run in zip(paths, runs, strict=True))
    assert len(packed) == len(padded) > 2
    assert packed == pytest.approx(padded, abs=1e-5)
    judged = [outcome.adapters["facts"].val_loss for outcome in outcomes]
    assert judged[0] == pytest.approx(judged[1], abs=1e-5)


@pytest.mark.parametrize("batches", ["64", "1\n  grad_accum: 64", "4"], ids=["whole", "accumulated", "parts"])
@pytest.mark.parametrize("packing", [True, False])
def test_every_step_counts_the_tokens_that_it_computes(base: Base, tmp_path: Path, batches: str, packing: bool) -> None:
    path = new_document(tmp_path / "d", extra=PAIRS)
    path.write_text(path.read_text().replace("micro_batch_size: 4", f"micro_batch_size: {batches}"))
    plan = plan_training(load(path), base_modules=["q_proj"], adapters=["facts"])
    rows = tokenised(plan.adapters[0].rows, plan.sequence_len, base)
    run = train(path, base, packing=packing).adapters["facts"].run_id
    store = Store(path.parent / "home", load(path).dlm_id)
    (log,) = store.logs_dir.glob(f"train-{run:06d}-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line["tokens"] for line in lines if line["type"] == "step"]
    texts = sum(map(len, rows.train))
    pairs = sum(len(pair.chosen) + len(pair.rejected) for pair in rows.preference)
    if batches == "4":
        half = (len(found) - 1) // 2
        assert half > 1 and [sum(found[:half]), sum(found[half:-1]), found[-1]] == [texts, texts, pairs]
        assert min(found) > 0
    else:
        assert found == [texts, texts, pairs]
    assert all(row["tokens_per_sec"] > 0 for row in MetricsReader(store).steps(run))


def test_the_rate_is_of_the_time_of_the_step_alone() -> None:
    now, told = [0.0], list[Step]()
    watch = _Watch("sft", "sft", told.append, clock=lambda: now[0])
    for number, (before, seconds) in enumerate(((9.0, 2.0), (50.0, 4.0)), 1):
        now[0] += before  # a look, a checkpoint, the validation rows
        state = SimpleNamespace(global_step=number)
        watch.on_step_begin(None, state, None)
        watch.count(30)
        watch.count(10)
        now[0] += seconds
        watch.on_log(None, state, None, {"loss": 1.0})
    assert [(step.tokens, step.tokens_per_second) for step in told] == [(40, 20.0), (40, 10.0)]


def test_activation_checkpointing_changes_no_byte(base: Base, tmp_path: Path) -> None:
    kept, again = new_document(tmp_path / "kept"), new_document(tmp_path / "again")
    train(kept, base)
    train(again, base, activation_checkpointing=True)
    name = "adapter_model.safetensors"
    assert (stored(kept) / name).read_bytes() == (stored(again) / name).read_bytes()
    model: Any = base.model
    assert not model.is_activation_checkpointing
    assert not model.get_input_embeddings()._forward_hooks, "the base is left as it was"


def test_rslora_is_written_where_every_reader_looks(base: Base, tmp_path: Path) -> None:
    from dlm_tui.model.adapters import load_peft_adapter

    plain, scaled = new_document(tmp_path / "plain"), new_document(tmp_path / "scaled")
    train(plain, base)
    train(scaled, base, rslora=True)
    assert json.loads((stored(scaled) / "adapter_config.json").read_text())["use_rslora"] is True
    scales = [
        next(iter(load_peft_adapter(stored(path), "facts", base).modules.values())).scale for path in (plain, scaled)
    ]
    assert scales == pytest.approx([16 / 4, 16 / 2])


def test_loraplus_teaches_b_faster(base: Base, tmp_path: Path) -> None:
    """After one step of Adam every entry has moved by its own rate: B by R times the rate of A."""
    options = {"facts": "lora_r: 4, learning_rate: 0.001, lora_dropout: 0.0", "sections": 2, "epochs": 1}
    moved = []
    for name, ratio in (("even", None), ("plus", 8.0)):
        path = new_document(tmp_path / name, **options)
        path.write_text(path.read_text().replace("  sequence_len", "  warmup_ratio: 0\n  sequence_len"))
        train(path, base, loraplus_ratio=ratio)
        tensors = load_file(stored(path) / "adapter_model.safetensors")
        moved.append(max(float(value.abs().max()) for key, value in tensors.items() if "lora_B" in key))
    assert moved[1] / moved[0] == pytest.approx(8.0, rel=0.05)


def test_neftune_adds_noise_of_the_promised_size(base: Base, tmp_path: Path) -> None:
    still = "lora_r: 4, learning_rate: 0.01, lora_dropout: 0.0"
    quiet, noisy = new_document(tmp_path / "quiet", facts=still), new_document(tmp_path / "noisy", facts=still)
    first = train(quiet, base).adapters["facts"].run_id
    second = train(noisy, base, neftune_alpha=20.0).adapters["facts"].run_id
    assert losses(quiet, first)[0] != pytest.approx(losses(noisy, second)[0], abs=1e-6)
    embeddings: Any = base.model.get_input_embeddings()  # type: ignore[operator]
    assert not embeddings._forward_hooks, "the noise ends with the training"


def test_buckets_pad_less_and_still_see_every_row_once(base: Base) -> None:
    from dlm_tui.training.adapter_trainer import _LengthBuckets

    lengths = [3 + (index * 37) % 61 for index in range(200)]
    sampler = _LengthBuckets(lengths, 8, seed=7)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(200))

    def padded(order: list[int]) -> int:
        return sum(8 * max(lengths[index] for index in order[at : at + 8]) for at in range(0, 200, 8))

    assert padded(orders[0]) < 1.2 * sum(lengths) < 1.6 * sum(lengths) < padded(list(range(200)))


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_a_training_with_everything_on_is_resumed_exactly(kind: Any, base: Base, tmp_path: Path) -> None:
    import dataclasses

    settings = {k: v for k, v in EVERYTHING.items() if kind == "lora" or k not in {"rslora", "loraplus_ratio"}}
    whole, broken = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("whole", "broken"))

    def run(path: Path, stop: int | None = None, resume: bool = False) -> None:
        def report(step: Progress) -> None:
            if stop is not None and step.stage == "sft" and step.done >= stop:
                raise Cancelled("cancelled")

        wanted = request(path, base, resume=resume, **settings)
        train_document(
            dataclasses.replace(wanted, choices=KindChoices(every=AdapterKind(parameterization=kind))), report
        )

    run(whole)
    for turn, stop in enumerate((2, 3, 7, 8)):
        with pytest.raises(Cancelled):
            run(broken, stop, resume=turn > 0)
    run(broken, resume=True)
    for name in ("facts", "manners"):
        files = [stored(path, name) / "adapter_model.safetensors" for path in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_flags_come_before_the_side_file_which_show_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Base
) -> None:
    path = new_document(tmp_path / "d")
    side_file_path(path).write_text("[training]\nrslora = true\nneftune_alpha = 3\n")
    assert plan_training(load(path)).trainer == TrainerSettings(rslora=True, neftune_alpha=3.0)
    assert main(["show", str(path), "--home", str(tmp_path / "home")]) == 0
    assert "neftune_alpha 3.0, rslora true" in capsys.readouterr().out
    folder = str(base.source.path)
    command = ["train", str(path), "--home", str(path.parent / "home"), "--base", folder, "--no-rslora"]
    assert main([*command, "--loraplus-ratio", "2"]) == 0
    config = json.loads((stored(path) / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    extras = MetricsReader(Store(path.parent / "home", load(path).dlm_id)).run_extras(1)
    told = extras["settings"]
    assert (told["neftune_alpha"], told["rslora"], told["loraplus_ratio"]) == (3.0, False, 2.0)
    assert main([*command, "--loraplus-ratio", "0.5"]) == 2
    assert "--loraplus-ratio" in capsys.readouterr().err


def test_what_cannot_be_together_is_refused(tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    with pytest.raises(UsageError, match="pissa"):
        plan_training(
            load(path),
            choices=KindChoices(by_name={load(path).adapter_names[-1]: AdapterKind(parameterization="pissa")}),
            trainer=TrainerSettings(rslora=True),
        )
    path.write_text(path.read_text().replace("  sequence_len", "  optimizer: galore_adamw\n  sequence_len"))
    with pytest.raises(UsageError, match="galore"):
        plan_training(load(path), trainer=TrainerSettings(loraplus_ratio=2.0))
    side_file_path(path).write_text("[training]\nneftune_alpha = -1\n")
    with pytest.raises(SideFileError, match=r"training\.neftune_alpha"):
        plan_training(load(path))


def test_auto_takes_as_many_rows_as_memory_has_room_for(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    need = activation_bytes(base.config, 2 * 64, item=4, checkpointing=False)
    monkeypatch.setattr("dlm_tui.training.memory.training_memory", lambda device: weights + need)
    assert fitting_rows(base.model, base.config, 64, 4, checkpointing=False) == 2
    assert fitting_rows(base.model, base.config, 640, 4, checkpointing=False) == 1
    with_less = activation_bytes(base.config, 2 * 64, item=4, checkpointing=True)
    assert with_less < 0.8 * need
    path = new_document(tmp_path / "d")
    assert plan_training(load(path)).within(1).micro_batch == 4, "what the document says stays"
    path.write_text(path.read_text().replace("micro_batch_size: 4", "micro_batch_size: auto"))
    shrunk = plan_training(load(path)).within(2)
    assert (shrunk.micro_batch, shrunk.grad_accum) == (2, 2)
    monkeypatch.setattr("dlm_tui.training.memory.training_memory", lambda device: weights)
    outcome = train(path, base)
    assert any("1 rows at once, 4 times a step" in text for text in outcome.notes)


def test_the_estimate_covers_what_autograd_keeps(tmp_path: Path) -> None:
    """Against the bytes that autograd really saves for the backward pass of a LoRA model."""
    base = tiny_base(tmp_path / "m", "llama", hidden_size=64, intermediate_size=160, num_hidden_layers=6)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model: Any = get_peft_model(base.model, LoraConfig(r=8, lora_dropout=0.05, target_modules=modules))
    model.train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**collate_sequences([[7] * 96] * 4, 0)).loss.backward()
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    estimate = activation_bytes(base.config, 4 * 96, item=4, checkpointing=False)
    assert 0.8 * measured <= estimate <= 2.0 * measured
