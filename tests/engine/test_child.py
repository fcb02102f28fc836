"""The real engine child, over its pipes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from dlm_tui.engine.client import EngineClient, EngineFailed, EngineGone
from dlm_tui.engine.protocol import (
    PROTOCOL,
    Cancel,
    Event,
    GateTrained,
    Generate,
    Generated,
    GetStatus,
    Open,
    Opened,
    Reload,
    Route,
    Routed,
    Score,
    Scored,
    Status,
    Stopped,
    Token,
    TrainGate,
    ViewDone,
    encode,
)
from dlm_tui.model.views import BASE, GATED, UNIFORM, View, custom, solo
from tests.engine.conftest import running
from tests.interop.peer_fixture import peer_root

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
EXPECTED = json.loads((peer_root() / "expected_gate.json").read_text())


async def collect(engine: EngineClient, request: Generate) -> list[Event]:
    return [event async for event in engine.stream(request)]


def texts(events: list[Event]) -> dict[str, str]:
    """Per view the text its tokens add up to."""
    found: dict[str, str] = {}
    for event in events:
        if isinstance(event, Token):
            found[event.view] = found.get(event.view, "") + event.text
    return found


async def test_hello_names_versions_and_the_first_answers_are_the_peers(engine: EngineClient) -> None:
    assert engine.hello is not None and engine.hello.protocol == PROTOCOL
    assert engine.hello.versions["torch"].startswith("2.")
    for row in EXPECTED["rows"][::5]:
        routed = await engine.ask(Route(prompt=row["prompt"]))
        assert isinstance(routed, Routed) and routed.mode == "trained"
        assert routed.weights == pytest.approx(row["weights"], abs=1e-5)
        assert routed.entropy == pytest.approx(row["entropy"], abs=1e-4)


async def test_explain_gives_pulls_for_every_token(engine: EngineClient) -> None:
    prompt = "Say hello to a new teammate."
    routed = await engine.ask(Route(prompt=prompt, explain=True))
    assert isinstance(routed, Routed) and routed.attributions and routed.trajectory
    assert len(routed.attributions) == len(routed.trajectory) == routed.tokens
    assert "".join(attribution.text for attribution in routed.attributions) == prompt
    assert routed.trajectory[-1] == pytest.approx(routed.weights, abs=1e-5)


async def test_views_stream_together_and_equal_each_view_alone(engine: EngineClient) -> None:
    views = [BASE, GATED, UNIFORM, solo("tone"), custom({"tone": -1.0, "style": 0.5})]
    together = await collect(engine, Generate(prompt="Wish my sister a happy birthday.", views=views, max_tokens=12))
    done = {event.view: event for event in together if isinstance(event, ViewDone)}
    assert set(done) == {view.name for view in views}
    streamed = texts(together)
    assert all(streamed.get(name, "") == event.text for name, event in done.items())
    assert isinstance(together[-1], Generated)
    assert done["gated"].mix == pytest.approx(together[-1].weights, abs=1e-6)
    for view in views:
        alone = await collect(engine, Generate(prompt="Wish my sister a happy birthday.", views=[view], max_tokens=12))
        assert [event.text for event in alone if isinstance(event, ViewDone)] == [done[view.name].text]


async def test_a_sample_is_what_its_seed_alone_gives(engine: EngineClient) -> None:
    """Also above a temperature of 0, for several views in one batch, with and without heat, around the seeds' end."""
    prompt, sampling = "Wish my sister a happy birthday.", {"max_tokens": 12, "temperature": 1.3, "top_p": 0.95}

    async def ask(views: list[View], samples: int, seed: int, heat: bool) -> list[ViewDone]:
        request = Generate(prompt=prompt, views=views, samples=samples, seed=seed, heat=heat, **sampling)  # type: ignore[arg-type]
        events = await collect(engine, request)
        done = [event for event in events if isinstance(event, ViewDone)]
        for end in done:
            mine = [e for e in events if isinstance(e, Token) and (e.view, e.sample) == (end.view, end.sample)]
            assert "".join(event.text for event in mine) == end.text
            assert sum(len(event.token_ids) for event in mine) == end.tokens
        return done

    views = [GATED, solo("tone")]
    for seed, heat in ((5, False), (5, True), (2**32 - 2, False)):
        together = await ask(views, 4, seed, heat)
        assert [(end.view, end.sample) for end in together] == [(v.name, k) for v in views for k in range(4)]
        assert [end.seed for end in together] == [(seed + k) % 2**32 for k in range(4)] * 2
        assert len({end.text for end in together}) > 4, "other seeds, other answers"
        for end in together:
            view = next(view for view in views if view.name == end.view)
            (alone,) = await ask([view], 1, end.seed, heat)
            assert (alone.text, alone.tokens, alone.reason) == (end.text, end.tokens, end.reason)
    with pytest.raises(EngineFailed, match="at least 1 sample"):
        await engine.ask(Generate(prompt=prompt, views=views, samples=0))


