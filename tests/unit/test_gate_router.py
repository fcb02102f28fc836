"""Live routing against a full re-embedding of every prompt, on a tiny random Llama."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm_tui.gate.embedding import LIMIT
from dlm_tui.gate.gate import Gate
from dlm_tui.gate.network import seeded_network
from dlm_tui.gate.ood import fit_ood
from dlm_tui.gate.router import PIECE, PromptRouter
from dlm_tui.model import MixedModel
from dlm_tui.model.information import entropy
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.store import GateConfig
from tests.benchmarks.gate_reference import reference_embedding
from tests.gate_samples import tiny_model

NAMES = ("sea", "bread", "letters")
WORDS = [
    "harbour",
    " bread",
    "the tide ",
    "é",
    "東京",
    "🙂",
    "\n",
    "  ",
    "a",
    "ladder",
    "?",
    "1234",
    "naïve",
    "\t",
    "bell rings",
    "harb",
    "our",
    "bre",
    "ad",
    "th",
    "e",
    " ",
    "e\u0301",
    "\u0301",
    "👩\u200d👩\u200d👧",
    "<|im_end|>",
    "\x00",
]
SENTENCE = "The harbour master counts the boats when the tide turns and the bell rings twice. "


class Counting:
    """A backbone that counts the tokens it runs and the rows of its output layer, and fails when told to."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.device = backbone.device
        self.hidden_size, self.vocab_size = backbone.hidden_size, backbone.vocab_size
        self.tokens = 0
        self.asked = 0
        self.fail = False

    def new_cache(self, batch: int, capacity: int) -> Any:
        return self.backbone.new_cache(batch, capacity)

    def forward(self, ids: Tensor, cache: Any, coefficients: Tensor | None) -> Tensor:
        result: Tensor = self.backbone.forward(ids, cache, coefficients)
        if self.fail:
            raise RuntimeError("out of memory")
        self.tokens += ids.numel()
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.backbone.logits(hidden)
        self.asked += len(hidden)
        return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MixedModel:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def engine(model: MixedModel) -> Counting:
    return Counting(model.backbone)


@pytest.fixture
def make(model: MixedModel, engine: Counting) -> Callable[[], PromptRouter]:
    return lambda: PromptRouter(engine, model.base, a_gate(model.base.hidden_size))


def a_gate(size: int, seed: int = 3) -> Gate:
    """A gate with random weights, sharp enough that differences would show."""
    network = seeded_network(size, 16, len(NAMES), seed).requires_grad_(False)
    network.second.weight.mul_(6)
    return Gate(NAMES, GateConfig(NAMES, 0.01, 16, size, "trained"), network)


def full(model: MixedModel, gate: Gate, prompt: str) -> Tensor:
    """What re-embedding the whole prompt with the plain transformers model gives."""
    return gate.weights(reference_embedding(model.base.model, model.base.tokenizer, prompt))


def full_batch(model: MixedModel, gate: Gate, prompts: list[str]) -> Tensor:
    """The same for several prompts at once [n, N]: padded on the right, where a causal model does not look."""
    ids = [model.base.tokenizer(text, truncation=True, max_length=LIMIT)["input_ids"] for text in prompts]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        hidden = model.base.decoder(input_ids=padded, use_cache=False).last_hidden_state.double()
    means = torch.stack([states[: len(row)].mean(dim=0) for states, row in zip(hidden, ids, strict=True)])
    return gate.weights(means.float())


def start(chance: random.Random, sentences: int) -> str:
    """What a script begins with: mostly a few words, now and then about the `sentences` that are read at most."""
    if chance.random() < 0.96:
        return "".join(chance.choice(WORDS) for _ in range(chance.randint(0, 12)))
    return SENTENCE * chance.randint(sentences - 1, sentences + 1) + chance.choice(WORDS)


