"""The gate on the demo document and the embedded base: better than the plain loop, and honest about strange prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dlm_tui.assets import asset
from dlm_tui.document import Document, load
from dlm_tui.gate.attribution import attribution_values
from dlm_tui.gate.calibration import Scores, scores, stratified_folds
from dlm_tui.gate.evaluation import held_out_logits
from dlm_tui.gate.gate import Gate
from dlm_tui.gate.probes import GateProbe, trained_probes
from dlm_tui.gate.router import PromptRouter
from dlm_tui.gate.training import cached_embeddings, train_document_gate
from dlm_tui.model import MixedModel, load_base, resolve_base
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store
from tests.benchmarks.gate_reference import dropped_changes, held_out, reference_gate
from tests.benchmarks.ood_prompts import FOREIGN, LIKE

SEEDS = (9, 1, 2)


@pytest.fixture(scope="module")
def model() -> MixedModel:
    return MixedModel(run_to_end(load_base(resolve_base("pocket"), device="cpu")), {})


@pytest.fixture(scope="module")
def document() -> Document:
    return load(asset("demo") / "harbour.dlm")


@pytest.fixture(scope="module")
def probes(document: Document) -> list[GateProbe]:
    return trained_probes(document)


@pytest.fixture(scope="module")
def store(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("home"), document.dlm_id)


@pytest.fixture(scope="module")
def rows(model: MixedModel, probes: list[GateProbe], store: Store) -> Tensor:
    found, _ = run_to_end(cached_embeddings(model, store, [probe.prompt for probe in probes]))
    return found


@pytest.fixture(scope="module")
def gate(document: Document, model: MixedModel, store: Store, rows: Tensor) -> Gate:
    found = run_to_end(train_document_gate(document, store, model)).gate
    assert found is not None
    return found


@pytest.fixture
def router(model: MixedModel, gate: Gate) -> PromptRouter:
    return PromptRouter(model.backbone, model.base, gate)


def test_held_out_at_least_as_good_as_the_plain_loop(document: Document, probes: list[GateProbe], rows: Tensor) -> None:
    labels = torch.tensor([probe.label for probe in probes])
    names = document.adapter_names
    ours: list[Scores] = []
    plain: list[Scores] = []
    for seed in SEEDS:
        ours.append(scores(run_to_end(held_out_logits(document, rows, probes, 5, seed)), labels))

        def train(inside: Tensor, truth: Tensor, seed: int = seed) -> nn.Sequential:
            return reference_gate(inside, truth, len(names), seed=seed)

        plain.append(scores(held_out(train, rows, labels, stratified_folds(labels.tolist(), 5, seed)), labels))

    def mean(of: Callable[[Scores], float], found: list[Scores]) -> float:
        return sum(map(of, found)) / len(found)

    assert mean(lambda s: s.accuracy, ours) >= max(0.95, mean(lambda s: s.accuracy, plain))
    # nats: both know every prompt of this base, and the reward for entropy keeps ours a little less certain
    assert mean(lambda s: s.log_loss, ours) < mean(lambda s: s.log_loss, plain) + 0.01


def test_noise_is_unlike_anything_and_own_prompts_are_not(
    router: PromptRouter, probes: list[GateProbe], gate: Gate
) -> None:
    chance = random.Random(0)
    noise = [
        "".join(chance.choice("qwxzjkv#%@&;[]{}0123456789") for _ in range(chance.randint(10, 60))) for _ in range(30)
    ]
    assert sum(run_to_end(router.route(text)).is_ood for text in noise) / len(noise) >= 0.95
    # surprise is calibrated on the prompts themselves: one in forty of them lies above what the others stay below
    assert sum(run_to_end(router.route(probe.prompt)).is_ood for probe in probes) / len(probes) <= 0.05
    assert gate.ood_score is not None and gate.ood_score.surprised is not None
    assert float((gate.ood_score.held_out > gate.ood_score.limit).double().mean()) <= 0.06
    assert float((gate.ood_score.surprised.held_out > 1).double().mean()) <= 0.08


def test_foreign_prompts_are_marked_and_new_ones_of_its_kinds_are_not(router: PromptRouter) -> None:
    assert sum(run_to_end(router.route(text)).is_ood for text in FOREIGN) >= 0.8 * len(FOREIGN)
    assert sum(run_to_end(router.route(text)).is_ood for text in LIKE) <= len(LIKE) / 30


def test_pulls_predict_what_dropping_a_token_does(router: PromptRouter, probes: list[GateProbe], gate: Gate) -> None:
    agreed: dict[tuple[str, int], float] = {}
    for probe in probes:
        run_to_end(router.route(probe.prompt))
        predicted, measured = attribution_values(gate, router.states), dropped_changes(gate, router.states)
        for column in range(len(gate.names)):
            ranks = torch.stack([predicted[:, column], measured[:, column]]).argsort(dim=1).argsort(dim=1)
            agreed[probe.prompt, column] = float(torch.corrcoef(ranks.double())[0, 1])
    # tokens that change next to nothing may swap their places, which weighs much among eight
    assert min(agreed.values()) >= 0.85, min(agreed, key=lambda which: agreed[which])
    assert sum(agreed.values()) / len(agreed) >= 0.99


def test_editing_one_section_embeds_one(
    tmp_path: Path, document: Document, model: MixedModel, rows: Tensor, store: Store
) -> None:
    text = (asset("demo") / "harbour.dlm").read_text()
    edited = tmp_path / "harbour.dlm"
    edited.write_text(
        text.replace("How many steps are in the lighthouse?", "How many steps has the lighthouse got?", 1)
    )
    assert len(rows) == len(trained_probes(load(edited)))
    assert run_to_end(train_document_gate(load(edited), store, model)).embedded == 1
