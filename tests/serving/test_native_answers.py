"""What the native server answers: the workbench's own text and numbers, alone and among neighbours."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.errors import UsageError
from dlm_tui.model import Sampling
from dlm_tui.model.generation import generate
from dlm_tui.model.views import GATED, STATIC, UNIFORM, View, custom, solo
from dlm_tui.progress import run_to_end
from dlm_tui.serving import views
from dlm_tui.serving.native.backend import NativeBackend
from dlm_tui.serving.views import Models
from dlm_tui.session import Session
from tests.serving.conftest import open_again
from tests.serving.running import Running, serving, until

PROMPTS = (
    "How deep is the harbour?",
    "Say hello kindly.",
    "Write it as a poem, please, and do not hurry.",
    "When does the tide turn? " * 3,
    "Grüße aus dem Café 🙂",
)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def expected(session: Session, prompt: str, view: View, **sampling: Any) -> tuple[dict[str, float], str]:
    """The mix and the text that `dlm-tui prompt` gives."""
    routed = run_to_end(session.router.route(prompt)) if view.kind == "gated" else None
    mix = session.mix_of(view, routed.weights if routed else None)
    tokens = session.base.chat(prompt, session.document.system_prompt)
    return mix, run_to_end(generate(session.model, tokens, [mix], Sampling(**sampling)))[0].text


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    ("model", "view"),
    [
        ("gated", GATED),
        ("base", View(name="base", kind="base")),
        ("uniform", UNIFORM),
        ("static", STATIC),
        ("facts", solo("facts")),
        ("adapter:tone", solo("tone")),
        ("mix:tone:0.7,facts:-0.2", custom({"tone": 0.7, "facts": -0.2})),
    ],
)
def test_a_request_asked_alone_gives_the_text_of_prompt(
    running: Running, workbench: Session, prompt: str, model: str, view: View
) -> None:
    mix, text = expected(workbench, prompt, view, max_tokens=24, temperature=0.8, top_p=0.9, seed=11)
    answer = running.client().chat.completions.create(
        model=model, messages=user(prompt), max_tokens=24, temperature=0.8, top_p=0.9, seed=11
    )
    assert answer.choices[0].message.content == text
    assert answer.model_extra is not None
    assert answer.model_extra["dlm"]["weights"] == pytest.approx(mix, abs=1e-6)


def test_the_documents_settings_are_the_defaults(running: Running, workbench: Session) -> None:
    # the document says temperature 0.3 and has a system prompt
    _, text = expected(workbench, PROMPTS[0], GATED, max_tokens=20, temperature=0.3, seed=5)
    answer = running.client().chat.completions.create(model="gated", messages=user(PROMPTS[0]), max_tokens=20, seed=5)
    assert answer.choices[0].message.content == text


def test_streamed_pieces_make_the_same_text_and_the_last_event_tells_the_weights(running: Running) -> None:
    asked: dict[str, Any] = {"model": "gated", "messages": user(PROMPTS[1]), "max_tokens": 30, "seed": 3}
    whole = running.client().chat.completions.create(**asked)
    with running.client().chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        header = response.headers["x-dlm-weights"]
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    parsed = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in parsed)
    assert text == whole.choices[0].message.content
    assert [("dlm" in event) for event in parsed] == [False] * (len(parsed) - 1) + [True]
    weights = parsed[-1]["dlm"]["weights"]
    assert header == ",".join(f"{name}:{weight!r}" for name, weight in weights.items())
    assert parsed[-1]["dlm"]["mode"] == "trained"
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-5)


def test_usage_comes_last_when_it_is_asked_for(running: Running) -> None:
    events = list(
        running.client().chat.completions.create(
            model="base",
            messages=user(PROMPTS[0]),
            max_tokens=7,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 7
    assert "dlm" in (events[-1].model_extra or {})


def test_several_choices_draw_differently_and_the_first_is_that_of_one(running: Running) -> None:
    asked: dict[str, Any] = {"model": "uniform", "messages": user(PROMPTS[2]), "max_tokens": 16, "temperature": 1.0}
    alone = running.client().chat.completions.create(**asked, seed=40)
    three = running.client().chat.completions.create(**asked, seed=40, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) == 3
    second = running.client().chat.completions.create(**asked, seed=41)
    assert second.choices[0].message.content == texts[1]


def test_a_stop_sequence_ends_the_text_before_it_however_it_is_split(running: Running) -> None:
    asked: dict[str, Any] = {"model": "tone", "messages": user(PROMPTS[0]), "max_tokens": 40, "temperature": 0}
    text = running.client().chat.completions.create(**asked).choices[0].message.content
    assert text and len(text) > 20
    stop = text[9:14]
    stopped = running.client().chat.completions.create(**asked, stop=[stop, "never said"]).choices[0]
    assert stopped.message.content == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    pieces = running.client().chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in pieces) == text[: text.index(stop)]
    until(lambda: running.backend.load.running == 0)


def test_raw_completions_with_text_and_with_token_ids(running: Running, workbench: Session) -> None:
    prompt = "The harbour master counts"
    ids = workbench.base.encode_raw(prompt, limit=None)
    mix = workbench.mix_of(solo("facts"), None)
    wanted = run_to_end(generate(workbench.model, ids, [mix], Sampling(max_tokens=12, temperature=0.0)))[0].text
    client = running.client()
    for given in (prompt, ids, [prompt]):
        answer = client.completions.create(model="facts", prompt=given, max_tokens=12, temperature=0)
        assert answer.choices[0].text == wanted
        assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)


def teacher_forced(session: Session, prompt: list[int], said: list[int], mix: dict[str, float]) -> torch.Tensor:
    """log p [T, V] of every token after the prompt, in one pass over all of it, in nats."""
    ids = torch.tensor([[*prompt, *said]])
    hidden = session.model.backbone.forward(ids, None, session.model.coefficients(mix)[None])
    logits = session.model.backbone.logits(hidden[0, len(prompt) - 1 : -1])
    return torch.log_softmax(logits.double(), dim=-1)


def test_among_neighbours_log_probabilities_are_those_of_the_workbench(running: Running, workbench: Session) -> None:
    """Eight requests with eight mixes at once, then every token scored offline under the same mix."""
    models = ["gated", "base", "uniform", "tone", "facts", "style", "mix:tone:0.5,style:0.5", "mix:facts:1.2,tone:-0.4"]
    barrier = threading.Barrier(len(models))

    def ask(place: int) -> Any:
        barrier.wait()
        return running.client().completions.create(
            model=models[place],
            prompt=PROMPTS[place % len(PROMPTS)],
            max_tokens=40 + place,
            temperature=0.9,
            seed=place,
            logprobs=5,
        )

    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(pool.map(ask, range(len(models))))
    worst = 0.0
    for place, answer in enumerate(answers):
        told = answer.choices[0].logprobs
        assert told is not None and told.tokens and told.token_logprobs
        prompt = workbench.base.encode_raw(PROMPTS[place % len(PROMPTS)], limit=None)
        mix = answer.model_extra["dlm"]["weights"]
        # a token's text does not always name it, so the workbench draws the same tokens again
        said = replay(workbench, prompt, mix, place, len(told.tokens))
        assert [workbench.base.tokenizer.decode([token]) for token in said] == told.tokens
        scored = teacher_forced(workbench, prompt, said, mix)
        for row, (token, logprob) in enumerate(zip(said, told.token_logprobs, strict=True)):
            worst = max(worst, abs(float(scored[row, token]) - logprob))
        assert len(told.top_logprobs[0]) <= 5
    assert worst < 1e-5


def greedy(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "The harbour", "max_tokens": 24, "temperature": 0, "logprobs": 1}


def test_a_token_is_where_its_text_is_also_behind_what_is_held_back(running: Running) -> None:
    asked = greedy("base")
    plain = running.client().completions.create(**asked).choices[0]
    assert plain.logprobs is not None and plain.logprobs.tokens and plain.logprobs.text_offset
    whole, places = plain.text, plain.logprobs.text_offset
    # held back from its first letter on, and never whole
    stops = [f"{text.strip()[:1]}\u2603" for text in plain.logprobs.tokens if text.strip()][:4]
    held = running.client().completions.create(**asked, stop=stops).choices[0]
    assert held.text == whole and held.logprobs is not None and held.logprobs.text_offset == places


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_stop_sequence_are_not_told(running: Running, stream: bool) -> None:
    asked = greedy("tone")
    plain = running.client().completions.create(**asked).choices[0]
    assert plain.logprobs is not None and plain.logprobs.tokens and plain.logprobs.text_offset
    places = plain.logprobs.text_offset
    # a stop of several tokens that begins with one, and one that begins inside of it
    first = next(place for place in places if place >= 4 and plain.text.index(plain.text[place : place + 6]) == place)
    for begin in (first, first + 1):
        stop = plain.text[begin : begin + 5]
        cut = plain.text.index(stop)
        kept = [place for place in places if place < cut]
        if stream:
            events = list(running.client().completions.create(**asked, stop=stop, stream=True))
            told = [place for event in events if (one := event.choices[0].logprobs) for place in one.text_offset or ()]
            said = [token for event in events if (one := event.choices[0].logprobs) for token in one.tokens or ()]
            text = "".join(event.choices[0].text for event in events)
        else:
            answer = running.client().completions.create(**asked, stop=stop).choices[0]
            assert answer.logprobs is not None
            told, said, text = answer.logprobs.text_offset or [], answer.logprobs.tokens or [], answer.text
        assert (text, told, said) == (plain.text[:cut], kept, plain.logprobs.tokens[: len(kept)])


def test_text_that_the_base_cannot_read_is_the_clients_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    base = running.backend._session.base
    monkeypatch.setattr(base, "_rows_suffice", False)
    monkeypatch.setattr(base, "_rows", 3)
    for path, body in (
        ("/v1/chat/completions", {"model": "base", "messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/completions", {"model": "base", "prompt": "Hello"}),
        ("/v1/route", {"input": "Hello"}),
    ):
        status, _, answer = running.post(path, body)
        assert status == 400 and "has no embedding for the token" in answer["error"]["message"], (path, answer)


def replay(session: Session, prompt: list[int], mix: dict[str, float], seed: int, count: int) -> list[int]:
    """The token ids that the workbench draws for the same request."""
    sampling = Sampling(max_tokens=count, temperature=0.9, seed=seed)
    return run_to_end(generate(session.model, prompt, [mix], sampling))[0].token_ids


def test_embeddings_and_routes_are_those_of_the_workbench(running: Running, workbench: Session) -> None:
    texts = list(PROMPTS)
    found = running.client().embeddings.create(model="base", input=texts)
    for text, item in zip(texts, found.data, strict=True):
        wanted = run_to_end(workbench.router.embed(text))
        assert torch.allclose(torch.tensor(item.embedding), wanted, atol=1e-6)
    status, _, routed = running.post("/v1/route", {"input": texts})
    assert status == 200
    for text, item in zip(texts, routed["data"], strict=True):
        result = run_to_end(workbench.router.route(text))
        assert item["weights"] == pytest.approx(result.weights, abs=1e-6)
        assert item["entropy"] == pytest.approx(result.entropy, abs=1e-5)
        assert item["mode"] == result.mode
    status, _, one = running.post("/v1/route", {"input": texts[0]})
    assert one["data"][0]["weights"] == routed["data"][0]["weights"]


def test_each_turn_of_a_conversation_is_routed_by_its_last_user_message(running: Running) -> None:
    turns = [*user(PROMPTS[0]), {"role": "assistant", "content": "Nine fathoms."}, *user(PROMPTS[1])]
    answer = running.client().chat.completions.create(model="gated", messages=turns, max_tokens=2)
    _, _, routed = running.post("/v1/route", {"input": PROMPTS[1]})
    assert (answer.model_extra or {})["dlm"]["weights"] == pytest.approx(routed["data"][0]["weights"], abs=1e-6)


def test_models_are_listed_and_unknown_ones_refused(running: Running) -> None:
    client = running.client()
    assert [model.id for model in client.models.list()] == [
        "gated", "base", "uniform", "static_mean", "tone", "facts", "style",
    ]  # fmt: skip
    assert client.models.retrieve("mix:tone:0.5").id == "mix:tone:0.5"
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.chat.completions.create(model="gpt-5", messages=user("x"))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="mix:tone:nan", messages=user("x"))
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.embeddings.create(model="gpt-5", input="x")
    assert client.embeddings.create(model="tone", input="x").data


def test_a_coefficient_beyond_a_hundred_is_refused(running: Running) -> None:
    for model, told in (("mix:tone:1e30", "1e+30"), ("mix:facts:1,tone:-100.5", "-100.5")):
        status, _, answer = running.post("/v1/chat/completions", {"model": model, "messages": user("x")})
        assert (status, answer["error"]["param"]) == (400, "model")
        assert answer["error"]["message"] == f"the coefficient of tone is {told}, and -100 to 100 are answered here"
    largest = {"model": "mix:tone:-100,facts:100", "messages": user("x"), "max_tokens": 2}
    assert running.post("/v1/chat/completions", largest)[0] == 200
    saved = Models(("tone", "facts"), lambda: {"loud": {"tone": 101.0}, "quiet": {"tone": 0.1}})
    assert saved.listed()[-1] == "mix:quiet" and "mix:loud" not in saved.listed()
    with pytest.raises(UsageError, match="-100 to 100"):
        saved.view("mix:loud")


def test_an_answer_whose_numbers_overflow_is_an_error_and_its_neighbours_go_on(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"messages": user(PROMPTS[0]), "max_tokens": 400, "temperature": 0}
    wanted = running.client().chat.completions.create(model="tone", **asked).choices[0].message.content
    monkeypatch.setattr(views, "LARGEST_COEFFICIENT", 1e38)
    stream = running.client().chat.completions.create(model="tone", **asked, stream=True)
    text = next(stream).choices[0].delta.content or ""
    for chances in ({"temperature": 0}, {"temperature": 1}, {"n": 2}):
        status, _, answer = running.post("/v1/chat/completions", {**asked, "model": "mix:tone:1e30", **chances})
        assert status == 500 and "overflowed under this mix" in answer["error"]["message"]
    assert text + "".join(event.choices[0].delta.content or "" for event in stream) == wanted
    until(lambda: running.backend.load.running == 0)


def test_many_mixed_requests_with_hang_ups_leave_nothing_behind(running: Running, workbench: Session) -> None:
    """Five hundred mixed requests by eight clients, a third hung up; every whole answer is the workbench's."""
    models = ["gated", "base", "uniform", "tone", "facts", "style", "mix:tone:0.6,facts:0.4"]
    views = {"gated": GATED, "uniform": UNIFORM, "base": View(name="base", kind="base")}

    def ask(number: int) -> None:
        chance = random.Random(number)
        model = chance.choice(models)
        prompt = chance.choice(PROMPTS)
        count = chance.randrange(1, 30)
        asked: dict[str, Any] = {
            "model": model, "messages": user(prompt), "max_tokens": count, "temperature": 0.7, "seed": number,
        }  # fmt: skip
        client = running.client()
        if chance.random() < 0.35:
            stream = client.chat.completions.create(**{**asked, "max_tokens": 1500}, stream=True)
            for _ in range(chance.randrange(4)):
                next(iter(stream), None)
            stream.close()
            return
        text = client.chat.completions.create(**asked).choices[0].message.content
        view = views.get(model) or (custom({"tone": 0.6, "facts": 0.4}) if ":" in model else solo(model))
        with lock:
            wanted = expected(workbench, prompt, view, max_tokens=count, temperature=0.7, seed=number)[1]
        assert text == wanted, (model, prompt)

    lock = threading.Lock()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(500)))
    until(lambda: running.backend.load.running == 0 and running.backend.load.waiting == 0)


