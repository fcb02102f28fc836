"""Peak memory of the base alone, with eight adapters, and on the pages of its file, each in a process of its own."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dlm_tui.model.generation import generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from tests.benchmarks import peers
from tests.benchmarks.harness import Row, adapters, scratch, skipped, smol_base, smol_folder
from tests.tiny_models import write_tiny_base

PROMPT = list(range(5, 69))
TOKENS = 8

_STATUS = """
import json, sys
from pathlib import Path

def status(field):
    # getrusage would count what the parent process had before it started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

folder, prompt, tokens, *adapters = json.loads(sys.argv[1])
"""
_ALONE = (
    _STATUS
    + """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

before = status("VmRSS")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
said = []
with torch.no_grad():
    out = model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    for _ in range(tokens):
        said.append(int(out.logits[0, -1].argmax()))
        out = model(input_ids=torch.tensor([said[-1:]]), past_key_values=out.past_key_values, use_cache=True)
print(json.dumps([before, status("VmHWM"), said]))
"""
)
_TOGETHER = (
    _STATUS
    + """
from dlm_tui.model.adapters import load_peft_adapter
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.generation import generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.model.registry import resolve_base
from dlm_tui.model.sampling import Sampling
from dlm_tui.model.fused.compiled_decode import compiles
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

compiles()  # the compiler is a library, too
before = status("VmRSS")
base = run_to_end(load_base(resolve_base("hf:bench/smol", Path(folder)), device="cpu"))
model = MixedModel(base, {Path(p).name: load_peft_adapter(Path(p), Path(p).name, base) for p in adapters})
mix = {name: 1 / len(model.names) for name in model.names}
said = run_to_end(generate(model, prompt, [mix], Sampling(max_tokens=tokens), stop_ids=()))[0].token_ids
print(json.dumps([before, status("VmHWM"), said]))
"""
)
_ON_ITS_FILE = (
    _STATUS
    + """
import gc
import accelerate, torch
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.mixed import MixedModel
from dlm_tui.progress import run_to_end
from dlm_tui.model.registry import resolve_base
from dlm_tui.model.pages import give_back_freed
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

tiny = run_to_end(load_base(resolve_base("hf:bench/tiny", Path(adapters[0])), device="cpu", as_stored=True))
MixedModel(tiny, {}).backbone.forward(torch.tensor([prompt]))  # code that is read when it is first used
del tiny
gc.collect()
give_back_freed()
before = status("VmRSS")
base = run_to_end(load_base(resolve_base("hf:bench/smol", Path(folder)), device="cpu", as_stored=True))
model = MixedModel(base, {})
hidden = model.backbone.forward(torch.tensor([prompt])).double().sum().item()
print(json.dumps([before, status("VmHWM"), hidden]), flush=True)
sys.stdin.readline()  # the other process is there, too
of_file, shared = False, 0
for line in Path("/proc/self/smaps").read_text().splitlines():
    if "-" in line.split()[0]:
        of_file = line.endswith(".safetensors")
    elif of_file and line.startswith(("Shared_Clean", "Shared_Dirty")):  # dirty where it was written a moment ago
        shared += int(line.split()[1]) * 1024
print(json.dumps(shared), flush=True)
sys.stdin.readline()
"""
)


def rows(quick: bool) -> list[Row]:
    """Base + 8 adapters against base + the adapters' own bytes + 10 %; a bfloat16 file against its size + 25 %."""
    return [*_with_adapters(), *_smol_on_its_file()]


def _smol_on_its_file() -> list[Row]:
    folder = _as_bfloat16(smol_folder(), scratch() / "bfloat16")
    found = on_its_file(folder)
    shutil.rmtree(folder)
    return found


@functools.cache
def _tiny_on_its_file() -> Path:
    """A bfloat16 checkpoint of a few kilobytes."""
    return _as_bfloat16(write_tiny_base(scratch() / "tiny"), scratch() / "tiny-bfloat16")


