"""What an adapter does to its own sections: the figure against float64 arithmetic, and what a training makes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.errors import Cancelled
from dlm_tui.model.base import Base
from dlm_tui.progress import WARNING, Progress, run_to_end
from dlm_tui.scoring.own_effect import ANSWER_TOKENS, PROMPT_TOKENS, Passage, own_effect, spread
from dlm_tui.store import OwnEffect, Store
from dlm_tui.store.adapter_history import drop_version, use_versions, version_history
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.report import train_report
from tests.tiny_models import random_adapter, tiny_base
from tests.training_samples import write_document

PASSAGES = [Passage([5, 9, 60, 33], [71, 12, 8]), Passage([17, 4], [90, 91, 92, 93, 94])]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def test_the_figures_are_those_of_plain_float64_arithmetic(base: Base) -> None:
    adapter = random_adapter(base, "x", rank=4, size=0.25)
    found = run_to_end(own_effect(base, adapter, PASSAGES, seed=0))
    plain, merged = copy.deepcopy(base.model).double(), copy.deepcopy(base.model).double()
    with torch.no_grad():
        for module, pair in adapter.modules.items():
            merged.get_submodule(module).weight += pair.lora_B.double() @ pair.lora_A.double() * pair.scale
        kls, gains, changed = [], [], []
        for passage in PASSAGES:
            ids = torch.tensor([[*passage.prompt, *passage.answer]])
            places = slice(len(passage.prompt) - 1, -1)
            off, on = (model(ids).logits[0, places].log_softmax(-1) for model in (plain, merged))
            kls.append(float((on.exp() * (on - off)).sum(-1).mean()))
            gains.append(float((on - off)[range(len(passage.answer)), passage.answer].mean()))
            changed.append(float((on.argmax(-1) != off.argmax(-1)).double().mean()))
    assert found.kl == pytest.approx(sum(kls) / 2, rel=1e-4)
    assert found.gain == pytest.approx(sum(gains) / 2, rel=1e-3, abs=1e-5)
    assert (found.changed, found.sections) == (pytest.approx(sum(changed) / 2), 2)
    assert found.z is not None and abs(found.z) < 3, "a random adapter is one of the nulls"
    assert "random change" in found.nothing
    assert run_to_end(own_effect(base, adapter, PASSAGES, seed=0)) == found


def test_few_passages_are_looked_at_and_long_ones_cut() -> None:
    long = Passage.cut(list(range(200)), 100)
    assert long is not None
    assert long.prompt == list(range(100 - PROMPT_TOKENS, 100)) and long.answer == list(range(100, 100 + ANSWER_TOKENS))
    assert Passage.cut([1, 2, 3], 3) is None and Passage.cut([1, 2, 3], 0) is None
    many = [Passage([n], [n]) for n in range(10)]
    assert [one.prompt[0] for one in spread(many)] == [0, 2, 5, 7] and spread(many[:2]) == many[:2]


@pytest.mark.parametrize(
    ("kl", "changed", "z", "nothing"),
    [
        (5.0, 0.7, 4.0, False),
        (0.5, 0.0, 4.0, False),
        (0.05, 0.2, 4.0, False),
        (0.05, 0.03, 4.9, True),
        (5.0, 0.7, 1.0, True),
        (0.0, 0.0, None, True),
        (0.0, 0.0, 9.0, True),
    ],
)
def test_what_counts_as_nothing(kl: float, changed: float, z: float | None, nothing: bool) -> None:
    assert bool(OwnEffect(kl=kl, gain=0.0, changed=changed, z=z, sections=4).nothing) == nothing


def trained(folder: Path, base: Base, stop: bool = False, **options: object) -> tuple[Path, Store, list[str], object]:
    """A training with its warnings and report; with `stop` a person stops it while the effects are measured."""
    folder.mkdir(exist_ok=True)
    path = write_document(folder, **options)  # type: ignore[arg-type]
    store, warnings = Store(folder / "home", load(path).dlm_id), list[str]()

    def report(step: Progress) -> None:
        if step.stage == WARNING:
            warnings.append(step.text or "")
        if stop and step.stage == "effect":
            raise Cancelled("cancelled")

    outcome = train_document(TrainRequest(document=load(path), store=store, base=base), report)
    return path, store, warnings, train_report(load(path), outcome).as_json()


def test_an_adapter_that_learned_is_told_with_its_effect(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = "lora_r: 4, learning_rate: 0.02"
    path, store, warnings, report = trained(tmp_path, base, epochs=12, facts=facts)
    (first,) = version_history(store, ["facts"])["facts"]
    assert first.effect is not None and not first.effect.nothing and first.effect.gain > 0
    assert report["adapters"]["facts"]["effect"]["kl"] == first.effect.kl  # type: ignore[index]
    assert not any(text.startswith("facts") for text in warnings)
    home = ["--home", str(tmp_path / "home")]
    assert main(["adapter", "list", str(path), "facts", *home]) == 0
    assert f"effect {first.effect.kl:.3g} nats a token" in capsys.readouterr().out
    assert main(["adapter", "list", str(path), "facts", "--json", *home]) == 0
    (told,) = json.loads(capsys.readouterr().out)["facts"]
    assert told["effect"] == first.effect.kl and told["effect_measured"]["sections"] == first.effect.sections
    trained(tmp_path, base, epochs=12, facts=facts)
    use_versions(store, {"facts": 1})
    drop_version(store, "facts", 2)
    (left,) = version_history(store, ["facts"])["facts"]
    assert left.effect == first.effect, "going back and dropping leave what was measured of the others"


def test_one_that_learned_nothing_is_warned_of_with_the_remedy(base: Base, tmp_path: Path) -> None:
    _, store, warnings, report = trained(tmp_path, base, facts="lora_r: 4, learning_rate: 0.000001")
    (told,) = [text for text in warnings if text.startswith("facts")]
    assert "next to nothing" in told and "learning_rate (now 1e-06)" in told and "num_epochs (now 2)" in told
    assert report["adapters"]["facts"]["warning"] == told  # type: ignore[index]
    (facts,) = version_history(store, ["facts"])["facts"]
    assert facts.in_force and facts.effect is not None and facts.effect.nothing


def test_a_training_of_one_step_learns(base: Base, tmp_path: Path) -> None:
    _, store, _, report = trained(tmp_path, base, sections=1, epochs=1, facts="lora_r: 4, learning_rate: 0.02")
    assert report["adapters"]["facts"]["steps"] == 1  # type: ignore[index]
    (facts,) = version_history(store, ["facts"])["facts"]
    assert facts.effect is not None and facts.effect.kl > 0, "a warm-up over its only step has the rate 0"


def test_stopping_the_measurement_costs_nothing_else(base: Base, tmp_path: Path) -> None:
    _, store, _, report = trained(tmp_path, base, stop=True)
    (facts,) = version_history(store, ["facts"])["facts"]
    assert facts.in_force and facts.effect is None
    assert report["gate"]["mode"] == "trained" and report["adapters"]["facts"]["effect"] is None  # type: ignore[index]
