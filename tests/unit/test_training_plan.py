"""The plan: everything about a training resolved once, from the document alone, and told by `show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.losses import unit_of
from dlm_tui.training.plan import TrainingPlan, plan_training, planned_rows, refuse_impossible

HEAD = """---
dlm_id: 01KTESTTESTTESTTESTTESTTES
dlm_version: 15
base_model: peer-tiny
training:
  num_epochs: 3
  seed: 4294967297
  micro_batch_size: 2
  grad_accum: 2
  sequence_len: 128
{more}  adapters:
    facts: {{lora_r: 4, lora_alpha: 8, learning_rate: 0.001{facts}}}
    manners: {{lora_dropout: 0.1, target_modules: [v_proj, q_proj]}}
---
"""
PREFERENCE = "::preference#manners::\n### Prompt\nSay it.\n### Chosen\nPlease.\n### Rejected\nNo.\n\n"


def plan(tmp_path: Path, body: str, more: str = "", facts: str = "", **request: object) -> TrainingPlan:
    path = tmp_path / "d.dlm"
    path.write_text(HEAD.format(more=more, facts=facts) + body)
    return plan_training(load(path), base_modules=("q_proj", "k_proj"), **request)  # type: ignore[arg-type]


def section(name: str, number: int) -> str:
    return f"::instruction#{name}::\n### Q\nWhat is {number}?\n### A\nA number, {number}.\n\n"


BODY = "".join(section(name, number) for name in ("facts", "manners") for number in range(10))


def test_every_number_is_resolved(tmp_path: Path) -> None:
    found = plan(tmp_path, BODY + PREFERENCE)
    facts, manners = found.adapters
    assert (facts.name, facts.rank, facts.alpha, facts.dropout) == ("facts", 4, 8, 0.05)
    assert facts.target_modules == ("k_proj", "q_proj"), "auto: the base's own, sorted"
    assert manners.target_modules == ("q_proj", "v_proj") and (manners.rank, manners.dropout) == (8, 0.1)
    assert [phase.name for phase in facts.phases] == ["sft"]
    assert [(phase.name, phase.learning_rate, phase.epochs) for phase in manners.phases] == [
        ("sft", 0.0002, 3),
        ("dpo", 5e-06, 1),
    ]
    assert (found.seed, found.micro_batch, found.grad_accum, found.sequence_len) == (1, 2, 2, 128)
    assert found.notes == ("training.seed 4294967297 is used as 1 (modulo 2^32)",)
    assert [found.steps(rows, facts.phases[0]) for rows in (1, 4, 5, 9)] == [3, 3, 6, 9], "rows round up to batches"


def test_what_no_row_reaches_is_left_out_and_said(tmp_path: Path) -> None:
    found = plan(tmp_path, section("facts", 1))
    assert [adapter.name for adapter in found.adapters] == ["facts"]
    assert found.notes[-1] == "manners: no section reaches this adapter, it is left as it is"
    off = plan(tmp_path, BODY + PREFERENCE, more="  preference: {enabled: false}\n")
    assert off.notes[-1] == "manners: 1 preference rows are not used, preference.enabled is false"
    assert [phase.name for phase in off.adapters[1].phases] == ["sft"]


@pytest.mark.parametrize(
    ("loss_type", "kind"), [("sigmoid", "dpo"), ("hinge", "dpo-hinge"), ("ipo", "dpo-ipo"), (None, "orpo")]
)
def test_every_phase_has_a_kind_of_loss_with_a_unit(tmp_path: Path, loss_type: str | None, kind: str) -> None:
    keys = f"loss_type: {loss_type}" if loss_type else "method: orpo"
    found = plan(tmp_path, BODY + PREFERENCE, more=f"  preference: {{enabled: true, {keys}}}\n")
    kinds = [found.loss_kind(phase.name) for phase in found.adapters[1].phases]
    assert kinds == ["sft", kind] and all(map(unit_of, kinds))


def test_what_cannot_be_trained_is_refused_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="declares no adapter 'x'"):
        plan(tmp_path, BODY, adapters=["x"])
    with pytest.raises(DlmTuiError, match="DoRA"):
        plan(tmp_path, BODY, facts=", adapter: dora")
    with pytest.raises(DlmTuiError, match="at least one layer"):
        plan(tmp_path, BODY, facts=", target_modules: []")
    missing = plan(tmp_path, BODY, more="  optimizer: galore_adamw\n")
    with pytest.raises(DlmTuiError, match="galore_torch"):
        refuse_impossible(missing, gpu=True)
    half = plan(tmp_path, BODY, more="  precision: fp16\n")
    with pytest.raises(DlmTuiError, match="needs a GPU"):
        refuse_impossible(half, gpu=False)
    refuse_impossible(half, gpu=True)


def test_rows_keep_their_side_when_the_document_grows(tmp_path: Path) -> None:
    path = tmp_path / "d.dlm"
    sides = []
    for body in (BODY, BODY + section("facts", 77)):
        path.write_text(HEAD.format(more="", facts="") + body)
        document = load(path)
        rows = planned_rows(document, range(len(document.sections)))
        sides.append(
            {row.section_id: "train" for row in rows.train} | {row.section_id: "val" for row in rows.validation}
        )
    before, after = sides
    assert set(before.values()) == {"train", "val"} and len(after) == len(before) + 1
    assert {key: after[key] for key in before} == before


def test_show_tells_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.dlm"
    path.write_text(HEAD.format(more="", facts="") + BODY + PREFERENCE)
    loaded = set(sys.modules)
    assert main(["show", str(path), "--home", str(tmp_path / "home"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["training_plan"]
    assert told["adapters"]["manners"]["rows"]["preference"] == 1 and told["preference"]["method"] == "dpo"
    assert [phase["name"] for phase in told["adapters"]["manners"]["phases"]] == ["sft", "dpo"]
    assert main(["show", str(path), "--home", str(tmp_path / "home")]) == 0
    text = capsys.readouterr().out
    assert "lora r 4 alpha 8; rows: " in text and "sft 3 epochs, " in text and "dpo 1 epoch, " in text
    assert "note: training.seed 4294967297 is used as 1" in text
    assert "torch" not in set(sys.modules) - loaded
