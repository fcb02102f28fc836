"""Mixing and decoding against PEFT and against merged weights, on the 135M shape in float32."""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from dlm_tui.engine.priority import ENGINE, JOB
from dlm_tui.model.base import Base
from dlm_tui.model.generation import Generated, generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import run_to_end
from tests.benchmarks import peers
from tests.benchmarks.harness import (
    Row,
    Timing,
    adapters,
    at_most,
    faster,
    paired,
    reported,
    seconds,
    shared_base,
    smol_base,
)

PROMPT = [5 + 37 * n % 3000 for n in range(64)]
TOKEN = 77


def rows(quick: bool) -> list[Row]:
    """Set a mix; one-row decode against PEFT, merged weights, X-LoRA, Arrow; eight rows against eight decodes."""
    rounds = 7 if quick else 21
    tokens, batches = (8, 1) if quick else (32, 3)
    peft = peers.peft_model(adapters(8))
    found = [set_mix(peft, 2 if quick else 3), against_peft(peft, rounds), eight_rows(peft, tokens, batches)]
    del peft
    found += [against_merged(rounds), *against_routers(rounds), half_precision(rounds), beside_jobs(rounds)]
    pocket = peers.peft_model(adapters(8, kind="pocket"), "pocket")
    # the goals are for the larger shape; on the small one Python itself is most of the time, on either side
    others = [
        against_peft(pocket, 3 * rounds, "pocket"),
        eight_rows(pocket, tokens, batches, "pocket"),
        against_merged(3 * rounds, "pocket"),
    ]
    return found + [replace(row, name=f"{row.name}, embedded base", goal="report", met=None) for row in others]


@functools.cache
def model(count: int, kind: str = "smol") -> MixedModel:
    return MixedModel(shared_base(kind), adapters(count, kind=kind))


def mix_of(count: int) -> dict[str, float]:
    """Different weights, none zero, one negative."""
    return {f"a{n}": (0.5 - 0.1 * n) or 0.05 for n in range(count)}


class OurDecoder:
    """The same step as `peers.Decoder`, with our engine."""

    def __init__(self, engine: MixedModel, mix: dict[str, float], dtype: str = "float32") -> None:
        self._backbone = engine.generation if dtype == "bfloat16" else engine.backbone
        self._mix = engine.coefficients(mix)[None] if mix else None
        self._cache = self._backbone.new_cache(1, 128)
        self._backbone.forward(torch.tensor([PROMPT]), self._cache, self._mix)

    def step(self) -> Tensor:
        hidden = self._backbone.forward(torch.tensor([[TOKEN]]), self._cache, self._mix)
        logits = self._backbone.logits(hidden[0, -1])
        self._cache.crop(len(PROMPT))
        return logits


def difference(first: Tensor, second: Tensor) -> str:
    return f"logits differ by at most {float((first.float() - second.float()).abs().max()):.1e}"


def close(first: Tensor, second: Tensor) -> str:
    """Assert equality up to float32 rounding and say how close it was."""
    torch.testing.assert_close(first.float(), second.float(), atol=2e-3, rtol=2e-3)
    return difference(first, second)


def set_mix(peft: Any, rounds: int) -> Row:
    ours, mix = model(8), mix_of(8)

    def set_ours() -> object:
        return ours.mixer.expand(ours.coefficients(mix)[None])

    times: list[tuple[float, float]] = []
    exact = ""
    set_ours()
    for _ in range(rounds):
        slow = seconds(lambda: peft.add_weighted_adapter(list(mix), list(mix.values()), "mix", combination_type="cat"))
        if not exact:
            peft.set_adapter("mix")
            exact = close(peers.Decoder(peft, PROMPT, TOKEN).step(), OurDecoder(ours, mix).step())
            peft.set_adapter("a0")
        peft.delete_adapter("mix")
        times.append((seconds(set_ours, 200), slow))
    ratio = statistics.median(slow / quick for quick, slow in times)
    quick, slow = (statistics.median(pair[side] for pair in times) for side in (0, 1))
    timing = Timing(quick, slow, ratio, rounds)
    return faster("set a new mix, N = 8", timing, 'PEFT add_weighted_adapter("cat")', 5000, exact)


def beside_jobs(rounds: int) -> Row:
    """A token while every core has a process that is as busy and as nice as a training job, against the same alone."""
    ours = OurDecoder(model(8), mix_of(8))
    ours.step()
    alone = [seconds(ours.step, 4) for _ in range(rounds)]
    with busy_jobs(torch.get_num_threads()):
        beside = [seconds(ours.step, 4) for _ in range(rounds)]
    slow, quick = statistics.median(beside), statistics.median(alone)
    timing = Timing(slow, quick, quick / slow, rounds)
    return at_most("decode with N = 8 mixed, one row, beside jobs", timing, "the same alone", 2.5, "one job per core")