def edited(text: str, chance: random.Random) -> str:
    """One thing a person does to a prompt."""
    place, action = chance.randint(0, len(text)), chance.random()
    if action < 0.4:
        return text + chance.choice(WORDS)
    if action < 0.6:
        return text[: max(0, len(text) - chance.randint(1, 6))]
    if action < 0.75:
        return text[:place] + chance.choice(WORDS) + text[place:]
    if action < 0.9:
        return text[:place] + text[place + chance.randint(1, 8) :]
    if action < 0.95:
        return "".join(chance.choice(WORDS) for _ in range(chance.randint(0, 30)))
    return text + "".join(chance.choice(WORDS) for _ in range(chance.randint(5, 40)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_edit_scripts_equal_a_full_pass(
    model: MixedModel, make: Callable[[], PromptRouter], engine: Counting, seed: int
) -> None:
    """300 scripts of about eight edits per seed; every prompt on the way is compared, about 19,000 in all."""
    chance = random.Random(seed)
    router = make()
    assert router.gate is not None
    sentences = LIMIT // len(model.base.encode_raw(SENTENCE))
    compared = cut = whole = 0
    worst = 0.0
    for _ in range(300):
        text, prompts, found, spreads = start(chance, sentences), [], [], []
        for _ in range(chance.randint(4, 12)):
            if chance.random() < 0.05:  # overtaken by the next keystroke
                overtaken = router.route(edited(text, chance))
                next(overtaken, None)
                overtaken.close()
            text = edited(text, chance)
            result = run_to_end(router.route(text))
            if not text:
                assert result.mode == "uniform"
                continue
            prompts.append(text)
            found.append(list(result.weights.values()))
            spreads.append(result.entropy)
            cut += result.truncated
            whole += result.tokens
        if prompts:
            expected = full_batch(model, router.gate, prompts)
            worst = max(worst, float((torch.tensor(found) - expected).abs().max()))
            assert worst <= 1e-5, prompts
            assert spreads == pytest.approx(entropy(expected.double()).tolist(), abs=1e-4)
            compared += len(prompts)
    assert compared > 2200 and cut > 10
    assert engine.tokens < 0.6 * whole, "most tokens needed no forward pass"


def test_long_prompts_are_cut_as_the_tokenizer_cuts_them(
    model: MixedModel, make: Callable[[], PromptRouter], engine: Counting
) -> None:
    router = make()
    assert router.gate is not None
    text = "The harbour master counts the boats when the tide turns. " * 60
    steps: list[Progress] = []
    result = run_to_end(router.route(text), steps.append)
    assert (result.tokens, result.truncated) == (LIMIT, True)
    assert [step.done for step in steps] == [0, PIECE, 2 * PIECE, 3 * PIECE, LIMIT]
    assert list(result.weights.values()) == pytest.approx(full(model, router.gate, text).tolist(), abs=1e-5)
    before = engine.tokens
    again = run_to_end(router.route(text + " And more that nobody reads."))
    assert engine.tokens == before and again.weights == result.weights and again.reused == LIMIT


def test_a_hundred_thousand_characters_are_not_all_read(model: MixedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encode = model.base.encode_raw

    def counted(prompt: str, limit: int | None = 512) -> list[int]:
        read.append(len(prompt))
        return encode(prompt, limit)

    monkeypatch.setattr(model.base, "encode_raw", counted)
    router = PromptRouter(model.backbone, model.base, a_gate(model.base.hidden_size))
    text = "When the bell rings twice, the ladder stands behind the shed again.\n" * 1500
    result = run_to_end(router.route(text))
    assert len(text) > 100_000 and result.truncated and sum(read) < 20_000
    assert router.ids == tuple(model.base.tokenizer(text, truncation=True, max_length=512)["input_ids"])


def test_deleting_and_typing_the_same_again_run_nothing(make: Callable[[], PromptRouter], engine: Counting) -> None:
    router = make()
    text = "The harbour master counts the boats"
    whole = run_to_end(router.route(text))
    before = engine.tokens
    for length in (30, 18, 11):
        run_to_end(router.route(text[:length].rstrip()))
    ran = engine.tokens - before
    again = run_to_end(router.route(text))
    assert again.weights == whole.weights
    # Cutting inside a word may end in another token; whole words need no forward pass at all.
    assert ran <= 6
    before = engine.tokens
    for words in (5, 4, 3, 2, 1, 2, 3):
        run_to_end(router.route(" ".join(text.split()[:words])))
    assert engine.tokens - before <= 2


def test_an_append_runs_only_the_new_tokens(make: Callable[[], PromptRouter], engine: Counting) -> None:
    router = make()
    first = run_to_end(router.route("The harbour master counts"))
    before = engine.tokens
    second = run_to_end(router.route("The harbour master counts the boats"))
    assert engine.tokens - before == second.tokens - second.reused
    assert second.reused >= first.tokens - 1


def test_an_empty_prompt_and_no_gate_are_defined(model: MixedModel, make: Callable[[], PromptRouter]) -> None:
    empty = run_to_end(make().route("", explain=True))
    assert empty.weights == pytest.approx(dict.fromkeys(NAMES, 1 / 3)) and empty.mode == "uniform"
    assert empty.tokens == 0 and "empty" in empty.reason and empty.attributions == [] and empty.trajectory == []
    none = run_to_end(PromptRouter(model.backbone, model.base, None, ("a", "b")).route("hello"))
    assert none.weights == {"a": 0.5, "b": 0.5} and none.mode == "none" and none.tokens > 0
    uniform = Gate(NAMES, GateConfig(NAMES, 0.01, 16, 32, "uniform"))
    shared = run_to_end(PromptRouter(model.backbone, model.base, uniform).route("hello"))
    assert shared.mode == "uniform" and shared.normalised_entropy == pytest.approx(1.0)
    foreign = run_to_end(PromptRouter(model.backbone, model.base, a_gate(99)).route("hello"))
    assert set(foreign.weights.values()) == {1 / 3} and "99" in foreign.reason


def test_a_new_gate_keeps_the_embedding(model: MixedModel, make: Callable[[], PromptRouter], engine: Counting) -> None:
    router = make()
    run_to_end(router.route("Dear neighbour"))
    before = engine.tokens
    other = a_gate(model.base.hidden_size, seed=8)
    router.set_gate(other)
    result = run_to_end(router.route("Dear neighbour"))
    assert engine.tokens == before
    assert list(result.weights.values()) == pytest.approx(full(model, other, "Dear neighbour").tolist(), abs=1e-5)


def test_abandoned_and_interleaved_routes_leave_a_consistent_state(
    model: MixedModel, make: Callable[[], PromptRouter]
) -> None:
    router = make()
    assert router.gate is not None
    long = "The boats wait for the tide, and the tide waits for nobody. " * 30
    for stop_after in (1, 2, 3):
        work = router.route(long)
        for _ in range(stop_after):
            next(work)
        work.close()
        text = long[: 90 * stop_after] + " something else"
        result = run_to_end(router.route(text))
        assert list(result.weights.values()) == pytest.approx(full(model, router.gate, text).tolist(), abs=1e-5)
    older, newer = router.route(long), router.route("How do I bake bread?")
    next(older), next(older)
    quick = run_to_end(newer)
    slow = run_to_end(older)
    assert list(quick.weights.values()) == pytest.approx(
        full(model, router.gate, "How do I bake bread?").tolist(), abs=1e-5
    )
    assert list(slow.weights.values()) == pytest.approx(full(model, router.gate, long).tolist(), abs=1e-5)


def test_a_failing_forward_pass_is_forgotten(
    model: MixedModel, make: Callable[[], PromptRouter], engine: Counting
) -> None:
    router = make()
    assert router.gate is not None
    run_to_end(router.route("The harbour"))
    engine.fail = True
    with pytest.raises(RuntimeError):
        run_to_end(router.route("The harbour master"))
    engine.fail = False
    result = run_to_end(router.route("The harbour master counts"))
    expected = full(model, router.gate, "The harbour master counts")
    assert list(result.weights.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_explaining(model: MixedModel, make: Callable[[], PromptRouter]) -> None:
    router = make()
    gate = router.gate
    assert gate is not None
    prompt = "Grüße aus dem Café: 東京 and 🙂 plain words"
    result = run_to_end(router.route(prompt, explain=True))
    assert result.attributions is not None and result.trajectory is not None
    assert len(result.attributions) == len(result.trajectory) == result.tokens
    assert all(attribution.text == prompt[attribution.start : attribution.end] for attribution in result.attributions)
    assert result.trajectory[-1] == pytest.approx(result.weights, abs=1e-6)
    ids = model.base.encode_raw(prompt)
    with torch.no_grad():
        hidden = model.base.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    for length in (1, 5, len(ids)):
        prefix = gate.weights(hidden[:length].mean(dim=0)).tolist()
        assert list(result.trajectory[length - 1].values()) == pytest.approx(prefix, abs=1e-5)
    # The gradient by central differences in float64.
    mean, count = hidden.double().mean(dim=0), len(ids)
    network = seeded_network(model.base.hidden_size, 16, 3, 0).double()
    assert gate.network is not None
    network.load_state_dict(gate.network.state_dict())
    for token in (0, 7, count - 1):
        direction = (hidden[token].double() - mean) / (count - 1)
        with torch.no_grad():
            slope = (network(mean + 1e-4 * direction) - network(mean - 1e-4 * direction)) / 2e-4
        assert list(result.attributions[token].attribution.values()) == pytest.approx(slope.tolist(), abs=1e-5)


def test_the_ood_score_is_reported(model: MixedModel) -> None:
    prompts = [f"The boat {n} left the harbour." for n in range(12)]
    rows = torch.stack([reference_embedding(model.base.model, model.base.tokenizer, text) for text in prompts])
    gate = a_gate(model.base.hidden_size)
    known = Gate(gate.names, gate.config, gate.network, ood_score=fit_ood(rows, [0] * 12, 0))
    router = PromptRouter(model.backbone, model.base, known)
    own = [run_to_end(router.route(text)) for text in prompts]
    assert not any(result.is_ood for result in own)
    strange = run_to_end(router.route("🙂🙂🙂 ¶¶¶ 東東東 ????"))
    assert strange.is_ood and strange.ood_score == 1.0
    plain = run_to_end(PromptRouter(model.backbone, model.base, gate).route("hello"))
    assert plain.ood_score is None and not plain.is_ood


def test_surrogates_and_controls_are_only_text(model: MixedModel, make: Callable[[], PromptRouter]) -> None:
    result = run_to_end(make().route("a \ud800 b \x1b[31m \x00", explain=True))
    assert sum(result.weights.values()) == pytest.approx(1.0)
    assert result.attributions is not None and result.attributions[-1].end <= 15
