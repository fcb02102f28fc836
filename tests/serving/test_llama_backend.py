"""The live gate over llama.cpp: the workbench's weights and log-probabilities, and the folder that needs no torch."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

pytest.importorskip("xllamacpp", reason="the llama extra is not installed")

from dlm_tui.cli.main import main
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.export import ExportRefused, resolve_mix
from dlm_tui.export.live import runtime_modules
from dlm_tui.export.pipeline import destination
from dlm_tui.export.requests import ExportRequest
from dlm_tui.model import Sampling
from dlm_tui.model.generation import generate
from dlm_tui.model.views import BASE
from dlm_tui.progress import run_to_end
from dlm_tui.serving import views
from dlm_tui.serving.backend import Ask
from dlm_tui.serving.llama.backend import LlamaBackend
from dlm_tui.serving.llama.folder import LiveFolder
from dlm_tui.serving.llama.gate import NumpyGate
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.serving.running import Running, serving, until
from tests.serving.test_native_answers import PROMPTS, teacher_forced, user


@pytest.fixture(scope="module")
def live_folder(workbench: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `export --target llama-server --gate live` writes of the served document."""
    out = tmp_path_factory.mktemp("live") / "folder"
    return export(workbench, target="llama-server", quant="f32", gate="live", verify=False, out=str(out)).folder


@pytest.fixture(scope="module")
def llama(live_folder: Path) -> Iterator[Running]:
    with serving(LlamaBackend(LiveFolder(live_folder), threads=1)) as found:
        yield found


async def test_a_request_that_is_dropped_before_its_first_step_gives_its_seats_back(live_folder: Path) -> None:
    backend = LlamaBackend(LiveFolder(live_folder), rows=1)  # no engine: nothing gets that far
    for _ in range(3):
        backend.answer(Ask(client="a", prompt="Hello", view=BASE)).close()
        assert len(backend._busy) == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not backend._busy and backend.load.waiting == 0


def test_the_manifest_says_live_and_names_every_file(live_folder: Path, workbench: Session) -> None:
    manifest = json.loads((live_folder / "export_manifest.json").read_text())
    assert manifest["gate_mode"] == "live"
    *_, frozen, which = run_to_end(resolve_mix(ExportRequest(target="llama-server", gate="live"), workbench)).notes
    assert frozen.startswith("gate frozen to a static mix")
    assert which == "that is for llama-server_launch.sh; serve.py asks the gate for every prompt"
    assert (live_folder / "llama-server_launch.sh").is_file()
    assert [name for name, _ in manifest["mix"]] == list(workbench.model.names)
    named = {item["path"] for item in manifest["artifacts"]}
    assert {"serve.py", "requirements.txt", "live.json", "gate.safetensors", "runtime/dlm_tui/serving/api.py"} <= named
    assert destination(ExportRequest(target="llama-server", gate="live", quant="f32"), workbench).name.endswith(
        "-live-f32"
    )


def test_a_live_gate_needs_a_trained_gate_and_a_server(tmp_path: Path, workbench: Session) -> None:
    without = open_tiny(tmp_path, gate=False)
    with pytest.raises(ExportRefused, match="gate"):
        export(without, target="llama-server", gate="live", quant="f32", verify=False, out=str(tmp_path / "x"))
    for change in ({"target": "peft"}, {"mix": "uniform"}, {"adapter": "tone"}):
        with pytest.raises(UsageError, match="--gate live"):
            export(workbench, **{"target": "llama-server", "gate": "live", **change})


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_gate_decides_as_in_the_workbench(llama: Running, workbench: Session, prompt: str) -> None:
    wanted = run_to_end(workbench.router.route(prompt))
    _, _, routed = llama.post("/v1/route", {"input": prompt})
    item = routed["data"][0]
    assert item["weights"] == pytest.approx(wanted.weights, abs=1e-5)
    assert item["entropy"] == pytest.approx(wanted.entropy, abs=1e-5)
    assert (item["mode"], item["tokens"]) == (wanted.mode, wanted.tokens)
    embedding = llama.client().embeddings.create(model="base", input=prompt).data[0].embedding
    assert torch.allclose(torch.tensor(embedding), run_to_end(workbench.router.embed(prompt)), atol=1e-5)


