"""What a base of one's own costs here and elsewhere: `python -m tests.benchmarks.real_bases FOLDER|FAMILY …`.

FOLDER holds a checkpoint in safetensors; FAMILY is one of the names in `FAMILIES`, for which a random one of some 180
million parameters is made. Every number of ours is compared with the baseline's before it is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import Open, Opened
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.adapters import Adapter, save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.registry import resolve_base, weight_files
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store
from tests.benchmarks import peers
from tests.benchmarks.bench_gate import appending
from tests.benchmarks.bench_model_llama import against_llama_cpp, against_one_read
from tests.benchmarks.bench_model_memory import on_its_file
from tests.benchmarks.gate_reference import reference_embedding
from tests.benchmarks.harness import (
    PLAIN_READ,
    Row,
    at_most,
    faster,
    layer_weights,
    leave_cache,
    machine,
    paired,
    plain_read,
    random_adapters,
    scratch,
    seconds,
    skipped,
)
from tests.benchmarks.run import table
from tests.export_sessions import add_gate, fill_store

SIZE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32768,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_SLIDING = {"sliding_window": 512, "query_pre_attn_scalar": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 512},
    "qwen2": {},
    "qwen3": {},
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING | {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2},
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "smollm3": {},
    "granite": {"attention_multiplier": 0.125, "logits_scaling": 4.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 1536, "sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 1536, "norm_topk_prob": True},
}
NAMES = ("a0", "a1", "a2")
MIX = {"a0": 0.5, "a1": 0.4, "a2": 0.3}
TOKENS = 32
SEVERAL = 8
WORDS = "The harbour master counts the boats when the tide turns and the bell rings twice over the wet roofs. "
IN_LLAMA_CPP = "decode with N = 3 mixed, one row, per token"
FULL = "transformers: the prompt again, output_hidden_states and LM head"
CACHED = "transformers: one token with its KV cache, no LM head"
QUESTIONS = ("How deep is the harbour?", "When does the tide turn?", "Who rings the bell?")


@dataclass(frozen=True)
class Subject:
    """A base as the program opens it, three adapters, and the same weights in transformers as float32."""

    name: str
    folder: Path
    model: MixedModel
    plain: Any
    adapters: Mapping[str, Adapter]

    @property
    def base(self) -> Base:
        return self.model.base

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in weight_files(self.folder))


def random_folder(family: str) -> Path:
    """A random bfloat16 checkpoint of the family with the embedded base's tokenizer."""
    folder = scratch() / family
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZE, **FAMILIES[family]})
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(str(resolve_base("pocket").path)).save_pretrained(folder)
    return folder


def subject(name: str, folder: Path) -> Subject:
    base = run_to_end(load_base(resolve_base(f"hf:bench/{name}", folder), device="cpu", as_stored=True))
    adapters = random_adapters(base, len(NAMES))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Subject(name, folder, MixedModel(base, adapters), plain, adapters)


def rows(name: str, folder: Path, rounds: int) -> list[Row]:
    """All rows of one base; memory and time to open in processes of their own, before anything is loaded here."""
    leave_cache(folder)
    found = [*opening(name, folder, rounds), *on_its_file(folder)]
    case = subject(name, folder)
    found += [row for length in (20, 200) for row in keys(case, length, rounds)]
    found += [floor(case, rounds), *decode(case, rounds), one_read(case, rounds), llama_cpp(case, rounds)]
    found.append(export_peak(case))
    return found


def keys(case: Subject, length: int, rounds: int) -> list[Row]:
    """One more token of a prompt to the gate's weights."""
    router, prompt, append = appending(case.model, length)
    gate, ids = router.gate, case.base.encode_raw(prompt)
    assert gate is not None

    def whole() -> Tensor:
        return gate.weights(reference_embedding(case.plain, case.base.tokenizer, prompt))

    routed = run_to_end(router.route(prompt))
    apart = float((torch.tensor(list(routed.weights.values())) - whole()).abs().max())
    if apart > 1e-5:
        raise AssertionError(f"weights differ by {apart}")
    cache, last = DynamicCache(), torch.tensor([ids[-1:]])
    decoder = case.plain.base_model
    with torch.no_grad():
        decoder(input_ids=torch.tensor([ids[:-1]]), past_key_values=cache, use_cache=True)

    def cached() -> None:
        with torch.no_grad():
            hidden = decoder(input_ids=last, past_key_values=cache, use_cache=True).last_hidden_state
        gate.weights(hidden[0].mean(dim=0))
        cache.crop(-1)

    name, exact = f"one more token at {length} → weights", f"weights differ by {apart:.1e}"
    goal = 6.0 if length == 20 else 20.0
    return [
        faster(name, paired(append, whole, rounds=rounds, repeat=3), FULL, goal, exact),
        faster(name, paired(append, cached, rounds=2 * rounds, repeat=3), CACHED, 2.5, exact),
    ]