async def test_null_views_answer_as_random_adapters(engine: EngineClient) -> None:
    nulls = [View(name=f"null {seed}", kind="null", seed=seed) for seed in (1, 2)]
    prompt = "Cheer me up after a long day."

    async def ask(*views: View) -> dict[str, str]:
        events = await collect(engine, Generate(prompt=prompt, views=list(views), max_tokens=12, heat=True))
        heats[views] = [event.heat for event in events if isinstance(event, Token)]
        return {event.view: event.text for event in events if isinstance(event, ViewDone)}

    heats: dict[tuple[View, ...], list[float | None]] = {}
    together = await ask(BASE, *nulls, solo("style"))
    for view in (*nulls, solo("style")):
        assert (await ask(view))[view.name] == together[view.name]
    assert any(heats[(nulls[0],)]), "a null row is not the base"


async def test_the_engine_tells_about_itself(engine: EngineClient) -> None:
    await engine.ask(Route(prompt="Tell me about yourself."))
    status = await engine.ask(GetStatus())
    assert isinstance(status, Status)
    assert (status.threads, status.tier, status.device, status.dtype) == (1, "fused", "cpu", "float32")
    assert status.rss > status.cache > 0 and status.uptime > 0


async def test_a_keystroke_is_answered_while_an_answer_streams(engine: EngineClient) -> None:
    order: list[str] = []
    started = asyncio.Event()
    request = Generate(prompt="Tell me more.", views=[BASE, UNIFORM], max_tokens=1500)

    async def answer() -> None:
        async for event in engine.stream(request):
            if isinstance(event, Token):
                started.set()
                order.append("token")
        order.append("answered")

    running = asyncio.create_task(answer())
    await started.wait()
    routed = await engine.ask(Route(prompt="Say hello"))
    order.append("routed")
    assert isinstance(routed, Routed)
    await engine.cancel(request)
    await running
    assert order.index("routed") < order.index("answered")


async def test_only_the_newest_keystroke_is_answered(engine: EngineClient) -> None:
    prompts = ["word " * count for count in range(40, 60)]
    answers = await asyncio.gather(*(engine.ask(Route(prompt=prompt)) for prompt in prompts))
    assert isinstance(answers[-1], Routed) and answers[-1].prompt == prompts[-1]
    overtaken = [answer for answer in answers if isinstance(answer, Stopped)]
    assert overtaken and all(answer.reason == "superseded" for answer in overtaken)


async def test_generation_stops_when_asked(engine: EngineClient) -> None:
    request = Generate(prompt="Go on.", views=[BASE, UNIFORM, GATED], max_tokens=1500)
    events: list[Event] = []
    async for event in engine.stream(request):
        events.append(event)
        if len(events) == 3:
            await engine.cancel(request)
    assert isinstance(events[-1], Stopped) and events[-1].reason == "cancelled"
    assert isinstance(await engine.ask(GetStatus()), Status)