def test_saved_mixes_are_models_of_their_own(served_folder: Path, workbench: Session) -> None:
    mixes = NamedMixes(served_folder / "doc.dlm")
    weights = {"tone": 0.7, "facts": -0.2}
    with serving(NativeBackend(open_again(served_folder)), mixes=mixes.load) as found:
        client = found.client()
        with pytest.raises(openai.NotFoundError, match="no mix is saved as 'quiet', nor under another name"):
            client.chat.completions.create(model="mix:quiet", messages=user("x"))
        mixes.save({"quiet": weights, "of-before": {"tone@1": 1.0}})
        listed = [model.id for model in client.models.list()]
        assert listed[-1] == "mix:quiet" and "mix:of-before" not in listed
        assert client.models.retrieve("mix:quiet").id == "mix:quiet"
        answer = client.chat.completions.create(
            model="mix:quiet", messages=user(PROMPTS[0]), max_tokens=24, temperature=0.8, top_p=0.9, seed=11
        )
        view = custom(weights)
        _, text = expected(workbench, PROMPTS[0], view, max_tokens=24, temperature=0.8, top_p=0.9, seed=11)
        assert answer.choices[0].message.content == text
        told = (answer.model_extra or {})["dlm"]
        assert told["view"] == "mix:quiet" and told["weights"] == weights
        with pytest.raises(openai.NotFoundError, match="uses tone@1"):
            client.chat.completions.create(model="mix:of-before", messages=user("x"))
        mixes.path.write_text("[]")
        with pytest.raises(openai.NotFoundError, match="does not hold named mixes"):
            client.chat.completions.create(model="mix:quiet", messages=user("x"))
        assert client.models.list().data[-1].id == "style", "all else is served on"
    mixes.path.unlink()


def test_the_usual_calls_of_the_openai_package_are_answered(running: Running) -> None:
    client = running.client()
    first = client.chat.completions.create(
        model="gated", messages=user(PROMPTS[0]), max_tokens=4, temperature=0, seed=3, n=1, top_p=1.0, stop=["\n\n\n"],
        frequency_penalty=0, presence_penalty=0, user="kim", store=False, metadata={"a": "b"}, service_tier="auto",
        parallel_tool_calls=False, tools=[], response_format={"type": "text"}, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    turns: list[Any] = [*user(PROMPTS[0]), first.choices[0].message.model_dump(), *user(PROMPTS[1])]
    events = client.chat.completions.create(
        model="gated", messages=turns, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    assert list(events)[-1].usage is not None
    assert client.completions.create(model="base", prompt="x", max_tokens=2, echo=False, best_of=1, suffix="").usage
    assert client.embeddings.create(model="base", input=["x"], encoding_format="float").data
    with pytest.raises(openai.BadRequestError, match="guided_json is not supported here"):
        client.chat.completions.create(
            model="gated", messages=user(PROMPTS[0]), max_tokens=4, extra_body={"guided_json": {"type": "object"}}
        )
