"""Rows come and go: hang-ups, fairness, a full queue, a new training, an engine that fails, the end."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from dlm_tui import session as session_module
from dlm_tui.cli.main import main
from dlm_tui.document.mix import format_mix
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate.training import train_document_gate
from dlm_tui.model import save_peft_adapter
from dlm_tui.model.prefix_reuse import PrefilledBatch, family
from dlm_tui.serving.backend import QueueFull
from dlm_tui.serving.fair_queue import FairQueue
from dlm_tui.serving.native import prefix_store
from dlm_tui.serving.native.backend import NativeBackend
from dlm_tui.serving.native.prefix_store import PrefixStore
from dlm_tui.serving.stops import StopFilter
from dlm_tui.serving.traffic import TrafficLog
from dlm_tui.store import commit_version, new_version
from tests.serving.conftest import open_again
from tests.serving.running import Running, serving, until
from tests.tiny_models import random_adapter

LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count the boats."}],
    "max_tokens": 1900,
    "temperature": 0,  # drawn tokens would sooner or later be the end, greedy ones go round in circles here
}
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}


@pytest.fixture
def own_folder(served_folder: Path, tmp_path: Path) -> Path:
    """A copy of what is served that a test may train."""
    shutil.copytree(served_folder, tmp_path / "own")
    return tmp_path / "own"


def test_a_hang_up_frees_its_row_within_one_step(served_folder: Path) -> None:
    backend = NativeBackend(open_again(served_folder))
    with serving(backend) as running:
        # what the scheduler is told, it does before its next step
        scheduler = backend._scheduler
        noticed: list[int] = []
        cancel = scheduler.cancel

        def noticing(job: Any) -> None:
            cancel(job)
            noticed.append(backend.load.steps)

        scheduler.cancel = noticing  # type: ignore[method-assign]
        body = json.dumps({**LONG, "model": "base", "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert connection.recv(64)
            until(lambda: backend.load.running == 1)
        until(lambda: backend.load.running == 0)
        until(lambda: bool(noticed))
        assert backend.load.steps <= noticed[0] + 1
        # and answers that are not streamed end the same way
        with pytest.raises(openai.APITimeoutError):
            running.client(timeout=0.2).chat.completions.create(model="base", **{**LONG, "n": 8})
        until(lambda: backend.load.running == 0)


def test_a_full_queue_says_so_and_everything_that_waits_is_answered(served_folder: Path) -> None:
    backend = NativeBackend(open_again(served_folder), rows=1, queue=3)
    with serving(backend) as running, ThreadPoolExecutor(8) as pool:
        first = running.client().chat.completions.create(model="base", **LONG, stream=True)
        until(lambda: backend.load.running == 1)
        waiting = [
            pool.submit(lambda: running.client().chat.completions.create(model="base", **SHORT)) for _ in range(3)
        ]
        until(lambda: backend.load.waiting == 3)
        with pytest.raises(openai.RateLimitError) as refused:
            running.client().chat.completions.create(model="base", **SHORT)
        assert refused.value.response.headers["retry-after"] == "1"
        first.close()
        assert all(one.result().choices[0].finish_reason for one in waiting)


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(10, len)
    for item in ("a1", "a2", "a3"):
        queue.put("a", item)
    queue.put("b", "b1")
    queue.put("c", "large-one")
    assert [queue.take(5), queue.take(5)] == ["a1", "b1"]
    assert queue.take(5) is None  # the large one is waited for
    assert [queue.take(9), queue.take(5), queue.take(5), queue.take(5)] == ["large-one", "a2", "a3", None]
    for number in range(10):
        queue.put("a", str(number))
    with pytest.raises(QueueFull):
        queue.put("b", "one too many")
    assert queue.remove("4") and not queue.remove("4") and len(queue) == 9
    assert queue.drain() == list("012356789") and len(queue) == 0


def test_stop_sequences_hold_back_only_what_may_be_their_beginning() -> None:
    stop = StopFilter(["###", "end"])
    assert [stop.push(piece) for piece in ("a#", "#b", "e", "x#", "##c")] == ["a", "##b", "", "ex", ""]
    assert stop.stopped and stop.push("more") == ""
    other = StopFilter(["xyz"])
    assert other.push("xy") == "" and other.finish() == "xy"


def put_in_force(folder: Path, seed: int) -> None:
    """Commit another version of one adapter."""
    session = open_again(folder)
    version = new_version(session.store, "facts")
    save_peft_adapter(
        random_adapter(session.base, "facts", seed=seed, size=0.2), version.path, session.base.identity.id
    )
    commit_version(session.store, version)


def test_a_new_version_is_taken_in_and_running_rows_finish_under_the_old_one(own_folder: Path) -> None:
    asked: dict[str, Any] = {**LONG, "model": "facts", "max_tokens": 1500}
    with serving(NativeBackend(open_again(own_folder))) as running:
        before = running.client().chat.completions.create(**asked).choices[0].message.content
        stream = running.client().chat.completions.create(**asked, stream=True)
        pieces = [next(stream).choices[0].delta.content or "" for _ in range(3)]
        generation = running.backend._scheduler._generation
        put_in_force(own_folder, 77)
        until(lambda: running.backend._scheduler._generation > generation)
        pieces += [event.choices[0].delta.content or "" for event in stream]
        assert "".join(pieces) == before
        after = running.client().chat.completions.create(**asked).choices[0].message.content
        assert after != before
    with serving(NativeBackend(open_again(own_folder))) as again:
        assert again.client().chat.completions.create(**asked).choices[0].message.content == after


def test_a_training_is_taken_in_whole_and_counted_once(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapters are in force long before its gate; another version in force is no training."""
    words = [str(own_folder / "doc.dlm"), "--home", str(own_folder / "home"), "--base", str(own_folder / "base")]
    backend = NativeBackend(open_again(own_folder))
    scheduler, modes = backend._scheduler, set[str]()
    reload = scheduler.session.reload

    def noted() -> Any:
        yield from reload()
        modes.add(scheduler.session.gate_status.mode)

    monkeypatch.setattr(scheduler.session, "reload", noted)
    trained = train_document_gate

    def patient(*given: Any, **options: Any) -> Any:
        generation, asked = scheduler._generation, scheduler._watch._asked
        until(lambda: scheduler._watch._asked > asked + 1)  # it has looked meanwhile
        assert scheduler._generation == generation, "adapters whose gate is still to come are not taken in"
        return trained(*given, **options)

    monkeypatch.setattr("dlm_tui.gate.training.train_document_gate", patient)
    with serving(backend):
        assert main(["train", *words]) == 0
        until(lambda: backend.load.reloads == 1)
        assert modes == {"trained"}
        generations = [scheduler._generation]
        for version in ("1", "2"):
            assert main(["adapter", "use", *words, "facts", "--version", version]) == 0
            until(lambda: scheduler._generation > generations[-1])
            generations.append(scheduler._generation)
    assert backend.load.reloads == 1