def test_log_probabilities_over_the_whole_vocabulary_are_those_of_the_gated_view(
    live_folder: Path, workbench: Session
) -> None:
    async def found() -> list[Any]:
        backend = LlamaBackend(LiveFolder(live_folder), threads=1)
        await backend.start()
        rows = []
        for prompt in PROMPTS:
            decision, _, _ = await backend._routed(prompt)
            ids = await backend._tokenized(prompt, special=True)
            rows.append((ids, await backend._distribution(ids, decision.weights)))
        return rows

    for prompt, (ids, row) in zip(PROMPTS, asyncio.run(found()), strict=True):
        assert ids == workbench.base.encode_raw(prompt)
        mix = run_to_end(workbench.router.route(prompt)).weights
        wanted = teacher_forced(workbench, ids, [0], mix)[0].numpy()
        assert np.abs(row - wanted).max() <= 1e-4


@pytest.mark.parametrize("model", ["gated", "base", "uniform", "facts", "mix:tone:0.5,facts:-0.3", "static_mean"])
def test_greedy_chat_is_that_of_the_workbench(llama: Running, workbench: Session, model: str) -> None:
    for prompt in PROMPTS:
        answer = llama.client().chat.completions.create(
            model=model, messages=user(prompt), max_tokens=16, temperature=0, logprobs=True
        )
        mix = (answer.model_extra or {})["dlm"]["weights"]
        tokens = workbench.base.chat(prompt, workbench.document.system_prompt)
        wanted = run_to_end(generate(workbench.model, tokens, [mix], Sampling(max_tokens=16)))[0]
        assert answer.usage is not None and answer.usage.prompt_tokens == len(tokens)
        scored = teacher_forced(workbench, tokens, wanted.token_ids, mix)
        two = scored.topk(2).values
        if bool((two[:, 0] - two[:, 1] > 1e-3).all()):  # else a near-tie decides
            # bytes that make no character, of which a random model says many, llama.cpp shows or drops as it likes
            whole = wanted.text.partition("\ufffd")[0]
            assert (answer.choices[0].message.content or "").startswith(whole)
            assert answer.usage.completion_tokens == len(wanted.token_ids)


def test_mixed_requests_with_hang_ups_never_see_another_mix(llama: Running, workbench: Session) -> None:
    """Five hundred requests of different mixes over four slots; each told log-probability is that of its own mix."""
    models = ["gated", "base", "tone", "facts", "style", "mix:tone:0.6,facts:0.4"]
    prompt = "The harbour master counts the boats when the tide turns"
    ids = workbench.base.encode_raw(prompt)

    def ask(number: int) -> None:
        chance = random.Random(number)
        model = chance.choice(models)
        if chance.random() < 0.3:
            stream = llama.client().completions.create(model=model, prompt=prompt, max_tokens=1500, stream=True)
            next(iter(stream), None)
            stream.close()
            return
        answer = llama.client().completions.create(model=model, prompt=prompt, max_tokens=1, temperature=0, logprobs=1)
        told = answer.choices[0].logprobs
        if told is None or not told.token_logprobs:
            return  # the first token ended it
        with lock:
            scored = teacher_forced(workbench, ids, [0], (answer.model_extra or {})["dlm"]["weights"])[0]
        assert float(scored.max()) == pytest.approx(told.token_logprobs[0], abs=1e-4), model

    lock = threading.Lock()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(500)))
    until(lambda: llama.backend.load.running == 0)


def test_a_mix_without_measure_cannot_spoil_the_answers_of_others(
    llama: Running, live_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"messages": user(PROMPTS[0]), "max_tokens": 8, "temperature": 0}

    def said(model: str) -> str | None:
        return llama.client().chat.completions.create(model=model, **asked).choices[0].message.content

    before = said("tone")
    with pytest.raises(openai.BadRequestError, match="-100 to 100"):
        said("mix:tone:1e30")
    assert [said("mix:tone:100,facts:-100") is None, *(said("tone") for _ in range(5))] == [False, *[before] * 5]
    # what overflows anyway is told wherever it shows
    monkeypatch.setattr(views, "LARGEST_COEFFICIENT", 1e38)
    with serving(LlamaBackend(LiveFolder(live_folder), threads=1)) as other:
        overflowing = {**asked, "model": "mix:tone:1e30", "logprobs": True}
        status, _, answer = other.post("/v1/chat/completions", overflowing)
        assert status == 500 and "overflowed under this mix" in answer["error"]["message"]


def test_token_ids_that_the_base_does_not_have_are_the_clients_error(llama: Running, workbench: Session) -> None:
    size = workbench.base.vocab_size
    for model in ("base", "gated"):
        for token in (size, 999_999_999, 2**40, -1):
            with pytest.raises(
                openai.BadRequestError, match=f"token {token} is none of the base's, .* 0 to {size - 1}"
            ):
                llama.client().completions.create(model=model, prompt=[3, token], max_tokens=2)
        assert llama.client().completions.create(model=model, prompt=[3, size - 1], max_tokens=2).usage


