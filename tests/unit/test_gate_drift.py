"""What freezing costs, against plain forward passes; and the search for the best frozen mix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlm_tui.document import Document
from dlm_tui.errors import DlmTuiError
from dlm_tui.gate.drift import drift_report
from dlm_tui.gate.gate import Gate, load_gate
from dlm_tui.gate.nexttoken import best_mix, frozen_divergence, live_logprobs, next_logprobs, prompt_batches
from dlm_tui.gate.training import train_document_gate
from dlm_tui.model import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store
from tests.benchmarks.gate_reference import reference_embedding
from tests.gate_samples import DLM_ID, PROMPTS, tiny_model, write_document

NAMES = tuple(PROMPTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return tiny_model(tmp_path_factory.mktemp("base"), NAMES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: MixedModel) -> tuple[Document, Store]:
    folder = tmp_path_factory.mktemp("document")
    document = write_document(folder / "d.dlm", gate="lr: 0.01\nsteps: 60")
    store = Store(folder / "home", DLM_ID)
    run_to_end(train_document_gate(document, store, model))
    return document, store


def test_next_token_divergence_against_single_passes(model: MixedModel) -> None:
    prompts = [model.base.chat(text) for rows in PROMPTS.values() for text in rows[:3]]
    weights = torch.softmax(torch.randn(len(prompts), 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    frozen = torch.tensor([0.2, 0.5, 0.3])
    batches = prompt_batches(prompts)
    assert sorted(place for batch in batches for place in batch.places.tolist()) == list(range(len(prompts)))
    live = run_to_end(live_logprobs(model.backbone, batches, weights))
    found = run_to_end(frozen_divergence(model.backbone, batches, live, frozen, len(prompts)))
    for place, prompt in enumerate(prompts):
        rows = []
        for mix in (weights[place], frozen):
            hidden = model.reference.forward(torch.tensor([prompt]), None, mix[None])
            rows.append(torch.log_softmax(model.reference.logits(hidden[0, -1]).double(), dim=-1))
        expected = sum(float(p.exp() * (p - q)) for p, q in zip(*rows, strict=True))
        assert float(found[place]) == pytest.approx(expected, abs=1e-5)


def test_the_best_mix_is_found_where_it_is_known(model: MixedModel) -> None:
    """If every prompt is answered under one mix, that mix is the best one and costs nothing."""
    prompts = [model.base.chat(text) for rows in PROMPTS.values() for text in rows]
    batches = prompt_batches(prompts)
    truth = torch.tensor([0.1, 0.65, 0.25])
    live = run_to_end(live_logprobs(model.backbone, batches, truth.expand(len(prompts), -1)))
    start = torch.full((3,), 1 / 3)
    found = run_to_end(best_mix(model.reference, batches, live, start))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-6) and bool((found >= 0).all())
    assert torch.allclose(found, truth, atol=0.03)
    costs = [
        run_to_end(frozen_divergence(model.backbone, batches, live, mix, len(prompts))).mean() for mix in (found, start)
    ]
    assert costs[0] < 0.02 * costs[1]


def test_the_gradient_reaches_the_coefficients(model: MixedModel) -> None:
    (batch, *_) = prompt_batches([model.base.chat("How do I bake bread?")])
    point = torch.tensor([[0.3, 0.3, 0.4]], requires_grad=True)
    token = 17
    next_logprobs(model.reference, batch, point)[0, token].backward()
    assert point.grad is not None
    for column in range(3):
        step = torch.zeros(1, 3)
        step[0, column] = 2e-3
        ends = [
            float(next_logprobs(model.reference, batch, point.detach() + sign * step)[0, token]) for sign in (1, -1)
        ]
        assert float(point.grad[0, column]) == pytest.approx((ends[0] - ends[1]) / 4e-3, rel=2e-2, abs=2e-2)


def test_the_report(model: MixedModel, trained: tuple[Document, Store]) -> None:
    document, store = trained
    saved = ["Where is the ladder?", PROMPTS["sea"][0], ""]
    report = run_to_end(drift_report(document, store, model, prompts=saved)).as_json()
    json.dumps(report, allow_nan=False)
    assert (report["prompts"], report["training_prompts"], report["saved_prompts"]) == (19, 18, 1)
    gate = load_gate(store)
    assert gate is not None
    for key in ("frozen", "uniform", "best_static"):
        row = report[key]
        assert row["kl"] >= 0 and row["kl_max"] >= row["kl"] and 0 <= row["changed_answers"] <= 1
        assert sum(row["mix"].values()) == pytest.approx(1.0, abs=1e-5) and list(row["mix"]) == list(NAMES)
    assert report["best_static"]["kl"] <= min(report["frozen"]["kl"], report["uniform"]["kl"]) + 1e-9
    assert report["kept"] == pytest.approx(1 - report["frozen"]["kl"] / report["uniform"]["kl"])
    assert "reezing" in report["verdict"]
    # The mean over all prompts, one plain pass each.
    total = 0.0
    prompts = [text for rows in zip(*PROMPTS.values(), strict=True) for text in rows] + ["Where is the ladder?"]
    uniform = torch.full((1, 3), 1 / 3)
    for text in prompts:
        weights = gate.weights(reference_embedding(model.base.model, model.base.tokenizer, text))[None]
        ids = torch.tensor([model.base.chat(text)])
        p, q = (
            torch.log_softmax(model.reference.logits(model.reference.forward(ids, None, mix)[0, -1]).double(), -1)
            for mix in (weights, uniform)
        )
        total += float((p.exp() * (p - q)).sum())
    assert report["uniform"]["kl"] == pytest.approx(total / len(prompts), abs=1e-4)


def test_freezing_a_gate_that_never_changes_its_mind_costs_nothing(
    model: MixedModel, trained: tuple[Document, Store]
) -> None:
    document, store = trained
    gate = load_gate(store)
    assert gate is not None and gate.network is not None
    with torch.no_grad():
        for value in gate.network.parameters():
            value.zero_()
        gate.network.second.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    report = run_to_end(drift_report(document, store, model, gate))
    assert report.frozen.kl == pytest.approx(0.0, abs=1e-5) and report.frozen.changed_answers == 0.0
    assert report.kept == pytest.approx(1.0, abs=1e-3) and "keeps 100%" in report.verdict
    given = run_to_end(drift_report(document, store, model, gate, frozen={"sea": 1.0}, answers=False))
    assert given.frozen.mix == {"sea": 1.0, "bread": 0.0, "letters": 0.0}
    assert given.frozen.changed_answers is None and given.frozen.kl > report.frozen.kl


def test_without_a_gate_or_adapters_there_is_a_sentence(
    tmp_path: Path, model: MixedModel, trained: tuple[Document, Store]
) -> None:
    document, store = trained
    with pytest.raises(DlmTuiError, match="no trained gate"):
        run_to_end(drift_report(document, Store(tmp_path, DLM_ID), model))
    with pytest.raises(DlmTuiError, match="No trained version of sea, bread, letters"):
        run_to_end(drift_report(document, store, MixedModel(model.base, {})))
    gate = load_gate(store)
    assert gate is not None
    other = Gate(("x", "y"), gate.config, gate.network)
    with pytest.raises(DlmTuiError, match="other adapters"):
        run_to_end(drift_report(document, store, model, other))
