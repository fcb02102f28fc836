"""Batched decoding: every row as if it were alone, streamed without half characters, stopped and seeded by itself."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from dlm_tui.errors import UsageError
from dlm_tui.model.base import Base
from dlm_tui.model.generation import Generated, GenerationEvent, generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.prefix_reuse import PIECE
from dlm_tui.model.sampling import Sampling
from dlm_tui.model.streaming import TextStream
from dlm_tui.progress import Progress, run_to_end
from tests.tiny_models import random_adapter, target_names, tiny_base, tiny_tokenizer

ROWS: list[dict[str, float]] = [{}, {"x": 1.0}, {"y": 1.0}, {"x": 0.5, "y": 0.5}, {"x": -1.0, "y": 0.25}, {}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"), seed=4)


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "reference"])
def model(base: Base, request: pytest.FixtureRequest) -> MixedModel:
    adapters = {
        "x": random_adapter(base, "x"),
        "y": random_adapter(base, "y", rank=2, seed=1, targets=target_names(base)[1::2]),
    }
    return MixedModel(base, adapters, fast=request.param)


def run(
    generator: Generator[Progress | GenerationEvent, None, list[Generated]],
) -> tuple[list[Progress | GenerationEvent], list[Generated]]:
    events: list[Progress | GenerationEvent] = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as stop:
            return events, stop.value


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=24), Sampling(24, 1.2, 0.9, seed=7)], ids=["greedy", "drawn"])
def test_a_row_in_a_batch_is_the_row_alone(model: MixedModel, sampling: Sampling) -> None:
    prompt = model.base.chat("Where is the ladder?")
    together = run_to_end(generate(model, prompt, ROWS, sampling))
    for row, answer in zip(ROWS, together, strict=True):
        alone = run_to_end(generate(model, prompt, [row], sampling))[0]
        assert (answer.token_ids, answer.text, answer.reason) == (alone.token_ids, alone.text, alone.reason)
    assert len({answer.text for answer in together}) >= 4
    assert together[0].text == together[5].text


def test_the_base_row_is_what_the_library_generates(model: MixedModel) -> None:
    prompt = model.base.chat("Where is the ladder?")
    found = run_to_end(generate(model, prompt, [{}, {"x": 1.0}], Sampling(max_tokens=20), stop_ids=()))
    settings = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=2)
    wanted = model.base.model.generate(torch.tensor([prompt]), generation_config=settings)  # type: ignore[operator]
    assert found[0].token_ids == wanted[0, len(prompt) :].tolist()


def test_different_prompts_each_with_its_own_mix(model: MixedModel) -> None:
    prompts = [model.base.chat(text) for text in ("Hi", "How do I bake bread with rye flour?", "The bell " * 40)]
    assert len({len(prompt) for prompt in prompts}) == 3
    assert len(prompts[2]) > PIECE
    together = run_to_end(generate(model, prompts, ROWS[1:4], Sampling(max_tokens=12)))
    for prompt, row, answer in zip(prompts, ROWS[1:4], together, strict=True):
        assert run_to_end(generate(model, prompt, [row], Sampling(max_tokens=12)))[0].token_ids == answer.token_ids


def test_events_are_the_text_and_its_log_probabilities(model: MixedModel) -> None:
    prompt = model.base.chat("Dear neighbour")
    events, answers = run(generate(model, prompt, ROWS, Sampling(max_tokens=10, temperature=1.0), heat=True))
    tokens = [event for event in events if isinstance(event, GenerationEvent)]
    for row, (mix, answer) in enumerate(zip(ROWS, answers, strict=True)):
        mine = [event for event in tokens if event.row == row]
        assert [event.done for event in mine] == [False] * (len(mine) - 1) + [True]
        assert "".join(event.text_delta for event in mine) == answer.text
        assert mine[-1].reason == answer.reason
        ids = [event.token_id for event in mine]
        assert ids[: len(answer.token_ids)] == answer.token_ids
        for field, coefficients in (("logprob", model.coefficients(mix)), ("base_logprob", torch.zeros(2))):
            wanted = score(model, prompt, ids, coefficients)
            found = torch.tensor([getattr(event, field) for event in mine], dtype=torch.float64)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def score(model: MixedModel, prompt: list[int], ids: list[int], coefficients: Tensor) -> Tensor:
    hidden = model.reference.forward(torch.tensor([prompt + ids[:-1]]), None, coefficients[None])
    logprobs = model.reference.logits(hidden[0, len(prompt) - 1 :]).double().log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_rows_stop_by_themselves(model: MixedModel) -> None:
    prompt = model.base.chat("Where is the ladder?")
    free = run_to_end(generate(model, prompt, ROWS, Sampling(max_tokens=16), stop_ids=()))
    stop = free[1].token_ids[3]
    stopped = run_to_end(generate(model, prompt, ROWS, Sampling(max_tokens=16), stop_ids={stop}))
    for before, after in zip(free, stopped, strict=True):
        cut = before.token_ids.index(stop) if stop in before.token_ids else 16
        assert after.token_ids == before.token_ids[:cut]
        assert after.reason == ("stop" if cut < 16 else "length")
    assert len({len(answer.token_ids) for answer in stopped}) > 1


def test_seeds_are_per_row(model: MixedModel) -> None:
    prompt = model.base.chat("Where?")
    sampling = Sampling(max_tokens=12, temperature=1.5)
    one, two, again = run_to_end(generate(model, prompt, [{}] * 3, sampling, seeds=[1, 2, 1]))
    assert one.token_ids == again.token_ids != two.token_ids
    other = run_to_end(generate(model, prompt, [{}], Sampling(12, 1.5, seed=2)))[0]
    assert other.token_ids == two.token_ids


def test_draws_follow_the_distribution(base: Base) -> None:
    model = MixedModel(base, {})
    prompt = base.chat("Where?")
    sampling = Sampling(max_tokens=1, temperature=0.7, top_p=0.8)
    answers = run_to_end(generate(model, prompt, [{}] * 3000, sampling, seeds=range(3000), stop_ids=()))
    counts = torch.zeros(base.vocab_size)
    for answer in answers:
        counts[answer.token_ids[0]] += 1
    logits = model.reference.logits(model.reference.forward(torch.tensor([prompt])))[0, -1].double()
    wanted, order = (logits / 0.7).softmax(-1).sort(descending=True)
    size = int((wanted.cumsum(0) < 0.8).sum()) + 1
    nucleus = wanted[:size] / wanted[:size].sum()
    assert set(counts.nonzero().flatten().tolist()) <= set(order[:size].tolist())
    found = counts[order[:size]] / 3000
    spread = (nucleus * (1 - nucleus) / 3000).sqrt()
    assert bool(((found - nucleus).abs() <= 5 * spread + 1e-3).all())


def test_long_prompts_report_progress_and_can_be_stopped(model: MixedModel) -> None:
    prompt = [5 + n % 200 for n in range(200)]
    events, _ = run(generate(model, prompt, ROWS, Sampling(max_tokens=2)))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in progress] == [(0, 200), (128, 200), (200, 200)]
    generator = generate(model, prompt, ROWS, Sampling(max_tokens=50))
    next(generator)
    generator.close()
    assert next(generator, None) is None


def test_the_context_is_a_limit(model: MixedModel) -> None:
    prompt = [5] * 250
    answer = run_to_end(generate(model, prompt, [{"x": 1.0}], Sampling(max_tokens=50), stop_ids=()))[0]
    assert (len(answer.token_ids), answer.reason) == (6, "context")
    with pytest.raises(UsageError, match="300 tokens"):
        run_to_end(generate(model, [5] * 300, [{}], Sampling()))


@pytest.mark.parametrize(
    ("prompt", "rows", "says"),
    [([], [{}], "empty"), ([5], [], "no view"), ([[5], [6]], [{}], "2 prompts"), ([5], [{"q": 1.0}], "'q'")],
)
def test_requests_that_make_no_sense(
    model: MixedModel, prompt: Sequence[Any], rows: list[Mapping[str, float]], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        run_to_end(generate(model, prompt, rows, Sampling()))


@pytest.mark.parametrize(
    "settings",
    [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_sampling_outside_its_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**settings)


def test_extra_columns_are_asked_with_a_vector(base: Base) -> None:
    model = MixedModel(base, {"x": random_adapter(base, "x")})
    extra = random_adapter(base, "null", seed=5)
    prompt = base.chat("Where?")
    with model.with_extra([extra]) as wider:
        rows: list[Mapping[str, float] | Tensor] = [{"x": 1.0}, torch.tensor([0.0, 1.0])]
        both = run_to_end(generate(model, prompt, rows, Sampling(max_tokens=8), backbone=wider))
    assert both[0].token_ids == run_to_end(generate(model, prompt, [{"x": 1.0}], Sampling(max_tokens=8)))[0].token_ids
    null = MixedModel(base, {"null": extra})
    assert both[1].token_ids == run_to_end(generate(null, prompt, [{"null": 1.0}], Sampling(max_tokens=8)))[0].token_ids


@pytest.mark.parametrize("text", ["plain words", "Grüße, 東京 🙂!", "👩‍👩‍👧 family", "[bold]\x1b[31m", ""])
def test_streams_never_show_half_a_character(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    assert stream.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_text_cut_inside_a_character_says_so() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("ab東")["input_ids"][:-1]
    stream = TextStream(tokenizer)
    shown = "".join(stream.push(token) for token in ids)
    assert shown == "ab"
    assert shown + stream.finish() == tokenizer.decode(ids) == stream.text


def test_random_bytes_stream_to_the_decoded_whole() -> None:
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(3, len(tokenizer), (30,), generator=generator).tolist()
        stream = TextStream(tokenizer)
        for token in ids:
            stream.push(token)
        stream.finish()
        assert stream.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_asking_the_same_again_needs_no_prefill(tmp_path: Path) -> None:
    model = MixedModel(base := tiny_base(tmp_path / "base"), {"one": random_adapter(base, "one")})
    ids = base.chat("Where is the ladder?")
    rows: list[dict[str, float]] = [{}, {"one": 1.0}, {"one": -0.5}]

    def ask(prompt: list[int], sampling: Sampling) -> tuple[int, list[str]]:
        pieces: list[object] = []
        work = generate(model, prompt, rows, sampling)
        try:
            while True:
                step = next(work)
                if isinstance(step, Progress):
                    pieces.append(step)
        except StopIteration as finished:
            return len(pieces), [answer.text for answer in finished.value]

    greedy = Sampling(max_tokens=12)
    first = ask(ids, greedy)
    assert first[0] > 0
    again = ask(ids, greedy)
    assert again == (0, first[1])
    warm = ask(ids, Sampling(max_tokens=40, temperature=1.0, seed=5))
    assert warm[0] == 0
    model.swap("one", random_adapter(base, "one", seed=0))
    fresh = ask(ids, Sampling(max_tokens=40, temperature=1.0, seed=5))
    assert fresh[0] > 0 and fresh[1] == warm[1]
    assert ask([*ids, ids[0]], greedy)[0] > 0