def test_the_end_token_is_neither_counted_nor_told(
    llama: Running, workbench: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, (end,) = llama.backend._request, workbench.base.stop_ids
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPTS[0], "max_tokens": 3, "temperature": 0}
    plain = llama.client().completions.create(**asked, logprobs=1)
    assert plain.usage is not None and plain.choices[0].logprobs is not None
    assert (plain.usage.completion_tokens, len(plain.choices[0].logprobs.tokens or ())) == (3, 3)
    monkeypatch.setattr(llama.backend, "_request", lambda *args: {**request(*args), "logit_bias": [[end, 1000.0]]})
    for logprobs in (None, 2):
        answer = llama.client().completions.create(**asked, logprobs=logprobs)
        (choice,), usage = answer.choices, answer.usage
        assert usage is not None
        assert (choice.text, choice.finish_reason, usage.completion_tokens) == ("", "stop", 0)
        assert choice.logprobs is None or choice.logprobs.tokens == []


def test_stopping_tells_everybody(live_folder: Path) -> None:
    backend = LlamaBackend(LiveFolder(live_folder), threads=1, rows=1)
    asked: dict[str, Any] = {"model": "base", "messages": user(PROMPTS[0]), "max_tokens": 1900, "temperature": 0}
    with serving(backend) as running, ThreadPoolExecutor(1) as pool:
        stream = running.client().chat.completions.create(**asked, stream=True)
        next(stream)
        waiting = pool.submit(lambda: running.client().chat.completions.create(**asked))
        until(lambda: backend.load.waiting == 1)
        running.loop.call_soon_threadsafe(backend.refuse)
        with pytest.raises(openai.InternalServerError, match="stopping"):
            waiting.result()
        with pytest.raises(openai.InternalServerError, match="stopping"):
            running.client().chat.completions.create(**asked)
        assert next(stream).choices[0].finish_reason is None, "what runs goes on"
        backend.close()
        with pytest.raises(openai.APIError, match="stopping"):
            for _ in stream:
                pass


