"""Looks at an adapter in training: true figures, the model's own answers, and no trace in what is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import TrainerSettings, load, side_file_path
from dlm_tui.errors import Cancelled
from dlm_tui.model import MixedModel, Sampling, generate, load_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.progress import EarlyLook, Progress, run_to_end
from dlm_tui.progress_words import look_lines
from dlm_tui.store import AdapterKind, KindChoices, MetricsReader, Store, current_version
from dlm_tui.training import TrainRequest, plan_training, train_document
from dlm_tui.training.early_answers import ANSWER_TOKENS, LookPlan, early_prompts, plan_looks
from dlm_tui.training.report import TrainOutcome
from dlm_tui.training.rows import tokenised
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

KINDS = {
    "lora": AdapterKind(),
    "pissa": AdapterKind(parameterization="pissa"),
    "signed": AdapterKind(signed=True, coefficient=2.0),
}
PAIRS = "".join(
    f"\n::preference#facts::\n### Prompt\nIs boat {number} here?\n### Chosen\nIt is, at pier {number}.\n"
    "### Rejected\nNever, never.\n"
    for number in range(4)
)
HOLDS_OUT_THREE = 141
"""A seed by which either adapter has three held-out rows: not a whole number of batches."""
Looks = list[tuple[str, EarlyLook]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def new_document(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    path = write_document(folder, extra=PAIRS, **{"sections": 12, "epochs": 3, **options})
    text = path.read_text().replace("  gate:", "  preference: {enabled: true}\n  gate:")
    text = text.replace("training:\n", f"training:\n  seed: {HOLDS_OUT_THREE}\n", 1)
    path.write_text(text.replace("micro_batch_size: 4", "micro_batch_size: 2"))
    return path


def store_of(path: Path) -> Store:
    return Store(path.parent / "home", load(path).dlm_id)


def train(
    path: Path, base: Base, looks: Looks | None = None, *, early: bool = True, stop_at: int | None = None, **more: Any
) -> TrainOutcome:
    """Train; `looks` takes what was seen, `stop_at` is the step at which a person cancels."""

    def report(step: Progress) -> None:
        if looks is not None and step.look is not None:
            looks.append((step.scope or "", step.look))
        if stop_at is not None and step.loss is not None and step.done >= stop_at:
            raise Cancelled("cancelled")

    settings = TrainerSettings(early_answers=early)
    request = TrainRequest(document=load(path), store=store_of(path), base=base, trainer=settings, **more)
    return train_document(request, report)


def files(path: Path) -> dict[str, bytes]:
    found = {}
    for name in ("facts", "manners"):
        version = current_version(store_of(path), name)
        assert version is not None
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            found[f"{name}/{file}"] = (version.path / file).read_bytes()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_leaves_no_trace_in_the_adapters_also_behind_a_checkpoint(kind: str, base: Base, tmp_path: Path) -> None:
    choices = KindChoices(by_name={"facts": KINDS[kind]})
    plain, watched, broken = (new_document(tmp_path / name) for name in ("plain", "watched", "broken"))
    assert not any(item.early_answers for item in train(plain, base, early=False, choices=choices).adapters.values())
    looks: Looks = []
    outcome = train(watched, base, looks, choices=choices)
    assert files(watched) == files(plain)
    assert outcome.adapters["facts"].early_answers == [look for name, look in looks if name == "facts"]
    with pytest.raises(Cancelled):
        train(broken, base, stop_at=5, choices=choices)
    again: Looks = []
    train(broken, base, again, resume=True, choices=choices)
    assert files(broken) == files(plain)
    assert again == looks, "what was seen before the interruption is the untrained adapter, which is seen again"


def test_no_look_is_another_training(base: Base, tmp_path: Path) -> None:
    path, other = new_document(tmp_path / "a"), new_document(tmp_path / "b")
    train(other, base)
    with pytest.raises(Cancelled):
        train(path, base, stop_at=4)
    outcome = train(path, base, early=False, resume=True)
    assert any("goes on behind step" in text for text in outcome.notes), "turned off, it is the same training still"
    assert files(path) == files(other)


def test_the_losses_are_those_of_a_float64_reference_and_of_the_epochs(base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    looks: Looks = []
    outcome = train(path, base, looks)
    facts = [look for name, look in looks if name == "facts"]
    assert looks[-1][0] == "manners" and looks[-1][1].held_out == pytest.approx(outcome.adapters["manners"].val_loss)
    assert facts[-1].held_out == pytest.approx(outcome.adapters["facts"].val_loss), "of the weights that are in force"
    document = load(path)
    plan = plan_training(document, base_modules=base.source.target_modules)
    planned = next(adapter for adapter in plan.adapters if adapter.name == "facts")
    rows = tokenised(planned.rows, plan.sequence_len, base).validation
    assert facts[0].rows == len(rows) == 3
    version = current_version(store_of(path), "facts")
    assert version is not None
    adapter = load_peft_adapter(version.path, "facts")
    for look, names in ((facts[0], ()), (facts[-1], ("facts",))):
        assert look.held_out == pytest.approx(_reference(base, adapter, names, rows, plan.micro_batch), abs=2e-5)
        assert look.held_out_before == facts[0].held_out
    reader = MetricsReader(store_of(path))
    curve = {row["step"]: row["val_loss"] for row in reader.evals(1)}
    assert curve[0] == facts[0].held_out
    sft = plan.steps(len(planned.rows.train), planned.phases[0])
    assert {0, sft} < set(curve), "the epochs' own figures and those of the looks are one curve"
    per_epoch = sft // planned.phases[0].epochs
    assert {per_epoch, 2 * per_epoch} <= set(curve)
    (log,) = store_of(path).logs_dir.glob("train-000001-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["held_out"] for line in lines if line["type"] == "look"] == [look.held_out for look in facts]


def _reference(base: Base, adapter: Any, names: tuple[str, ...], rows: list[list[int]], size: int) -> float:
    """In float64 and row by row: the mean over batches of the mean loss of a batch's tokens, weighted by rows."""
    modules = adapter.modules if names else {}
    deltas = {name: pair.scale * pair.lora_B.double() @ pair.lora_A.double() for name, pair in modules.items()}
    double = base.model.double()
    try:
        for name, delta in deltas.items():
            double.get_submodule(name).weight.add_(delta)
        total = 0.0
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            nll = sum(
                float(
                    torch.nn.functional.cross_entropy(
                        double(input_ids=torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
                    )
                )
                for row in batch
            )
            total += nll / sum(len(row) - 1 for row in batch) * len(batch)
        for name, delta in deltas.items():
            double.get_submodule(name).weight.sub_(delta)
    finally:
        base.model.float()
    return total / len(rows)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_the_answers_are_the_greedy_ones_of_base_and_adapter(kind: str, base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d", facts="lora_r: 8, learning_rate: 0.05", epochs=6)
    looks: Looks = []
    train(path, base, looks, choices=KindChoices(by_name={"facts": KINDS[kind]}))
    last = [look for name, look in looks if name == "facts"][-1]
    assert last.step == last.total and len(last.answers) == 3
    version = current_version(store_of(path), "facts")
    assert version is not None
    model = MixedModel(base, {"facts": load_peft_adapter(version.path, "facts")}, fast=False)
    most = looks_of(path, base).tokens
    assert 8 <= most <= ANSWER_TOKENS
    for answer in last.answers:
        told = run_to_end(
            generate(
                model,
                base.chat(answer.prompt),
                [{}, {"facts": 1.0}],
                Sampling(max_tokens=most, temperature=0.0),
            )
        )
        assert [one.text.strip() for one in told] == [answer.before, answer.now]
    assert any(answer.before != answer.now for answer in last.answers)


def test_the_trainings_of_one_adapter_are_counted_together(base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    looks: Looks = []
    train(path, base, looks)
    steps = [look.step for name, look in looks if name == "facts"]
    assert steps[0] == 0 and steps == sorted(set(steps)) and steps[-1] == looks[0][1].total


def test_looks_are_as_many_as_a_twentieth_of_the_training_pays_for(base: Base, tmp_path: Path) -> None:
    for epochs, fewest, most, tokens in ((1, 1, 1, 8), (30, 1, 3, 24), (100, 4, 19, 24), (5000, 20, 20, 24)):
        path = new_document(tmp_path / str(epochs), epochs=epochs)
        plan = plan_training(load(path), base_modules=base.source.target_modules)
        adapter = plan.adapters[0]
        rows = tokenised(adapter.rows, plan.sequence_len, base)
        looks = looks_of(path, base)
        assert fewest <= len(looks.steps) <= most and looks.tokens == tokens, (epochs, looks)
        assert max(looks.steps) == sum(plan.steps(rows.of(phase), phase) for phase in adapter.phases)


def looks_of(path: Path, base: Base) -> LookPlan:
    """What is planned for the first adapter."""
    plan = plan_training(load(path), base_modules=base.source.target_modules)
    adapter = plan.adapters[0]
    rows = tokenised(adapter.rows, plan.sequence_len, base)
    return plan_looks(plan, adapter, rows, early_prompts(adapter.rows, rows, base))


def test_prompts_are_the_adapters_own_questions_and_texts_only_where_there_are_none(base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    plan = plan_training(load(path), base_modules=base.source.target_modules)
    facts, manners = plan.adapters
    for adapter, word in ((facts, "boat"), (manners, "Greet")):
        rows = tokenised(adapter.rows, plan.sequence_len, base)
        prompts = early_prompts(adapter.rows, rows, base)
        assert len(prompts) == 3 and all(word in prompt.text for prompt in prompts)
        asked = [base.chat(prompt.text) for prompt in prompts]
        assert [prompt.ids for prompt in prompts] == asked
    held_out = [row.messages[0][1] for row in facts.rows.validation if row.kind == "messages"]
    rows = tokenised(facts.rows, plan.sequence_len, base)
    assert not held_out or early_prompts(facts.rows, rows, base)[0].text == held_out[0]
    text = path.read_text()
    path.write_text(text[: text.index("::instruction")])
    (prose,) = early_prompts(
        (adapter := plan_training(load(path), base_modules=base.source.target_modules).adapters[0]).rows,
        tokenised(adapter.rows, 64, base),
        base,
    )
    assert "The harbour is quiet in winter.".startswith(prose.text) and prose.text


def test_the_flag_and_the_side_file_turn_it_off_and_show_says_so(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new_document(tmp_path / "d")
    command = ["train", str(path), "--home", str(path.parent / "home"), "--base", str(base.source.path), "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)["adapters"]["facts"]
    assert report["early_answers"][0]["step"] == 0
    last = report["early_answers"][-1]
    said = f"facts · step {last['step']} of {last['total']} · held-out loss {last['held_out_before']:.3f} before"
    assert said in err and f"  {last['answers'][0]['prompt']} · before: " in err
    assert main([*command, "--no-early-answers"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["adapters"]["facts"]["early_answers"] == [] and "held-out loss" not in err
    side_file_path(path).write_text("[training]\nearly_answers = false\n")
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["adapters"]["facts"]["early_answers"] == []
    assert main(["show", str(path), "--home", str(path.parent / "home")]) == 0
    assert "early_answers false" in capsys.readouterr().out


def test_what_a_look_says() -> None:
    look = EarlyLook(step=4, total=8, rows=0, held_out_before=None, held_out=None, answers=[])
    assert look_lines("tone", look) == ["tone · step 4 of 8 · no held-out loss, none of its rows is held out"]
    first = EarlyLook(step=0, total=8, rows=0, held_out_before=None, held_out=None, answers=[])
    assert "add sections, or change training.seed" in look_lines("tone", first)[0]
    lost = EarlyLook(step=8, total=8, rows=1, held_out_before=2.5, held_out=None, answers=[])
    assert look_lines("tone", lost) == ["tone · step 8 of 8 · held-out loss 2.500 before, not finite now (1 row)"]