def test_a_document_in_the_middle_of_an_edit_changes_nothing(own_folder: Path) -> None:
    backend = NativeBackend(open_again(own_folder))
    with serving(backend) as running:
        whole = (own_folder / "doc.dlm").read_text(encoding="utf-8")
        (own_folder / "doc.dlm").write_text(whole[:40], encoding="utf-8")
        watch = backend._scheduler._watch
        seen = watch._seen
        until(lambda: watch._seen != seen)
        assert running.client().chat.completions.create(model="facts", **SHORT).choices[0].finish_reason
        generation = backend._scheduler._generation
        (own_folder / "doc.dlm").write_text(whole.replace('"brief"', "wordy"), encoding="utf-8")
        until(lambda: backend._scheduler._generation > generation)
        assert backend.load.reloads == 0, "a save is no training"


def test_an_engine_that_fails_tells_every_client(served_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NativeBackend(open_again(served_folder))
    with serving(backend) as running:
        stream = running.client().chat.completions.create(model="base", **LONG, stream=True)
        next(stream)

        def broken() -> None:
            raise MemoryError

        monkeypatch.setattr(backend._scheduler, "_decode", broken)
        with pytest.raises(openai.APIError, match="MemoryError"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="MemoryError; start the server again"):
            running.client().chat.completions.create(model="base", **SHORT)
        status, _, body = running.get("/health")
        assert status == 503 and json.loads(body)["status"] == "failed"


def test_a_request_that_cannot_be_run_ends_alone(served_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NativeBackend(open_again(served_folder))
    with serving(backend) as running:
        client, size = running.client(), backend._session.base.vocab_size
        for token in (size, 999_999_999, -1):
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model="base", prompt=[3, token], max_tokens=2)
        assert client.completions.create(model="base", prompt=[3, size - 1], max_tokens=2).usage
        prefill, stream = backend._scheduler._prefill, client.chat.completions.create(model="base", **LONG, stream=True)
        next(stream)

        def broken(*_: Any) -> Any:
            monkeypatch.setattr(backend._scheduler, "_prefill", prefill)
            raise RuntimeError("out of range")

        monkeypatch.setattr(backend._scheduler, "_prefill", broken)
        with pytest.raises(openai.InternalServerError, match="the engine failed: RuntimeError"):
            client.chat.completions.create(model="base", **SHORT)
        assert client.chat.completions.create(model="base", **SHORT).choices[0].finish_reason
        assert next(stream).choices[0].finish_reason is None
        stream.close()
        assert running.get("/health")[0] == 200


def test_a_router_in_use_while_a_training_is_taken_in_is_not_kept(served_folder: Path) -> None:
    scheduler = NativeBackend(open_again(served_folder))._scheduler
    kept = scheduler._routed("When does the tide turn?")
    for _ in kept:
        pass
    assert len(scheduler._routers) == 1
    routing = scheduler._routed("How deep is the harbour?")
    next(routing)
    scheduler._reload = iter(())  # type: ignore[assignment]  # one that is at its end
    scheduler._go_on_reloading()
    for _ in routing:
        pass
    assert scheduler._routers == []


def test_a_gate_that_cannot_be_used_is_told_at_the_start_in_answers_and_after_a_reload(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = open_again(own_folder).store.gate_dir / "gate.safetensors"
    whole = weights.read_bytes()
    backend = NativeBackend(open_again(own_folder))
    with serving(backend) as running:
        assert asyncio.run(backend.notes()) == []
        weights.write_bytes(whole[:100])
        until(lambda: bool(backend._scheduler.notes))
        (told,) = asyncio.run(backend.notes())
        assert str(weights) in told and told in capsys.readouterr().err
        item = running.post("/v1/route", {"input": "How deep is the harbour?"})[2]["data"][0]
        assert item["mode"] == "none" and item["reason"].startswith(told)
        document = own_folder / "doc.dlm"
        text = document.read_text(encoding="utf-8")
        document.write_text(re.sub(r"dlm_id: .*", "dlm_id: 01ARZ3NDEKTSV4RRFFQ69G5FAV", text), encoding="utf-8")
        until(lambda: backend.adapters == ())
        until(lambda: told not in backend._scheduler.notes)
        said = capsys.readouterr().err
        assert "No longer served: tone, facts, style.\n" in said and "No adapter is trained" in said


def test_a_store_that_is_taken_away_is_neither_begun_anew_nor_read_as_empty(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = NativeBackend(open_again(own_folder))
    root = backend._scheduler.session.store.root
    before = backend.adapters
    recorder = TrafficLog(backend._scheduler.session.store)
    with serving(backend, recorder=recorder) as running:
        generation = backend._scheduler._generation
        root.rename(root.with_name("away"))
        assert running.client().chat.completions.create(model="gated", **SHORT).model_extra["dlm"]["mode"] == "trained"
        until(lambda: backend._scheduler._generation > generation)
        until(lambda: recorder.dropped == 1)
        assert running.client().chat.completions.create(model="gated", **SHORT).model_extra["dlm"]["mode"] == "trained"
        assert not root.exists() and backend.adapters == before
        root.with_name("away").rename(root)
    said = capsys.readouterr().err
    assert f"the traffic is not recorded: {root / 'metrics.sqlite'} cannot be written: its folder is gone" in said
    assert f"dlm-tui serve: not taken in: {root} is gone: bring it back" in said
    assert "No longer served" not in said and "not trained" not in said


def test_a_reload_that_fails_half_way_leaves_nothing_of_before(
    served_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = NativeBackend(open_again(served_folder))._scheduler
    list(scheduler._routed("When does the tide turn?"))
    model = scheduler.session.model

    def unreadable(*_: Any) -> Any:
        raise DlmTuiError("the manifest cannot be read")

    monkeypatch.setattr(session_module, "_static", unreadable)
    scheduler.session.versions["facts"] = 0  # moved since, it seems
    before = model.backbone.mixer.adapters
    scheduler._reload = scheduler.session.reload()
    while scheduler._reload is not None:
        scheduler._go_on_reloading()
    assert "the manifest cannot be read" in capsys.readouterr().err
    assert scheduler._routers == [] and scheduler.reloads == 0
    assert model.backbone.mixer.adapters == before, "nothing was taken in by halves"


def test_route_header_and_answer_agree_on_what_is_applied(own_folder: Path) -> None:
    shutil.rmtree(open_again(own_folder).store.adapter_dir("style"))  # the gate knows it, and it is trained no more
    asked = {"model": "gated", "messages": [{"role": "user", "content": "How deep is the harbour?"}], "max_tokens": 2}
    with serving(NativeBackend(open_again(own_folder))) as running:
        item = running.post("/v1/route", {"input": "How deep is the harbour?"})[2]["data"][0]
        _, headers, answer = running.post("/v1/chat/completions", asked)
    told = answer["dlm"]
    assert set(told["weights"]) == {"tone", "facts"}
    assert told["weights"] == item["weights"]
    assert headers["x-dlm-weights"] == format_mix(item["weights"])
    # what is left is no distribution: no entropy is told for it
    assert (told["entropy"], item["entropy"], item["normalised_entropy"]) == (None, None, None)


def test_stopping_answers_everybody(served_folder: Path) -> None:
    backend = NativeBackend(open_again(served_folder), rows=1)
    with serving(backend) as running, ThreadPoolExecutor(2) as pool:
        stream = running.client().chat.completions.create(model="base", **LONG, stream=True)
        until(lambda: backend.load.running == 1)
        waiting = pool.submit(lambda: running.client().chat.completions.create(model="base", **SHORT))
        until(lambda: backend.load.waiting == 1)
        threading.Thread(target=backend.close).start()
        with pytest.raises(openai.APIError, match="stopping"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError):
            waiting.result()


def test_the_metrics_count_what_was_served(running: Running) -> None:
    running.client().chat.completions.create(model="gated", **SHORT)
    running.post("/v1/chat/completions", {"model": "nobody", **SHORT})
    text = running.get("/metrics")[2].decode()
    assert 'dlm_requests_total{route="/v1/chat/completions",status="404"}' in text
    assert 'dlm_gate_weight_total{adapter="facts"}' in text
    assert "dlm_time_to_first_token_seconds_count" in text
    assert "Count the boats" not in text
    told = [line for line in text.splitlines() if "dlm_gate" in line or "dlm_routed" in line or "dlm_out_of" in line]
    assert any(line.endswith("what /v1/route tells is none.") for line in told)
    running.post("/v1/route", {"input": "Hello"})
    after = running.get("/metrics")[2].decode().splitlines()
    assert [line for line in told if line not in after] == []


def test_what_begins_alike_under_the_same_mix_is_not_run_again(served_folder: Path) -> None:
    backend = NativeBackend(open_again(served_folder))
    asked = {"model": "mix:tone:0.5", "messages": [{"role": "user", "content": "Tell me of the harbour. " * 8}]}
    with serving(backend) as running:
        client = running.client()
        first = client.chat.completions.create(**asked, max_tokens=10, temperature=0)
        assert backend._scheduler._prefixes.reused_tokens == 0
        again = client.chat.completions.create(**asked, max_tokens=10, temperature=0)
        assert again.choices[0].message == first.choices[0].message
        assert first.usage is not None
        assert backend._scheduler._prefixes.reused_tokens == first.usage.prompt_tokens - 1
        other = {**asked, "model": "mix:tone:0.50001"}
        client.chat.completions.create(**other, max_tokens=10, temperature=0)
        assert backend._scheduler._prefixes.reused_tokens == first.usage.prompt_tokens - 1


def test_freed_memory_goes_back_to_the_system_while_rows_are_kept(
    served_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    store = PrefixStore(1 << 20)
    engine = open_again(served_folder).model.generation
    cache = engine.new_cache(1, 64)
    size = cache.nbytes
    monkeypatch.setattr(prefix_store, "give_back_freed", lambda: given.append(store.nbytes))
    monkeypatch.setattr(prefix_store, "GIVE_BACK_EVERY", 10 * size)
    for number in range(25):
        key = (tuple(range(number * 100, number * 100 + 20)), ())
        store.keep(PrefilledBatch(family(engine), (), (key,), engine.new_cache(1, 64), torch.zeros(1, 1)))
    assert given == [10 * size, 20 * size]


def test_the_context_is_bounded_as_it_was_asked(served_folder: Path) -> None:
    with serving(NativeBackend(open_again(served_folder), context_length=64)) as running:
        answer = running.client().completions.create(model="base", prompt="Tide.", max_tokens=500, temperature=1, n=8)
        assert answer.usage is not None
        # a drawn answer may end at once: how many do is chance, that all do is not
        assert any(choice.text for choice in answer.choices)
        assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
        assert answer.usage.completion_tokens <= 8 * (64 - answer.usage.prompt_tokens)
        with pytest.raises(UsageError, match="--context is at most 2048, what the base reads"):
            NativeBackend(open_again(served_folder), context_length=2049)
        with pytest.raises(openai.BadRequestError, match="64 are read here at most"):
            running.client().completions.create(model="base", prompt="Tide. " * 40)