def _as_bfloat16(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    file = copy / "model.safetensors"
    save_file({name: weight.bfloat16() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    return copy


def on_its_file(folder: Path) -> list[Row]:
    """Opening a bfloat16 checkpoint in two processes at once: the peak of the first, and what both share.

    What libraries take is not counted: it is there after a tiny one was opened.
    """
    names = ("peak memory: open a bfloat16 checkpoint", "two processes on one base: pages of its file shared")
    goals = ("≤ 1.25×", "≥ 0.9×")
    if not Path("/proc/self/smaps").is_file():
        return [skipped(name, "its file", goal, "no /proc here") for name, goal in zip(names, goals, strict=True)]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    load: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    job = json.dumps([str(folder), PROMPT, TOKENS, str(_tiny_on_its_file())])
    children = [subprocess.Popen([sys.executable, "-c", _ON_ITS_FILE, job], **load) for _ in range(2)]
    try:
        first, second = [json.loads(child.stdout.readline()) for child in children]
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        shared = min(int(json.loads(child.stdout.readline())) for child in children)
    finally:
        for child in children:
            child.communicate("\n")
    if first[2] != second[2]:
        raise AssertionError("two processes on one base computed different numbers")
    peak = first[1] - first[0]
    exact = "resident above a process that has opened a tiny one; numbers compared in the unit tests"
    met = (peak <= 1.25 * size, shared >= 0.9 * size)
    return [
        Row(names[0], peak / 1e6, size / 1e6, "its file", peak / size, goals[0], met[0], exact, "MB"),
        Row(names[1], shared / 1e6, size / 1e6, "its file", shared / size, goals[1], met[1], exact, "MB"),
    ]


def _with_adapters() -> list[Row]:
    name, goal = "peak memory: base + 8 adapters", "≤ 1.1×"
    if not Path("/proc/self/status").is_file():
        return [skipped(name, "base alone", goal, "this system has no /proc")]
    places = peers.folders(adapters(8))
    own = sum(adapter.bytes for adapter in adapters(8).values())
    # first here: the step that is compiled for it is taken from its cache by the child, as at every start but the first
    expected = _answers()
    base_bytes, alone = _peak(_ALONE)
    ours_bytes, together = _peak(_TOGETHER, *places.values())
    if [alone, together] != expected:
        raise AssertionError(f"greedy tokens {[alone, together]} where {expected} are right")
    allowed = base_bytes + own
    ratio = ours_bytes / allowed
    what = f"plain transformers base ({base_bytes / 1e6:.0f} MB) + adapters ({own / 1e6:.0f} MB)"
    exact = "peak resident memory above the libraries' own; greedy tokens as expected in both"
    return [Row(name, ours_bytes / 1e6, allowed / 1e6, what, ratio, goal, ratio <= 1.1, exact, "MB")]


def _peak(script: str, *paths: Path) -> tuple[int, list[int]]:
    """Peak resident bytes of a child above what it had before loading, and the tokens it said.

    It reads its own copy of the weights: a file that another process has mapped costs a child less than it should.
    The libraries' own memory is the same in both and would flatter the ratio.
    """
    folder = scratch() / "own-copy"
    shutil.copytree(smol_folder(), folder)
    try:
        job = json.dumps([str(folder), PROMPT, TOKENS, *map(str, paths)])
        done = subprocess.run([sys.executable, "-c", script, job], capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    before, peak, said = json.loads(done.stdout)
    return peak - before, said


def _answers() -> list[list[int]]:
    """The tokens of the base alone and of the even mix, by the engine in this process."""
    model = MixedModel(smol_base(), adapters(8))
    mixes: list[dict[str, float]] = [{}, dict.fromkeys(model.names, 1 / 8)]
    found = run_to_end(generate(model, PROMPT, mixes, Sampling(max_tokens=TOKENS), stop_ids=()))
    return [row.token_ids for row in found]