async def test_scores_come_with_their_null_distribution(engine: EngineClient) -> None:
    scored = await engine.ask(Score(prompt="Thank a friend.", views=[BASE, solo("tone")], completion="Thanks", nulls=4))
    assert isinstance(scored, Scored)
    by_view = {score.view: score for score in scored.views}
    assert by_view["base"].kl == 0.0 and by_view["tone"].kl > 0.0
    assert by_view["tone"].logprob is not None and scored.null_std is not None


async def test_the_gate_retrains_in_place_and_is_used_at_once(engine: EngineClient, routed: Open) -> None:
    before = await engine.ask(Route(prompt="Say hello"))
    trained = await engine.ask(TrainGate())
    assert isinstance(trained, GateTrained) and trained.mode == "trained", trained
    after = await engine.ask(Route(prompt="Say hello"))
    assert isinstance(before, Routed) and isinstance(after, Routed)
    assert before.weights != after.weights


async def test_errors_are_sentences_and_the_engine_lives_on(engine: EngineClient, routed: Open, tmp_path: Path) -> None:
    broken = tmp_path / "broken.dlm"
    broken.write_text("no frontmatter")
    with pytest.raises(EngineFailed, match=r"broken\.dlm:1:1") as failed:
        await engine.ask(Open(document=str(broken), home=routed.home, base=routed.base))
    assert failed.value.kind == "FrontmatterError"
    with pytest.raises(EngineFailed, match="no trained adapter is called 'nobody'"):
        await engine.ask(Generate(prompt="x", views=[solo("nobody")]))
    assert isinstance(await engine.ask(Reload()), Opened)
    assert isinstance(await engine.ask(Route(prompt="still here")), Routed)


async def test_nothing_open_is_an_error_not_a_crash() -> None:
    client = EngineClient(threads=1)
    await client.start()
    try:
        with pytest.raises(EngineFailed, match="no document is open"):
            await client.ask(Route(prompt="x"))
    finally:
        await client.close()


async def test_answers_in_bfloat16_leave_the_gate_in_float32(routed: Open) -> None:
    request = Open(document=routed.document, home=routed.home, base=routed.base, dtype="bfloat16")
    async with running(request) as engine:
        row = EXPECTED["rows"][0]
        answer = await collect(engine, Generate(prompt=row["prompt"], views=[GATED, solo("tone")], max_tokens=8))
        assert {event.view for event in answer if isinstance(event, ViewDone) and event.tokens} == {"gated", "tone"}
        weights = await engine.ask(Route(prompt=row["prompt"]))
        status = await engine.ask(GetStatus())
        assert isinstance(status, Status) and status.dtype == "bfloat16"
    async with running(routed) as plain:
        expected = await plain.ask(Route(prompt=row["prompt"]))
    assert isinstance(weights, Routed) and isinstance(expected, Routed)
    assert weights.weights == pytest.approx(expected.weights, abs=1e-6)


async def test_a_killed_engine_is_told(routed: Open) -> None:
    async with running(routed) as engine:
        stream = engine.stream(Generate(prompt="Go on.", views=[BASE], max_tokens=1500))
        await anext(stream)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineGone, match="SIGKILL"):
            async for _ in stream:
                pass
        assert (await engine.wait_exit()).signal == "SIGKILL"
        with pytest.raises(EngineGone):
            await engine.ask(GetStatus())


async def test_closing_ends_the_child(routed: Open) -> None:
    client = EngineClient(threads=1)
    await client.start()
    await client.ask(routed)
    await client.close()
    info = await client.wait_exit()
    assert info.code == 0


async def test_lines_that_are_no_requests_are_logged_and_skipped(engine: EngineClient) -> None:
    process = engine._process
    assert process is not None and process.stdin is not None
    process.stdin.write(b'{"type": "nonsense"}\nnot json\n' + encode(Cancel(target=12345)))
    assert isinstance(await engine.ask(GetStatus()), Status)
    assert any("unreadable request" in line for line in engine.log)