@contextlib.contextmanager
def busy_jobs(count: int) -> Iterator[None]:
    """Processes that compute without end, nicer than this one as a job is nicer than the engine."""
    work = "import os, sys; os.nice(int(sys.argv[1])); print(flush=True)\nwhile True: pass"
    line = [sys.executable, "-c", work, str(JOB - ENGINE)]
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for job in jobs:
            assert job.stdout is not None
            job.stdout.readline()
        yield
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def against_peft(peft: Any, rounds: int, kind: str = "smol") -> Row:
    mix = mix_of(8)
    peers.activate(peft, mix)
    theirs, ours = peers.Decoder(peft, PROMPT, TOKEN), OurDecoder(model(8, kind), mix)
    exact = close(ours.step(), theirs.step())
    timing = paired(ours.step, theirs.step, rounds=rounds)
    return faster("decode with N = 8 mixed, one row", timing, "PEFT, 8 adapters active, scalings set", 2, exact)


def against_merged(rounds: int, kind: str = "smol") -> Row:
    base, mix = shared_base(kind), mix_of(8)
    module = copy.deepcopy(base.model)
    for name, weight in mix.items():
        for target, pair in adapters(8, kind=kind)[name].modules.items():
            module.get_submodule(target).weight.data += pair.lora_B @ pair.lora_A * (pair.scale * weight)
    merged = OurDecoder(MixedModel(Base(module, base.tokenizer, base.source, base.identity), {}), {})
    ours = OurDecoder(model(8, kind), mix)
    exact = close(ours.step(), merged.step())
    timing = paired(ours.step, merged.step, rounds=2 * rounds)
    return at_most(
        "decode with N = 8 mixed, one row", timing, "the same engine, mix merged into its weights", 1.2, exact
    )


def against_routers(rounds: int) -> list[Row]:
    mix = mix_of(3)
    ours = OurDecoder(model(3), mix)
    peft = peers.peft_model(adapters(3))
    peers.activate(peft, mix)
    exact = "against PEFT with this mix: " + close(ours.step(), peers.Decoder(peft, PROMPT, TOKEN).step())
    del peft
    name = "decode with N = 3 mixed, one row"
    arrow = peers.Decoder(peers.arrow(adapters(3)), PROMPT, TOKEN)
    found = [faster(name, paired(ours.step, arrow.step, rounds=rounds), "PEFT Arrow", 2.5, exact)]
    xlora = peers.xlora(adapters(3))
    whole = torch.tensor([[*PROMPT, TOKEN]])

    def xlora_step() -> Tensor:
        # X-LoRA refuses a cache: every token is a pass for its classifier and a pass with the adapters over all text
        with torch.no_grad():
            logits: Tensor = xlora(input_ids=whole).logits[0, -1]
        return logits

    timing = paired(ours.step, xlora_step, rounds=rounds)
    return [faster(name, timing, "PEFT X-LoRA (it has no cache)", 10, exact), *found]


def eight_rows(peft: Any, tokens: int, rounds: int, kind: str = "smol") -> Row:
    ours = model(8, kind)
    prompts = [[5 + (37 + row) * n % 3000 for n in range(24)] for row in range(8)]
    mixes = [{f"a{row}": 1.0, f"a{(row + 3) % 8}": 0.5} for row in range(8)]
    answers: dict[str, list[list[int]]] = {}

    def together() -> None:
        ours.prefilled = None  # the baseline reads the prompts every time, too
        out: list[Generated] = run_to_end(generate(ours, prompts, mixes, Sampling(max_tokens=tokens), stop_ids=()))
        answers["ours"] = [row.token_ids for row in out]

    # None in a generation config means "as the model says", so the model must not name an end token either
    peft.get_base_model().generation_config.eos_token_id = None
    greedy = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=2)

    def one_by_one() -> None:
        answers["theirs"] = []
        for prompt, mix in zip(prompts, mixes, strict=True):
            peers.activate(peft, mix)
            ids = torch.tensor([prompt])
            with torch.no_grad():
                out = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            answers["theirs"].append(out[0, len(prompt) :].tolist())

    timing = paired(together, one_by_one, rounds=rounds, warmup=0)
    if answers["ours"] != answers["theirs"]:
        raise AssertionError(f"greedy tokens differ: {answers}")
    exact = f"greedy tokens of all 8 rows identical over {tokens} tokens"
    return faster(f"8 rows with 8 mixes, {tokens} tokens each", timing, "8 sequential PEFT decodes", 12, exact)


def half_precision(rounds: int) -> Row:
    mix = mix_of(8)
    engine = MixedModel(smol_base(), adapters(8), generation_dtype="bfloat16")
    half, full = OurDecoder(engine, mix, "bfloat16"), OurDecoder(engine, mix)
    exact = difference(half.step(), full.step()) + " (bfloat16 rounding; gates stay in float32)"
    timing = paired(half.step, full.step, rounds=rounds)
    return reported("decode with N = 8 mixed, one row, bfloat16", timing, "the same engine in float32", exact)
