"""How surprised the base is by a prompt, against float64 transformers; and the mark that goes by it."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm_tui.gate.calibration import stratified_folds
from dlm_tui.gate.gate import OOD_NAME, Gate, load_gate
from dlm_tui.gate.ood import FOLDS, MINIMUM, OodDetector, Surprised, fit_ood
from dlm_tui.gate.router import PromptRouter
from dlm_tui.gate.surprise import MOST_HEAD_WEIGHTS, Surprise, cached_surprises, is_affordable, prompt_surprises
from dlm_tui.gate.training import train_document_gate
from dlm_tui.model import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store
from tests.gate_samples import DLM_ID, PROMPTS, tiny_model, write_document
from tests.unit.test_gate_router import Counting, edited

TEXTS = [text for rows in PROMPTS.values() for text in rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def exact(model: MixedModel) -> torch.nn.Module:
    """The same model in float64, through transformers alone."""
    return copy.deepcopy(model.base.model).double()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("home"), DLM_ID)


@pytest.fixture(scope="module")
def gate(model: MixedModel, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    document = write_document(tmp_path_factory.mktemp("document") / "a.dlm")
    found = run_to_end(train_document_gate(document, store, model)).gate
    assert found is not None and found.ood_score is not None and found.ood_score.surprised is not None
    return found


@pytest.fixture
def engine(model: MixedModel) -> Counting:
    return Counting(model.backbone)


def reference(model: MixedModel, exact: torch.nn.Module, prompt: str) -> Tensor:
    """−log p of every token but the first, float64 [n − 1], nats."""
    ids = torch.tensor([model.base.tokenizer(prompt, truncation=True, max_length=512)["input_ids"]])
    with torch.no_grad():
        logits = exact(input_ids=ids, use_cache=False).logits[0, :-1]
    found: Tensor = -torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    return found


def test_it_is_that_of_transformers_in_float64(model: MixedModel, exact: torch.nn.Module) -> None:
    long = "The harbour master counts the boats when the tide turns and the bell rings twice. " * 40
    texts = [*TEXTS, "a", "", long, "Grüße 東京 🙂"]
    rows = run_to_end(prompt_surprises(model.backbone, model.base, texts))
    assert rows[texts.index("")].tolist() == [0, 0, 0]
    for text, (count, total, squares) in zip(texts, rows.tolist(), strict=True):
        wanted = reference(model, exact, text) if text else torch.zeros(0)
        assert count == len(wanted)
        assert total == pytest.approx(float(wanted.sum()), rel=1e-5, abs=1e-5)
        assert squares == pytest.approx(float(wanted.square().sum()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_typed_and_edited_it_stays_that(
    model: MixedModel, exact: torch.nn.Module, gate: Gate, engine: Counting, seed: int
) -> None:
    """Whatever is reused, score and mark are those of a router that has read nothing before."""
    chance, router, text = random.Random(seed), PromptRouter(engine, model.base, gate), ""
    for step in range(60):
        text = edited(text, chance)
        result = run_to_end(router.route(text, settled=step % 3 != 0))
        if step % 3 == 0 or not text:
            continue
        count, total = router._surprise.so_far(router.ids)
        wanted = reference(model, exact, text)
        assert (count, total) == (len(wanted), pytest.approx(float(wanted.sum()), rel=1e-5, abs=1e-4))
        fresh = run_to_end(PromptRouter(model.backbone, model.base, gate).route(text))
        assert (result.ood_score, result.is_ood) == (fresh.ood_score, fresh.is_ood) and result.settled


def test_only_new_tokens_ask_the_output_layer_and_none_while_typing(
    model: MixedModel, gate: Gate, engine: Counting
) -> None:
    router = PromptRouter(engine, model.base, gate)
    for length in range(10, 40):
        typed = run_to_end(router.route(TEXTS[0][:length], settled=False))
    assert engine.asked == 0 and not typed.settled
    run_to_end(router.route(TEXTS[0]))
    count = len(router.ids)
    assert engine.asked == count - 1
    assert run_to_end(router.route(TEXTS[0], settled=False)).settled, "nothing is left to read"
    run_to_end(router.route(TEXTS[0] + " harbour"))
    assert engine.asked == len(router.ids) - 1
    before = engine.asked
    run_to_end(router.route(TEXTS[0]))
    assert engine.asked == before, "deleting reads nothing"


def test_a_failing_output_layer_leaves_nothing_half_read(model: MixedModel, gate: Gate, engine: Counting) -> None:
    router = PromptRouter(engine, model.base, gate)
    run_to_end(router.route(TEXTS[0][:20]))
    real = engine.logits
    engine.logits = lambda hidden: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        run_to_end(router.route(TEXTS[1]))
    engine.logits = real  # type: ignore[method-assign]
    fresh = run_to_end(PromptRouter(model.backbone, model.base, gate).route(TEXTS[1]))
    assert run_to_end(router.route(TEXTS[1])).ood_score == fresh.ood_score


def test_a_large_output_layer_is_never_asked(model: MixedModel, gate: Gate, engine: Counting, tmp_path: Path) -> None:
    engine.vocab_size = MOST_HEAD_WEIGHTS // engine.hidden_size + 1
    assert not is_affordable(engine) and is_affordable(model.backbone)
    result = run_to_end(PromptRouter(engine, model.base, gate).route(TEXTS[0]))
    assert engine.asked == 0 and result.settled and gate.ood_score is not None
    rows = run_to_end(PromptRouter(engine, model.base, gate).embed(TEXTS[0]))
    assert (result.ood_score, result.is_ood) == gate.ood_score.judge(rows)


def test_what_was_read_is_kept_in_the_store(model: MixedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, DLM_ID)
    first = run_to_end(cached_surprises(model, store, TEXTS[:4]))
    monkeypatch.setattr("dlm_tui.gate.surprise.token_surprise", lambda *_: pytest.fail("read again"))
    again = run_to_end(cached_surprises(model, store, [TEXTS[2], TEXTS[0], TEXTS[2]]))
    assert first is not None and again is not None and torch.equal(again, first[[2, 0, 2]])


def samples(count: int = 60) -> tuple[Tensor, Tensor, list[int]]:
    """Embeddings, surprises of 5 to 30 tokens, labels."""
    chance = torch.Generator().manual_seed(6)
    rows = torch.randn(count, 12, generator=chance)
    tokens = torch.randint(5, 30, (count,), generator=chance)
    told = [torch.rand(int(n), generator=chance).double() * 8 for n in tokens]
    return (
        rows,
        torch.stack([torch.stack([torch.tensor(float(len(t))), t.sum(), t.square().sum()]) for t in told]),
        [n % 2 for n in range(count)],
    )


def test_the_calibration_is_what_a_plain_computation_gives() -> None:
    rows, surprises, labels = samples()
    detector = fit_ood(rows, labels, 0, surprises)
    assert detector is not None and detector.surprised is not None
    table, assigned = surprises.double().numpy(), np.array(stratified_folds(labels, FOLDS, 0))

    def scale(part: np.ndarray) -> tuple[float, float]:
        count, total, squares = part.sum(axis=0)
        return total / count, math.sqrt((squares - total**2 / count) / (count - 1))

    excess, apart = np.zeros(len(table)), np.zeros(len(table))
    for fold in range(FOLDS):
        inside = assigned != fold
        mean, deviation = scale(table[inside])
        count, total, _ = table[~inside].T
        excess[~inside] = (total / count - mean) / (deviation / np.sqrt(count))
        alone = fit_ood(rows[inside], [0] * int(inside.sum()), 0)
        assert alone is not None
        apart[~inside] = alone.distance(rows[~inside]).numpy()
    limits = 1.5 * apart.max(), np.quantile(excess, 0.975)
    found = detector.surprised
    assert (found.mean, found.deviation) == pytest.approx(scale(table))
    assert (found.distance_limit, found.excess_limit) == pytest.approx(limits)
    joint = np.sort(np.maximum(apart / limits[0], excess / limits[1]))
    assert found.held_out.numpy() == pytest.approx(joint)
    assert detector.rates(rows, surprises).held_out == pytest.approx((joint > 1).mean()) and (joint > 1).mean() <= 0.1
    plain = fit_ood(rows, labels, 0)
    assert plain is not None and torch.equal(plain.held_out, detector.held_out) and plain.limit == detector.limit


def test_either_of_the_two_marks_a_prompt() -> None:
    rows, surprises, labels = samples()
    detector = fit_ood(rows, labels, 0, surprises)
    assert detector is not None and detector.surprised is not None
    centre, far, one = rows.mean(dim=0), rows.mean(dim=0) + 9.0, detector.surprised
    calm, wild = Surprise(20, 20 * one.mean), Surprise(20, 20 * (one.mean + 3 * one.deviation))
    assert not detector.judge(centre, calm)[1]
    assert detector.judge(centre, wild) == (1.0, True) and detector.judge(far, calm) == (1.0, True)
    assert detector.judge(centre, Surprise(20, math.nan)) == (1.0, True)
    assert not detector.judge(centre, Surprise(0, 0.0))[1], "one token is judged by the distance alone"
    one_more = Surprise(20, 20 * one.mean + math.sqrt(20) * one.deviation * one.excess_limit)
    assert not detector.judge(centre, one_more._replace(total=one_more.total - 1e-6))[1]
    assert detector.judge(centre, one_more._replace(total=one_more.total + 1e-6))[1]


def test_gates_without_it_judge_as_before_and_files_with_it_are_read_again() -> None:
    rows, surprises, labels = samples()
    detector, plain = fit_ood(rows, labels, 0, surprises), fit_ood(rows, labels, 0)
    assert detector is not None and plain is not None
    old = OodDetector.restore(detector.distance_tensors())
    wild = Surprise(20, 1e6)
    for row in (*rows[:9], rows[0] * 5):
        assert old.judge(row, wild) == plain.judge(row) == detector.judge(row)
    whole = OodDetector.restore(detector.tensors())
    assert isinstance(whole.surprised, Surprised) and whole.judge(rows[0], wild) == (1.0, True)
    broken = {**detector.tensors(), "surprise_scale": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    with pytest.raises(ValueError, match="impossible scale"):
        OodDetector.restore(broken)


@pytest.mark.parametrize("what", ["constant", "short", "nan"])
def test_without_enough_to_go_by_the_distance_decides_alone(what: str) -> None:
    rows, surprises, labels = samples()
    if what == "constant":
        surprises = torch.tensor([10.0, 20.0, 40.0]).repeat(len(rows), 1)
    elif what == "short":
        surprises[MINIMUM - 1 :] = 0
    else:
        surprises[3, 1] = math.nan
    detector = fit_ood(rows, labels, 0, surprises)
    assert detector is not None and detector.surprised is None


def test_the_store_keeps_it_and_a_damaged_record_gives_no_hint(gate: Gate, store: Store, tmp_path: Path) -> None:
    stored = load_gate(store)
    assert stored is not None and stored.ood_score is not None and gate.ood_score is not None
    kept, wanted = stored.ood_score.surprised, gate.ood_score.surprised
    assert kept is not None and wanted is not None and torch.equal(kept.held_out, wanted.held_out)
    assert (kept.mean, kept.deviation, kept.excess_limit) == (wanted.mean, wanted.deviation, wanted.excess_limit)
    path = store.gate_dir / OOD_NAME
    whole = path.read_bytes()
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if name != "surprise_held_out"}, path)
    damaged = load_gate(store)
    path.write_bytes(whole)
    assert damaged is not None and damaged.ood_score is None and damaged.network is not None
