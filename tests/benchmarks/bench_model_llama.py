"""Decoding with three mixed adapters against llama.cpp with the same adapters and runtime scales, both in float32."""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dlm_tui.export.architectures import read_architecture
from dlm_tui.export.concatenate import folded
from dlm_tui.export.gguf_adapter import write_adapter
from dlm_tui.export.gguf_model import write_model
from dlm_tui.export.gguf_tokenizer import read_tokenizer
from dlm_tui.export.weights import open_weights
from dlm_tui.model.generation import generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from tests.benchmarks import peers
from tests.benchmarks.harness import (
    PLAIN_READ,
    Row,
    Timing,
    adapters,
    at_most,
    layer_weights,
    plain_read,
    scratch,
    seconds,
    skipped,
    smol_base,
)

NAME = "decode with N = 3 mixed, one row, float32"
BASELINE = "llama.cpp, 3 adapters, runtime scales"
PROMPT = [5 + 37 * n % 3000 for n in range(64)]
SCALES = {"a0": 0.5, "a1": 0.4, "a2": 0.3}

# a process of its own: llama.cpp's threads must not spin beside torch's while torch is timed
_CHILD = """
import json, sys, urllib.request
import xllamacpp
job = json.loads(sys.stdin.readline())
params = xllamacpp.CommonParams()
params.model.path = job["model"]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in job["loras"]]
params.n_ctx = 256
params.n_parallel = 1
params.n_gpu_layers = 0
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.fit_params = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
params.verbosity = 0
server = xllamacpp.Server(params)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for line in sys.stdin:
    body = {"prompt": job["prompt"], "n_predict": job["tokens"], "temperature": 0.0, "cache_prompt": False}
    body |= {"ignore_eos": True, "return_tokens": True}
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        server.listening_address + "/completion", data, {"Content-Type": "application/json"}
    )
    answer = json.load(opener.open(request, timeout=600))
    print(json.dumps({"tokens": answer["tokens"], "ms": answer["timings"]["predicted_per_token_ms"]}), flush=True)
"""


def rows(quick: bool) -> list[Row]:
    """Time per decoded token over llama.cpp's own figure, and over one read of all weights, in alternating rounds."""
    rounds, tokens = (3, 16) if quick else (9, 32)
    model = MixedModel(smol_base(), {name: adapters(8)[name] for name in SCALES})
    read = at_most(NAME, against_one_read(model, rounds, tokens), PLAIN_READ, 1.3, "layers and LM head, in float32")
    if importlib.util.find_spec("xllamacpp") is None:
        return [read, skipped(NAME, BASELINE, "≤ 1.4×", "xllamacpp is not installed")]
    timing, same = against_llama_cpp(model, rounds, tokens)
    if same < tokens:
        raise AssertionError(f"only {same} of {tokens} greedy tokens are the same")
    return [read, at_most(NAME, timing, BASELINE, 1.4, f"all {tokens} greedy tokens identical")]


def against_one_read(model: MixedModel, rounds: int, tokens: int) -> Timing:
    """Time per token against reading the weights of layers and LM head once: no step can be quicker than its memory."""
    head: Any = model.base.model.get_output_embeddings()
    read = plain_read([*layer_weights(model.base), head.weight])
    _our_token(model, tokens, [])
    pairs = [(_our_token(model, tokens, []) / 1e3, seconds(read, tokens)) for _ in range(rounds)]
    ours, reading = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Timing(ours, reading, statistics.median(slow / quick for quick, slow in pairs), rounds)


def against_llama_cpp(model: MixedModel, rounds: int, tokens: int, quant: str = "f32") -> tuple[Timing, int]:
    """Time per token with the adapters of `model` under `SCALES`, and how many greedy tokens begin both answers."""
    said: list[list[int]] = []

    def ours() -> float:
        return _our_token(model, tokens, said)

    with _llama(model, tokens, quant) as child:
        theirs = _Llama(child)
        theirs.token_ms()
        ours()
        pairs = []
        for number in range(rounds):
            first = ours() if number % 2 else None
            slow = theirs.token_ms()
            pairs.append((ours() if first is None else first, slow))
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said[-1], theirs.said, strict=False))
    )
    quick_ms = statistics.median(a for a, _ in pairs)
    slow_ms = statistics.median(b for _, b in pairs)
    ratio = statistics.median(b / a for a, b in pairs)
    return Timing(quick_ms / 1e3, slow_ms / 1e3, ratio, rounds), same


def _our_token(model: MixedModel, tokens: int, said: list[list[int]]) -> float:
    """Milliseconds per token after the first, as llama.cpp counts them."""
    steps = generate(model, PROMPT, [SCALES], Sampling(max_tokens=tokens), stop_ids=())
    for event in steps:
        if hasattr(event, "token_id"):
            break
    spent = seconds(lambda: said.append(run_to_end(steps)[0].token_ids))
    return spent / (tokens - 1) * 1e3


class _Llama:
    """The child that serves llama.cpp."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.said: list[int] = []

    def token_ms(self) -> float:
        """Milliseconds per decoded token of one answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        self.said = answer["tokens"]
        return float(answer["ms"])


def _llama(engine: MixedModel, tokens: int, quant: str) -> subprocess.Popen[str]:
    model, loras = _files(engine, quant)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=peers.environment(),
    )
    job = {
        "model": str(model),
        "loras": [(str(path), SCALES[name]) for name, path in loras.items()],
        "prompt": PROMPT,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
    }
    assert child.stdin is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    return child


def _files(engine: MixedModel, quant: str) -> tuple[Path, dict[str, Path]]:
    """The base and its three adapters as GGUF files, written by our own exporter."""
    base, folder = engine.base, scratch() / f"llama-{len(list(scratch().iterdir()))}"
    folder.mkdir()
    architecture = read_architecture(base.config.to_dict())
    tokenizer = read_tokenizer(base.tokenizer, architecture.vocab)
    source = open_weights(base.source.path, base.model, ["model.embed_tokens.weight"])
    model = folder / "model.gguf"
    run_to_end(write_model(model, source, architecture, tokenizer, quant, name="bench"))
    loras = {name: folder / f"{name}.gguf" for name in SCALES}
    for name, path in loras.items():
        run_to_end(write_adapter(path, folded(engine.adapters[name]), architecture, name=name))
    return model, loras
