"""How each adapter is trained: chosen, remembered, refused where something is missing, and told by every command."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.cli.demo import place_demo
from dlm_tui.cli.main import main
from dlm_tui.cli.train import add_arguments, kind_choices
from dlm_tui.document import TrainerSettings, load
from dlm_tui.errors import UsageError
from dlm_tui.model import MixedModel, PiSSAHistoryBake, Sampling, load_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.modulated.convert import pissa_from_adapter
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.scoring import sweep
from dlm_tui.store import (
    AdapterKind,
    KindChoices,
    MetricsReader,
    Store,
    current_version,
    read_manifest,
    read_training_record,
)
from dlm_tui.store.adapter_history import find_version
from dlm_tui.store.adapter_kind import FILE, tail_lines, tail_words
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.plan import TrainingPlan, plan_training
from dlm_tui.training.report import TrainOutcome
from dlm_tui.training.request import CalibrationPrompts
from tests.interop.store_checker import check_store
from tests.tiny_models import tiny_base
from tests.training_samples import PAIRS, write_document

WANDA = AdapterKind(parameterization="pissa", selection="wanda", rank=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def written(folder: Path, **options: Any) -> Path:
    return write_document(folder, **{"extra": PAIRS, "epochs": 1, **options})


def plan(path: Path, **request: Any) -> TrainingPlan:
    return plan_training(load(path), **request)


def train(path: Path, base: Base, **more: Any) -> TrainOutcome:
    def quiet(step: Progress) -> None: ...

    document = load(path)
    store = Store(path.parent / "home", document.dlm_id)
    wanted = {"adapters": ["facts"], **more}
    return train_document(TrainRequest(document=document, store=store, base=base, **wanted), quiet)


def chosen(**kind: Any) -> KindChoices:
    return KindChoices(by_name={"facts": AdapterKind(**kind)})


# ---- one plan ------------------------------------------------------------------------------------------------------


def test_each_adapter_has_its_own_kind(tmp_path: Path) -> None:
    path = written(tmp_path)
    every, own = AdapterKind(parameterization="pissa"), AdapterKind(selection="wanda", rank=3, signed=True)
    found = plan(path, choices=KindChoices(every=every, by_name={"facts": own}))
    assert [adapter.words for adapter in found.adapters] == ["pissa wanda r3 ±1", "pissa s_only r2"]
    facts = found.adapters[0]
    assert [(phase.name, phase.epochs) for phase in facts.phases] == [("sft", 1), ("signed", 1)]
    assert facts.kind == AdapterKind(parameterization="pissa", selection="wanda", rank=3, signed=True, coefficient=1.0)
    assert plan(path).adapters[0].words == "lora r4" and plan(path).notes == ()


def test_what_is_not_chosen_is_as_before(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = {"facts": AdapterKind(parameterization="pissa", selection="wanda", rank=3, signed=True, coefficient=2.0)}
    plain = plan(path, before=before)
    assert plain.adapters[0].words == "pissa wanda r3 ±2"
    assert plain.notes == ("facts: pissa wanda r3 ±2, as it was trained before",)
    partly = plan(path, before=before, choices=chosen(signed=False, rank=4))
    assert partly.adapters[0].words == "pissa wanda r4"
    assert partly.adapters[0].kind.rank is None, "the document's own rank stays the document's"
    assert partly.notes == ("facts: pissa wanda r4, as it was trained before, in what was not chosen now",)
    other = plan(path, before=before, choices=chosen(parameterization="lora", signed=False, rank=4))
    assert other.adapters[0].words == "lora r4" and other.notes == ()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"choices": chosen(selection="wanda")}, "--selection chooses .* --parameterization pissa .*'facts' is LoRA"),
        ({"choices": chosen(coefficient=2.0)}, "--coefficient belongs to --signed, and adapter 'facts'"),
        ({"choices": KindChoices(every=AdapterKind(signed=True))}, "'manners' has no preference pairs: a signed"),
        (
            {"choices": KindChoices(every=AdapterKind(parameterization="pissa", selection="cho_rej_min_std"))},
            "'manners' has no preference pairs: selection cho_rej_min_std",
        ),
        ({"choices": chosen(rank=0)}, "'facts': the rank must be between 1 and 4096, not 0"),
        ({"choices": chosen(signed=True, coefficient=-1.0)}, "'facts': the coefficient must be above 0"),
        ({"choices": chosen(signed=True, coefficient=float("nan"))}, "'facts': the coefficient must be above 0"),
        ({"choices": chosen(rank=2), "adapters": ["manners"]}, "chosen for 'facts', which is not trained now"),
        (
            {"choices": chosen(signed=True), "trainer": TrainerSettings(activation_checkpointing=True)},
            "activation_checkpointing .* cannot be used with --signed, which adapter 'facts' has",
        ),
        ({"prompts": 3}, "a prompt set calibrates the selections wanda and act_only"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_by_name(tmp_path: Path, request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan(written(tmp_path), **request_)


def test_a_selection_without_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.dlm"
    head = written(tmp_path).read_text().split("---\n")[1]
    path.write_text(f"---\n{head}---\n{PAIRS}")
    with pytest.raises(UsageError, match="'facts' has no text to calibrate selection wanda on"):
        plan(path, adapters=["facts"], choices=chosen(parameterization="pissa", selection="wanda"))
    found = plan(path, adapters=["facts"], choices=chosen(parameterization="pissa", selection="wanda"), prompts=2)
    assert found.adapters[0].selection == "wanda"


def test_flags_are_for_all_adapters_or_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = "--parameterization pissa --parameterization a=lora --selection b=wanda --rank a=8 --rank 4 --signed"
    found = kind_choices(parser.parse_args([*flags.split(), "--coefficient", "b=1.5"]))
    assert found.every == AdapterKind(parameterization="pissa", rank=4, signed=True)
    assert found.of("a") == AdapterKind(parameterization="lora", rank=8, signed=True)
    assert found.of("b") == AdapterKind(
        parameterization="pissa", selection="wanda", rank=4, signed=True, coefficient=1.5
    )
    assert kind_choices(parser.parse_args(["--no-signed"])).every == AdapterKind(signed=False)
    path, home = str(written(tmp_path)), ["--home", str(tmp_path / "home")]
    for wrong, sentence in (
        (["--parameterization", "facts=dora"], "--parameterization must be one of lora, pissa, not 'dora'"),
        (["--selection", "best"], "--selection must be one of s_only, wanda, act_only, cho_rej_min_std"),
        (["--rank", "facts=1.5"], "--rank: it is a whole number, not '1.5'"),
        (["--rank", "facts=0"], "adapter 'facts': the rank must be between 1 and 4096"),
        (["--rank", "who=2"], "a kind of training was chosen for 'who', which is not trained now"),
        (["--coefficient", "much"], "--coefficient: it is a number, not 'much'"),
        (["--coefficient", "2"], "--coefficient belongs to --signed"),
        (["--calibration", str(tmp_path / "none.json")], "none.json does not exist"),
        (["--gate-only", "--rank", "2"], "--gate-only leaves the adapters alone"),
    ):
        assert main(["train", path, *home, *wrong]) == (1 if wrong[0] == "--calibration" else 2)
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_cho_rej_min_std_works_on_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, home = place_demo(tmp_path / "demo"), ["--home", str(tmp_path / "home")]
    path.write_text(
        path.read_text().replace("num_epochs: 24", "num_epochs: 1").replace("num_epochs: 6", "num_epochs: 1")
    )
    kind = ["--parameterization", "pissa", "--selection", "cho_rej_min_std"]
    assert main(["train", str(path), *home, *kind]) == 2
    assert "adapter 'knowledge' has no preference pairs" in capsys.readouterr().err
    assert main(["train", str(path), *home, *kind, "--adapter", "tone", "--signed", "--json"]) == 0
    out, err = capsys.readouterr()
    tone = json.loads(out)["adapters"]["tone"]
    assert tone["kind"] == "pissa cho_rej_min_std r8 ±1" and tail_words("cho_rej_min_std", tone["tail_depth"]) in err
    assert sum(tone["tail_depth"].values()) / len(tone["tail_depth"]) > 0.05
    pair = ["--chosen", "Well done, dear friend.", "--rejected", "No."]
    assert main(["score", str(path), *home, "I am tired.", "--sweep", "tone", "--grid=-1,0,1", "--csv", *pair]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["c"] for row in rows] == ["-1.0", "0.0", "1.0"] and float(rows[1]["kl"]) == 0.0


# ---- trained, remembered, told -------------------------------------------------------------------------------------


def test_the_next_plain_training_keeps_the_kind(base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id)
    first = train(path, base, choices=KindChoices(by_name={"facts": WANDA})).adapters["facts"]
    assert first.kind == "pissa wanda r3" and len(first.tail_depth) == 4 * base.model.config.num_hidden_layers
    assert any(0.0 < depth < 1.0 for depth in first.tail_depth.values())
    again = train(path, base)
    assert again.adapters["facts"].kind == "pissa wanda r3" and again.adapters["facts"].version == 2
    assert "facts: pissa wanda r3, as it was trained before" in again.notes
    assert f"facts: {tail_words('wanda', first.tail_depth)}" in again.notes
    version = current_version(store, "facts")
    assert version is not None
    assert load_peft_adapter(version.path, "facts", base).rank == 3
    record = read_training_record(version.path)
    assert record.kind == WANDA and record.tail_depth == again.adapters["facts"].tail_depth

    manifest = read_manifest(store)
    assert manifest is not None
    assert [run.pinned_versions["adapter_kind"] for run in manifest.training_runs] == ["pissa wanda r3"] * 2
    home = ["--home", str(tmp_path / "home")]
    assert main(["show", str(path), *home]) == 0
    shown = capsys.readouterr().out
    assert f"pissa wanda r3, tail depth {record.mean_tail_depth:.3f}" in shown and "pissa (wanda) r 3" in shown
    assert main(["show", str(path), *home, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"]["facts"]["tail_depth"] == record.tail_depth
    assert main(["metrics", str(path), *home, "--run-id", "1"]) == 0
    told = capsys.readouterr().out
    assert tail_words("wanda", first.tail_depth) in told and all(line in told for line in tail_lines(first.tail_depth))
    assert MetricsReader(store).run_extras(1)["tail_depth"] == first.tail_depth

    back = train(path, base, choices=chosen(parameterization="lora", rank=4)).adapters["facts"]
    assert back.kind == "lora r4" and back.tail_depth == {}


def test_the_other_tool_reads_the_store(base: Base, tmp_path: Path) -> None:
    path = written(tmp_path)
    kind = AdapterKind(parameterization="pissa", selection="cho_rej_min_std", signed=True)
    train(path, base, adapters=None, choices=KindChoices(by_name={"facts": kind}))
    check_store(Store(tmp_path / "home", load(path).dlm_id).root, ["facts", "manners"])


def test_a_version_from_elsewhere_keeps_its_parameterization(base: Base, tmp_path: Path) -> None:
    path = written(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id)
    train(path, base, choices=chosen(parameterization="pissa"))
    version = current_version(store, "facts")
    assert version is not None
    for damage in (b"{", b'{"kind": {"rank": "many"}}', b"\xff"):
        (version.path / FILE).write_bytes(damage)
        assert read_training_record(version.path).kind == AdapterKind(parameterization="pissa")
    (version.path / FILE).unlink()
    assert train(path, base).adapters["facts"].kind == "pissa s_only r4"


def test_nothing_is_trained_before_what_is_missing_is_said(base: Base, tmp_path: Path) -> None:
    """Both answers of the only pair are cut to the same tokens: what the document has is not enough."""
    path = written(tmp_path, extra="")
    same = "### Prompt\nWho?\n### Chosen\n" + "salt " * 80 + "a\n### Rejected\n" + "salt " * 80 + "b\n"
    path.write_text(path.read_text() + f"\n::preference#facts::\n{same}")
    store = Store(tmp_path / "home", load(path).dlm_id)
    with pytest.raises(UsageError, match="'facts' has no preference pairs"):
        train(path, base, choices=chosen(parameterization="pissa", selection="cho_rej_min_std"))
    assert MetricsReader(store).runs() == [] and current_version(store, "facts") is None


def test_a_prompt_set_calibrates(base: Base, tmp_path: Path) -> None:
    path = written(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id)
    kind = KindChoices(by_name={"facts": AdapterKind(parameterization="pissa", selection="act_only", rank=2)})
    own = train(path, base, choices=kind).adapters["facts"]
    prompts = CalibrationPrompts("x.prompts.json", ("Zebra?", "9 9 9 9"))
    asked = train(path, base, calibration=prompts).adapters["facts"]
    assert own.tail_depth != asked.tail_depth, "other text, other directions"
    version = current_version(store, "facts")
    assert version is not None and read_training_record(version.path).calibration == "x.prompts.json"
    assert MetricsReader(store).run_extras(2)["calibration"] == "x.prompts.json"


def test_the_reading_of_the_diagnostic() -> None:
    deep = {"model.layers.1.q_proj": 0.2, "model.layers.0.q_proj": 0.1}
    assert tail_words("wanda", deep) == (
        "tail depth 0.150 over 2 layers, above 0.05: wanda looks beyond the largest singular values"
    )
    assert "not above 0.05: act_only collapsed onto the largest" in tail_words("act_only", {"a": 0.05})
    assert "s_only takes the largest" in tail_words("s_only", {"a": 0.0})
    assert tail_words("wanda", {}) == ""
    assert tail_lines({**deep, "head": 0.5}) == ["q_proj: 0.10 0.20", "head: 0.50"]


# ---- signed pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", ["lora", "pissa"])
def test_signed_pairs_teach_both_signs_and_nothing_at_zero(base: Base, tmp_path: Path, parameterization: str) -> None:
    settings = "lora_r: 4, lora_dropout: 0.0, learning_rate: 0.02"
    head = written(tmp_path, epochs=12, facts=settings).read_text().partition("The harbour")[0]
    path = tmp_path / "signed.dlm"
    path.write_text(head + PAIRS)
    kind = chosen(parameterization=parameterization, signed=True, coefficient=2.0, rank=8)
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    outcome = train(path, base, choices=kind)
    assert outcome.adapters["facts"].kind.endswith("±2")
    assert all(torch.equal(value, weights[name]) for name, value in base.model.state_dict().items())

    version = current_version(Store(tmp_path / "home", load(path).dlm_id), "facts")
    assert version is not None
    model = MixedModel(base, {"facts": load_peft_adapter(version.path, "facts", base)})
    sides = tuple(
        base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("In winter it is.", "Never, never.")
    )
    prompt = base.chat("Is the harbour quiet?")
    points = run_to_end(
        sweep(model, prompt, "facts", (-2.0, 0.0, 2.0), Sampling(max_tokens=2, temperature=0.0), sides=sides)
    )
    minus, zero, plus = points
    assert plus.chosen > zero.chosen + 0.5 and minus.rejected > zero.rejected + 0.5
    assert plus.chosen - plus.rejected > minus.chosen - minus.rejected
    assert zero.kl == 0.0
    ids = torch.tensor([prompt])
    with torch.no_grad():
        plain = base.model(input_ids=ids).logits
        backbone = model.reference
        at_zero = backbone.logits(backbone.forward(ids, None, torch.zeros(1, 1)))
    assert torch.equal(at_zero, plain), "c = 0 is the base, bit for bit"


def test_kept_rounds_compose_as_a_history_does(base: Base, tmp_path: Path) -> None:
    """What the desk does with `facts@1` beside `facts` equals the kept history on the plain model, in either order."""
    path = written(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id)
    train(path, base, choices=chosen(parameterization="pissa", signed=True))
    train(path, base, choices=chosen(selection="wanda", signed=True, rank=2))
    rounds = {
        name: replace(load_peft_adapter(find_version(store, "facts", number).path, "facts", base), name=name)
        for name, number in (("facts@1", 1), ("facts", 2))
    }
    mix = {"facts@1": 1.5, "facts": -0.5}
    mixed = MixedModel(base, {"facts": rounds["facts"]}).extended({"facts@1": rounds["facts@1"]})
    ids = torch.tensor([base.chat("Is the harbour quiet?")])
    row = mixed.coefficients(mix).unsqueeze(0)
    with torch.no_grad():
        here = [backbone.logits(backbone.forward(ids, None, row)) for backbone in (mixed.backbone, mixed.reference)]
        for order in (list(mix), list(reversed(mix))):
            kept = [(pissa_from_adapter(base.model, rounds[name]), mix[name]) for name in order]
            history = PiSSAHistoryBake(base.model, kept)
            wanted = base.model(input_ids=ids).logits
            history.remove()
            for found in here:
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(wanted, base.model(input_ids=ids).logits, atol=1e-3)
