"""The server as clients meet it: eight mixes at once against llama.cpp and PEFT, waiting, overhead, memory.

Servers run as processes of their own, as a person starts them. Runnable alone: `python -m tests.benchmarks.run --only
serving`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from transformers import GenerationConfig

from dlm_tui.document import load
from dlm_tui.gate import Gate, GateNetwork, save_gate
from dlm_tui.model import Sampling, save_peft_adapter, threads_for
from dlm_tui.model.generation import generate
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from dlm_tui.store import GateConfig, Store, commit_version, new_version
from tests.benchmarks import peers
from tests.benchmarks.harness import Row, adapters, pocket_base, scratch, seconds, shared_base, skipped, smol_folder

COUNT = 8
MIXES = [f"mix:a{n}:1.0,a{(n + 3) % COUNT}:0.5" for n in range(COUNT)]
WORDS = ("Where is the ladder", "Who rings the bell", "How deep is the water", "When does the tide turn")
PROMPTS = [
    f"{WORDS[n % 4]} at the hour {n + 2} of the day, and who will tell the harbour master?" for n in range(COUNT)
]


def rows(quick: bool) -> list[Row]:
    """All rows for the 135M shape, then for the embedded base, where they are only reported."""
    found = _rows("smol", 16 if quick else 64, quick)
    small = _rows("pocket", 16 if quick else 64, quick)
    return found + [replace(row, name=f"{row.name}, embedded base", goal="report", met=None) for row in small]


def _rows(kind: str, tokens: int, quick: bool) -> list[Row]:
    document = _document(kind)
    found: list[Row] = []
    with document.served() as native:
        found += _against_llama(native, document, tokens, 1 if quick else 3)
        found.append(_against_peft(native, kind, tokens))
        found.append(_waiting(native, 10 if quick else 30))
        found.append(_exact(native, document, "native", 1e-5))
        found.append(_memory(native, 200 if quick else 10_000))
    with document.served(OMP_NUM_THREADS="1") as native:
        found.append(_overhead(native, document, tokens))
    return found


def _against_llama(native: _Server, document: _Document, tokens: int, rounds: int) -> list[Row]:
    """Both servers are up and asked in turns, so that whatever disturbs the machine disturbs both."""
    cases = [
        (f"8 requests with 8 mixes, {tokens} tokens each", MIXES, "llama.cpp backend, the same requests", 3),
        (f"8 requests with one mix, {tokens} tokens each", MIXES[:1] * COUNT, "llama.cpp with that mix, 8 slots", 1),
    ]
    try:
        with document.served("--backend", "llama.cpp", "--rows", str(COUNT)) as llama:
            found = []
            for name, models, baseline, goal in cases:
                pairs = [(_round(native, models, tokens), _round(llama, models, tokens)) for _ in range(rounds)]
                found.append(_speed(name, pairs, baseline, goal))
            return [*found, _exact(llama, document, "llama.cpp", 1e-4)]
    except RuntimeError as error:
        return [skipped(name, baseline, f"≥ {goal}×", str(error)) for name, _, baseline, goal in cases]


def _speed(name: str, pairs: Sequence[tuple[float, float]], baseline: str, goal: float) -> Row:
    """Tokens per second of ours and theirs; the ratio is the median over the pairs."""
    ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(first / second for first, second in pairs)
    return Row(name, ours, theirs, baseline, ratio, f"≥ {goal:g}×", ratio >= goal, "", unit="tokens/s")


@dataclass(frozen=True)
class _Document:
    """A document with eight adapters and a gate, on a shared base."""

    path: Path
    home: Path
    base: Path

    def session(self) -> Session:
        """As the server has it, with as many threads as suit it."""
        session = run_to_end(Session.open(self.path, self.home, self.base))
        torch.set_num_threads(threads_for(session.model.backbone, rows=COUNT))
        return session

    @contextlib.contextmanager
    def served(self, *options: str, **environment: str) -> Iterator[_Server]:
        """`dlm-tui serve` on it. Raises RuntimeError with its last line when it does not start."""
        command = [
            sys.executable, "-m", "dlm_tui", "serve", str(self.path), "--home", str(self.home),
            "--base", str(self.base), "--port", "0", "--json", *options,
        ]  # fmt: skip
        log = scratch() / f"serve{len(options)}.log"
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
            ) as child,
        ):
            try:
                assert child.stdout is not None
                line = child.stdout.readline()
                if not line:
                    child.wait()
                    raise RuntimeError((log.read_text().strip().splitlines() or ["it does not start"])[-1])
                server = _Server(json.loads(line)["address"], child.pid)
                _round(server, MIXES, 4)  # everything is used once before it is timed
                yield server
            finally:
                child.terminate()
                child.wait()


@dataclass(frozen=True)
class _Server:
    address: str
    pid: int

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)


def _document(kind: str) -> _Document:
    base = shared_base(kind)
    folder = smol_folder() if kind == "smol" else pocket_base().source.path
    assert folder is not None
    root = scratch() / f"served-{kind}"
    root.mkdir(exist_ok=True)
    names = tuple(f"a{n}" for n in range(COUNT))
    declared = "".join(f"    {name}: {{}}\n" for name in names)
    path = root / "doc.dlm"
    path.write_text(
        "---\ndlm_id: 01JEXPXRTTESTSEXPXRTTESTSE\ndlm_version: 15\nbase_model: hf:bench/smol\n"
        f"training:\n  sequence_len: 1024\n  adapters:\n{declared}  gate:\n    enabled: true\n---\n\n"
    )
    store = Store(root / "home", load(path).dlm_id)
    store.create()
    for name, adapter in adapters(COUNT, kind=kind).items():
        version = new_version(store, name)
        save_peft_adapter(adapter, version.path, base.identity.id)
        commit_version(store, version)
    torch.manual_seed(0)
    config = GateConfig(names, 0.01, 16, base.hidden_size, "trained")
    save_gate(store, Gate(names, config, GateNetwork(base.hidden_size, 16, COUNT).requires_grad_(False), {}))
    return _Document(path, root / "home", folder)


async def _ask(client: httpx.AsyncClient, model: str, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _client(server: _Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.address, timeout=600, trust_env=False, limits=limits)


_asked = itertools.count()


def _round(server: _Server, models: Sequence[str], tokens: int) -> float:
    """Tokens per second of these requests at once; prompts begin anew each time, so that nothing is reused."""

    async def main() -> float:
        async with _client(server) as client:
            mark = next(_asked)
            began = time.perf_counter()
            asked = [_ask(client, model, f"{mark}. {PROMPTS[n]}", tokens) for n, model in enumerate(models)]
            said = sum(answer["usage"]["completion_tokens"] for answer in await asyncio.gather(*asked))
            return said / (time.perf_counter() - began)

    return asyncio.run(main())


def _against_peft(server: _Server, kind: str, tokens: int) -> Row:
    """Eight answers one after another, scalings set before each."""
    model = peers.peft_model(adapters(COUNT, kind=kind), kind)
    tokenizer = shared_base(kind).tokenizer
    model.get_base_model().generation_config.eos_token_id = None
    greedy = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=2)

    def one_by_one() -> None:
        for number in range(COUNT):
            peers.activate(model, {f"a{number}": 1.0, f"a{(number + 3) % COUNT}": 0.5})
            ids = torch.tensor([tokenizer(PROMPTS[number])["input_ids"]])
            with torch.no_grad():
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)

    ours = _round(server, MIXES, tokens)
    theirs = COUNT * tokens / seconds(one_by_one)
    name = f"8 requests with 8 mixes, {tokens} tokens each"
    return _speed(name, [(ours, theirs)], "8 sequential answers of PEFT, scalings set", 10)


def _waiting(server: _Server, count: int) -> Row:
    """Time to the first token of a short request, alone and while seven long ones are decoded, in steps of those."""

    async def first(client: httpx.AsyncClient, number: int) -> float:
        body = {"model": MIXES[0], "prompt": f"{number} boats", "max_tokens": 1, "temperature": 0, "stream": True}
        began = time.perf_counter()
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    break
            return time.perf_counter() - began

    async def long(client: httpx.AsyncClient, model: str) -> None:
        body = {"model": model, "prompt": PROMPTS[0], "max_tokens": 900, "temperature": 1.0, "stream": True}
        while True:
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for _ in answer.aiter_lines():
                    pass

    async def main() -> tuple[list[float], list[float], float]:
        async with _client(server) as client:
            alone = [await first(client, number) for number in range(count)]
            busy = [asyncio.ensure_future(long(client, model)) for model in MIXES[1:]]
            await asyncio.sleep(1.0)  # until all seven decode; nothing tells it from outside
            before, began = await _steps(client), time.perf_counter()
            among = [await first(client, number + count) for number in range(count)]
            step = (time.perf_counter() - began) / max(await _steps(client) - before, 1)
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
        return sorted(alone), sorted(among), step

    alone, among, step = asyncio.run(main())
    p50 = [statistics.median(side) for side in (among, alone)]
    p99 = [side[min(len(side) - 1, int(0.99 * len(side)))] for side in (among, alone)]
    steps = (p50[0] - p50[1]) / step
    exact = f"{steps:.1f} steps of {step * 1e3:.0f} ms more; p99 {p99[0] * 1e3:.0f} ms, alone {p99[1] * 1e3:.0f} ms"
    name = "first token of a short request among 7 long ones, p50"
    return Row(name, p50[0] * 1e3, p50[1] * 1e3, "alone", p50[0] / p50[1], "≤ 2 steps more", steps <= 2, exact)


async def _steps(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("dlm_decode_steps ")))


def _overhead(server: _Server, document: _Document, tokens: int) -> Row:
    """One gated request over HTTP against routing and decoding called directly in this process, in turns; both with one
    thread, as waiting threads of the one would take time from the other."""
    session = document.session()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def direct(prompt: str) -> None:
        session.model.prefilled = None
        weights = run_to_end(session.router.route(prompt)).weights
        ids = session.base.encode_raw(prompt, limit=None)
        run_to_end(generate(session.model, ids, [weights], Sampling(max_tokens=tokens)))

    pairs = []
    with httpx.Client(base_url=server.address, timeout=600, trust_env=False) as client:
        for number in range(6):
            prompt = f"{number}, {number + 1}, and {PROMPTS[number % COUNT]}"
            body = {"model": "gated", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            over = seconds(lambda body=body: client.post("/v1/completions", json=body).raise_for_status())
            inside = seconds(lambda prompt=prompt: direct(prompt))
            if number:
                pairs.append((over, inside))
    torch.set_num_threads(threads)
    ratio = statistics.median(over / inside for over, inside in pairs)
    over, inside = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    name = f"one gated request over HTTP, {tokens} tokens"
    return Row(name, over * 1e3, inside * 1e3, "the engine called directly", ratio, "≤ 1.05×", ratio <= 1.05, "")


def _memory(server: _Server, count: int) -> Row:
    """Resident memory after `count` requests in a row with 64 idle connections open, against that after a tenth: until
    then the allocators of the threads fill up, which happens once."""
    warm = count // 10

    async def main() -> tuple[int, int]:
        async with _client(server) as client:
            await asyncio.gather(*(client.get("/health") for _ in range(64)))
            for number in range(warm):
                await _ask(client, "base", f"{number}", 1)
            before = server.memory()
            for number in range(warm, count):
                await _ask(client, "base", f"{number}", 1)
            return before, server.memory()

    before, after = asyncio.run(main())
    ratio = after / before
    name = f"memory after {count:,} requests, 64 connections open"
    return Row(name, after / 1e6, before / 1e6, f"after {warm:,}", ratio, "≤ 1.05×", ratio <= 1.05, "", unit="MB")


def _exact(server: _Server, document: _Document, backend: str, limit: float) -> Row:
    """The 20 likeliest first tokens that gated answers tell, against the workbench under its own gated view."""
    session = document.session()

    async def ask(client: httpx.AsyncClient, prompt: str) -> list[float]:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
        answer = await client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 20})
        answer.raise_for_status()
        first = answer.json()["choices"][0]["logprobs"]["content"][0]
        return sorted((one["logprob"] for one in first["top_logprobs"]), reverse=True)

    async def main() -> list[list[float]]:
        async with _client(server) as client:
            return list(await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS)))

    worst = 0.0
    for prompt, told in zip(PROMPTS, asyncio.run(main()), strict=True):
        ids = session.base.chat(prompt, session.document.system_prompt)
        row = session.model.coefficients(run_to_end(session.router.route(prompt)).weights)[None]
        hidden = session.model.backbone.forward(torch.tensor([ids]), None, row)
        wanted = torch.log_softmax(session.model.backbone.logits(hidden[0, -1]).double(), dim=-1).topk(len(told))
        worst = max(worst, *(abs(a - b) for a, b in zip(told, wanted.values.tolist(), strict=True)))
    name, goal = f"gated answers of the {backend} server, largest log-probability difference", f"≤ {limit:g} nats"
    return Row(name, worst, None, "the workbench's gated view", None, goal, worst <= limit, "", unit="nats")