def test_several_choices_stop_sequences_and_streams(llama: Running) -> None:
    asked: dict[str, Any] = {"model": "tone", "messages": user(PROMPTS[0]), "max_tokens": 30, "temperature": 0}
    text = llama.client().chat.completions.create(**asked).choices[0].message.content or ""
    stop = text[2:5]
    stopped = llama.client().chat.completions.create(**asked, stop=stop, n=2)
    assert [choice.message.content for choice in stopped.choices] == [text[: text.index(stop)]] * 2
    events = list(llama.client().chat.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == text
    assert "dlm" in (events[-1].model_extra or {})


def test_a_grid_rounds_the_weights_and_tells_the_cost(live_folder: Path) -> None:
    backend = LlamaBackend(LiveFolder(live_folder), threads=1, grid=0.25)
    with serving(backend) as running:
        answer = running.client().chat.completions.create(model="gated", messages=user(PROMPTS[0]), max_tokens=2)
        told = (answer.model_extra or {})["dlm"]
        weights = told["weights"]
        assert all(weight / 0.25 == round(weight / 0.25) for weight in weights.values())
        assert sum(weights.values()) == 1
        assert told["entropy"] == views.entropy_of(weights)[0], "of what was applied"
        item = running.post("/v1/route", {"input": PROMPTS[0]})[2]["data"][0]
        assert (item["weights"], item["entropy"]) == (weights, told["entropy"]), "the route is that of the answer"
        note = asyncio.run_coroutine_threadsafe(backend.notes(), running.loop).result(60)
        assert re.fullmatch(r"weights in steps of 0\.25 cost \S+ nats at the next token, on 6 of its prompts", note[0])
    with pytest.raises(UsageError, match="--context is at most 2048, what the base reads"):
        LlamaBackend(LiveFolder(live_folder), context_length=2**40)


def test_the_numpy_gate_judges_unlike_prompts_as_torch_does(workbench: Session, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from dlm_tui.gate.ood import fit_ood

    torch.manual_seed(1)
    rows = torch.randn(40, workbench.base.hidden_size)
    fitted = fit_ood(rows, [n % 3 for n in range(40)], seed=0)
    assert fitted is not None and workbench.gate is not None and workbench.gate.network is not None
    save_file({name: tensor.contiguous() for name, tensor in fitted.tensors().items()}, tmp_path / "ood.safetensors")
    save_file(dict(workbench.gate.network.state_dict()), tmp_path / "gate.safetensors")
    gate = NumpyGate.read(workbench.gate.names, tmp_path / "gate.safetensors", tmp_path / "ood.safetensors")
    for point in (rows[3], rows[3] * 4, torch.randn(workbench.base.hidden_size) * 2):
        weights = workbench.gate.weights(point)
        assert list(gate.weights(point.double().numpy()).values()) == pytest.approx(weights.tolist(), abs=1e-6)
        assert gate.ood is not None
        score, unlike = gate.ood.judge(point.double().numpy())
        assert (score, unlike) == (pytest.approx(fitted.judge(point)[0]), fitted.judge(point)[1])


def test_a_folder_that_is_not_whole_is_refused(live_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DlmTuiError, match="--gate live"):
        LiveFolder(tmp_path)
    settings = json.loads((live_folder / "live.json").read_text())
    for change, word in (
        ({"base_gguf": "../base.gguf"}, "missing"),
        ({"format": 9}, "format 9"),
        ({"gate_names": ["x"]}, "is not the gate of x"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for path in live_folder.iterdir():
            if path.is_file() and path.name != "live.json":
                (folder / path.name).symlink_to(path)
        (folder / "live.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(DlmTuiError, match=word):
            LiveFolder(folder)


def bare_environment(folder: Path, requirements: str) -> Path:
    """The interpreter of a new environment that sees only what `requirements` names, and what that needs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    wanted = [re.split(r"[><=~!;\[ ]", line)[0] for line in requirements.split()]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or system
        wanted += [re.split(r"[><=~!;\[ (]", one)[0] for one in found.requires or () if "extra ==" not in one]
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            with contextlib.suppress(FileExistsError):
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


def test_the_exported_folder_runs_where_torch_is_not_importable(
    live_folder: Path, workbench: Session, tmp_path: Path
) -> None:
    python = bare_environment(tmp_path / "bare", (live_folder / "requirements.txt").read_text())
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    for heavy in ("torch", "transformers", "gguf", "textual", "pydantic", "dlm_tui"):
        probe = subprocess.run(
            [str(python), "-c", f"import {heavy}"], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert f"No module named '{heavy}'" in probe.stderr, heavy
    server = [str(python), str(live_folder / "serve.py"), "--port", "0", "--json", "--threads", "1"]
    with subprocess.Popen(
        server, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            facts = json.loads(line)
            assert facts["adapters"] == ["tone", "facts", "style"]
            client = openai.OpenAI(base_url=f"{facts['address']}/v1", api_key="none", max_retries=0, timeout=60)
            answer = client.chat.completions.create(
                model="gated", messages=user(PROMPTS[0]), max_tokens=8, temperature=0
            )
            wanted = run_to_end(workbench.router.route(PROMPTS[0])).weights
            assert (answer.model_extra or {})["dlm"]["weights"] == pytest.approx(wanted, abs=1e-5)
            child.terminate()
            assert child.wait(30) == 0
        finally:
            child.kill()


def test_the_copied_files_are_the_servers_own_and_no_more(live_folder: Path) -> None:
    modules = runtime_modules()
    assert "dlm_tui.serving.api" in modules and "dlm_tui.serving.llama.backend" in modules
    rooms = {name.split(".")[1] for name in modules}
    assert not rooms & {"app", "cli", "engine", "export", "gate", "scoring", "session", "store", "training"}
    runtime = live_folder / "runtime"
    package = Path(sys.modules["dlm_tui"].__file__ or "").parent.parent
    for name in modules:
        path = Path(*name.split(".")).with_suffix(".py")
        assert (runtime / path).read_bytes() == (package / path).read_bytes()


def test_serve_with_llama_exports_what_is_trained_first(served_folder: Path) -> None:
    command = [
        sys.executable, "-m", "dlm_tui", "serve", str(served_folder / "doc.dlm"), "--home", str(served_folder / "home"),
        "--base", str(served_folder / "base"), "--backend", "llama.cpp", "--port", "0", "--json", "--threads", "1",
    ]  # fmt: skip
    told = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stderr is not None
            try:
                line = child.stdout.readline()
                assert line, child.stderr.read()
                client = openai.OpenAI(base_url=f"{json.loads(line)['address']}/v1", api_key="none", max_retries=0)
                assert client.chat.completions.create(model="facts", messages=user("x"), max_tokens=2).choices
                # no torch in the process that answers
                maps = Path(f"/proc/{child.pid}/maps")
                assert not maps.exists() or "libtorch" not in maps.read_text()
                child.terminate()
                told.append(child.stderr.read())
            finally:
                child.kill()
    assert ["exporting" in text for text in told] == [True, False]


def test_a_grid_belongs_to_llama(served_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(served_folder / "doc.dlm"), "--grid", "0.1"]) == 2
    assert "llama.cpp" in capsys.readouterr().err