def floor(case: Subject, rounds: int) -> Row:
    """A key against reading every weight of the layers once, as they are stored, in a plain loop of two threads."""
    _, _, append = appending(case.model, 200)
    read = plain_read(layer_weights(case.base))
    timing = paired(append, read, rounds=2 * rounds, repeat=3)
    return at_most("one more token at 200, distance from the floor", timing, PLAIN_READ, 1.3, "")


def decode(case: Subject, rounds: int) -> list[Row]:
    """A token of an answer, three adapters mixed, one row, against PEFT."""
    ids = case.base.encode_raw(WORDS * 8, 64)
    token = ids[3]
    places = {name: scratch() / f"adapters-{case.name}" / name for name in NAMES}
    for name, place in places.items():
        save_peft_adapter(case.adapters[name], place, "bench/base")
    peft = peers.peft_on(case.plain, places)
    peers.activate(peft, MIX)
    theirs = peers.Decoder(peft, ids, token)
    mix = case.model.coefficients(MIX)[None]
    cache = case.model.backbone.new_cache(1, 128)
    case.model.backbone.forward(torch.tensor([ids]), cache, mix)

    def ours() -> Tensor:
        hidden = case.model.backbone.forward(torch.tensor([[token]]), cache, mix)
        cache.crop(len(ids))
        return case.model.backbone.logits(hidden[0, -1])

    wanted = theirs.step()
    apart = float((ours() - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    if apart > 2e-3:
        raise AssertionError(f"logits differ by {apart}")
    timing = paired(_several(ours), _several(theirs.step), rounds=rounds)
    timing = replace(timing, ours=timing.ours / SEVERAL, baseline=timing.baseline / SEVERAL)
    exact = f"logits differ by {apart:.1e} of the largest"
    return [faster("decode with N = 3 mixed, one row", timing, "PEFT, 3 adapters active, scalings set", 4.0, exact)]


def _several(step: Callable[[], object]) -> Callable[[], None]:
    """A step as it comes in an answer, behind another one: the first after a pause also wakes threads."""

    def run() -> None:
        for _ in range(SEVERAL):
            step()

    return run


def one_read(case: Subject, rounds: int) -> Row:
    """A token of an answer against reading the weights it goes through once."""
    name = "decode with N = 3 mixed, one row, distance from the floor"
    return at_most(name, against_one_read(case.model, rounds, TOKENS), PLAIN_READ, 1.3, "layers and LM head")


def llama_cpp(case: Subject, rounds: int) -> Row:
    """Time per token against llama.cpp with the same weights in bfloat16, adapters and scales."""
    name, baseline = IN_LLAMA_CPP, "llama.cpp, the same weights, runtime scales"
    if importlib.util.find_spec("xllamacpp") is None:
        return skipped(name, baseline, "≤ 1.2×", "xllamacpp is not installed")
    try:
        timing, same = against_llama_cpp(case.model, rounds, TOKENS, "bf16")
    except DlmTuiError as error:
        return skipped(name, baseline, "≤ 1.2×", str(error))
    exact = f"the first {same} of {TOKENS} greedy tokens the same; llama.cpp rounds activations to bfloat16"
    return at_most(name, timing, baseline, 1.2, exact)


def opening(name: str, folder: Path, rounds: int) -> list[Row]:
    """From starting the engine process to a document that is ready, against reading the file's bytes."""
    home, document = scratch() / f"open-{name}", scratch() / f"{name}.dlm"
    write_document(document, folder)
    file = next(iter(weight_files(folder)))

    async def ready() -> float:
        start = time.perf_counter()
        client = EngineClient(threads=os.cpu_count() or 1)
        await client.start()
        opened = await client.ask(Open(document=str(document), home=str(home), base=str(folder)))
        taken = time.perf_counter() - start
        assert isinstance(opened, Opened) and not opened.warning, opened
        await client.close()
        return taken

    asyncio.run(ready())  # what is compiled and hashed once per machine
    times = range(min(rounds, 3))
    ours = min(asyncio.run(ready()) for _ in times)
    baseline = min(seconds(lambda: _read(file)) for _ in range(3))
    script = (
        "import torch, sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "T.from_pretrained(sys.argv[1]); m = M.from_pretrained(sys.argv[1], dtype=torch.float32);"
        "m(input_ids=torch.tensor([[1, 2, 3]]))"
    )
    line, environment = [sys.executable, "-c", script, str(folder)], peers.environment()
    plain = min(seconds(lambda: subprocess.run(line, check=True, env=environment)) for _ in times)
    label = "from start to ready"
    return [
        Row(label, ours, baseline, "reading the file once", ours / baseline, "≤ 1.3×", ours <= 1.3 * baseline, "", "s"),
        Row(label, ours, plain, "transformers alone: start, load, one forward", plain / ours, "report", None, "", "s"),
    ]


def export_peak(case: Subject) -> Row:
    """The most resident memory of an export with verification, over the command and its children."""
    document = scratch() / f"{case.name}-export.dlm"
    write_document(document, case.folder)
    home = scratch() / f"export-{case.name}"
    store = Store(home, "01KBENCHREA1BASESBENCHREA1")
    fill_store(store, case.adapters, case.base.identity.id)
    add_gate(store, case.base.hidden_size, NAMES)
    out = scratch() / f"out-{case.name}"
    line = [sys.executable, "-m", "dlm_tui", "export", str(document), "--home", str(home), "--target", "ollama"]
    line += ["--quant", "q8_0", "--verify", "--no-drift", "--out", str(out), "--json"]
    peak = 0
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, _tree_bytes(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        output, problem = process.communicate()
        done.set()
        thread.join()
    shutil.rmtree(out, ignore_errors=True)
    name, baseline, goal = "export to Q8_0 with verification, peak memory", "its file", "≤ 2×"
    if process.returncode:
        return skipped(name, baseline, goal, problem.strip().splitlines()[-1][:80])
    exact = f"parity {json.loads(output)['parity']['max_abs_logprob_diff']:.1e} nats; processes with their libraries"
    size = case.file_bytes
    return Row(name, peak / 1e6, size / 1e6, baseline, peak / size, goal, peak <= 2 * size, exact, "MB")


def write_document(path: Path, folder: Path) -> None:
    """Three adapters, a question each, on the base in `folder`."""
    adapters = "".join(f"    {name}: {{}}\n" for name in NAMES)
    head = (
        "---\ndlm_id: 01KBENCHREA1BASESBENCHREA1\ndlm_version: 15\nbase_model: hf:bench/base\ntraining:\n"
        f"  adapters:\n{adapters}  gate:\n    enabled: true\n---\n\n"
    )
    sections = [
        f"::instruction#{name}::\n### Q\n{question}\n### A\nSo be it.\n"
        for name, question in zip(NAMES, QUESTIONS, strict=True)
    ]
    path.write_text(head + "\n".join(sections), encoding="utf-8")
    path.with_name(path.name + ".tui.toml").write_text(f"base = {json.dumps(str(folder))}\n", encoding="utf-8")


def _read(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        buffer = bytearray(1 << 22)
        while stream.readinto(buffer):
            pass


def _tree_bytes(pid: int) -> int:
    """Resident bytes of a process and its children; pages that they share count once."""
    total = 0
    with contextlib.suppress(psutil.Error):  # one that has just ended
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += one.memory_full_info().pss
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.real_bases", description=__doc__)
    parser.add_argument("bases", nargs="+", metavar="FOLDER|FAMILY", help=f"families: {', '.join(FAMILIES)}")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    if not CHILD_ENVIRONMENT.items() <= os.environ.items():
        # how the program starts its engine is read when a library is loaded, so it must be there before
        line = [sys.executable, "-m", "tests.benchmarks.real_bases", *(arguments or sys.argv[1:])]
        os.execve(sys.executable, line, os.environ | CHILD_ENVIRONMENT)
    print(json.dumps(machine()))
    for given in args.bases:
        folder = Path(given) if Path(given).is_dir() else random_folder(given)
        name = folder.name
        found = rows(name, folder, args.rounds)
        view = table(found)
        view.title = name
        Console(width=180).print(view)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
