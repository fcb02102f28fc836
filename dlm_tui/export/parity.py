"""Does the export answer as the workbench does? Asked of a real runtime, over the full vocabulary."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from dlm_tui.child import module_words
from dlm_tui.export.choices import GGUF_TARGETS, TARGETS
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.runtimes import Vector
from dlm_tui.model.information import kl_divergence
from dlm_tui.platform import OWN_GROUP
from dlm_tui.progress import Progress

PATIENCE_SECONDS = 600.0
"""How long the runtime may be silent before it counts as hung."""

ANSWER_TOKENS = 32
"""How far a prompt is continued greedily."""

MAX_DIFFERENCE = {"f32": 1e-3, "f16": 5e-2, "bf16": 5e-1}
"""Largest accepted |Δ log p| in nats of types that are not quantised.

Right exports of small random models measure 1e-5, 3e-3 and 2e-2, Gemma 3 270M in bf16 0.15: depth and large logits add
to it. Of quantised files it says nothing: Gemma measures 0.83 in q8_0, somewhere far down its 262,144 entries.
"""

MAX_MEAN_KL = {"f32": 1e-5, "f16": 1e-4, "bf16": 1e-3}
MAX_MEAN_KL_QUANTISED = 0.02
"""Largest accepted mean KL(stored weights ‖ export) in nats.

Right exports measure 3e-7, 3e-7 and 2e-5; quantised ones, with llama.cpp's own rounding of inputs in the reference,
1e-5 to 2e-4 for small random models, and for Gemma 3 270M 2.5e-3 in q8_0 and 6.3e-3 in q4_k_m. One forgotten scale of a
small Granite is 3e-2.
"""

MIN_AGREE = 0.85
"""Least accepted share of greedy tokens that are the same, step by step along the reference's own answers.

Right exports measure 0.98 to 1, Gemma 3 270M in q8_0 and q4_k_m 0.97. Left to go on by themselves they share 0.86
there, and a half after an early tie: that figure tells nothing.

None of these figures sees a wrong rope base, a soft cap left out or another epsilon for certain: Gemma's rope base
doubled is 3.6e-3 nats beside 2.5e-3 of rounding and 0.94 of tokens, a small Gemma 2 without a soft cap 3.1e-4 beside
1.8e-4, its epsilon times 100 nothing. `metadata_check` decides those.
"""

ODD_TEXTS = (
    "Plain words, and a number: 1234567.",
    "  two blanks first\n\n\tand a tab — and a dash…",
    "Übergröße naïve 東京 🙂 I'll we've DON'T",
    "def f(x):\n    return x**2  # code\n",
)

_LLAMA_ERROR = re.compile(r"^[\d.]+ E (?:\w+: )?(?:error loading model: )?(.+)$", re.MULTILINE)
"""An error in llama.cpp's log: time, level, function, text."""


@dataclass(frozen=True)
class ParityJob:
    """What to load and ask. `prompts` token ids; the first `greedy` of them are also continued.

    `runtime` is llama.cpp, transformers (the export as it is loaded, in `load_dtype`), or for the reference weights
    `stored gguf` (`config` with the weights in `model` and `loras`) and `base and pairs`. `dtype` is the type whose
    rounding explains differences, `quantize` how the base of a PEFT export is quantised when it is loaded. `embed` asks
    llama.cpp for the mean of the final hidden states instead, and for nothing else. `follow` are continuations of the
    first prompts along which the likeliest next tokens are asked for. `as_read` leaves llama.cpp the cache and the
    attention that it has where nobody says otherwise, and `context` is the number of tokens that it is started with
    (None: as many as are asked for).
    """

    runtime: str
    model: Path
    prompts: list[list[int]]
    dtype: str
    vocab: int
    loras: list[tuple[Path, float]] = field(default_factory=list)
    adapter: Path | None = None
    load_dtype: str = "float32"
    quantize: str | None = None
    config: dict[str, Any] | None = None
    texts: tuple[str, ...] = ()
    embed: list[list[int]] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    as_read: bool = False
    context: int | None = None
    greedy: int = 2
    tokens: int = ANSWER_TOKENS

    @property
    def steps(self) -> int:
        """How many things are asked: the unit of `runtime_answers`' progress."""
        answers = min(self.greedy, len(self.prompts)) + len(self.follow)
        return len(self.prompts) + answers + len(self.texts) + len(self.embed)


@dataclass(frozen=True)
class Answers:
    """log p [vocab] per prompt and greedy continuations, of the workbench or of a runtime.

    `followed` are the likeliest tokens at every step of the continuations that the job gave.
    """

    logprobs: list[Vector]
    greedy: list[list[int]]
    tokenized: list[list[int] | None] = field(default_factory=list)
    followed: list[list[int]] = field(default_factory=list)
    label: str = ""
    embeddings: list[Vector] = field(default_factory=list)
    tokens_per_second: float | None = None


def runtime_installed(runtime: str) -> bool:
    """Whether `llama.cpp` (xllamacpp) or `transformers` (with peft) can be imported; nothing is imported."""
    needed = ("xllamacpp",) if runtime == "llama.cpp" else ("transformers", "peft")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def workbench_answers(backbone: Any, coefficients: torch.Tensor, job: ParityJob) -> Generator[Progress, None, Answers]:
    """The workbench's own answers under the frozen mix `coefficients` [N], greedily with its key/value cache."""
    row = coefficients.reshape(1, -1)
    logprobs, greedy = [], []
    with torch.no_grad():
        for index, ids in enumerate(job.prompts):
            capacity = len(ids) + job.tokens
            cache = backbone.new_cache(1, capacity)
            hidden = backbone.forward(torch.tensor([ids], device=backbone.device), cache, row)
            last = torch.log_softmax(backbone.logits(hidden[:, -1]).double(), dim=-1)[0]
            logprobs.append(last.float().cpu().numpy())
            yield Progress("workbench", index + 1, len(job.prompts))
            if index >= job.greedy:
                continue
            said = [int(last.argmax())]
            while len(said) < job.tokens:
                step = torch.tensor([[said[-1]]], device=backbone.device)
                said.append(int(backbone.logits(backbone.forward(step, cache, row)[:, -1]).argmax()))
                yield Progress("workbench", index + 1, len(job.prompts))
            greedy.append(said)
    return Answers(logprobs, greedy)


def _child(job: ParityJob, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        module_words("dlm_tui.export.parity_child"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        **OWN_GROUP,
    )
    longest = max(len(ids) for ids in [*job.prompts, *job.embed]) + job.tokens + 8
    order = {
        "runtime": job.runtime,
        "model": str(job.model),
        "loras": [(str(path), scale) for path, scale in job.loras],
        "adapter": str(job.adapter) if job.adapter else None,
        "prompts": job.prompts,
        "greedy": job.prompts[: job.greedy],
        "follow": [[ids, said] for ids, said in zip(job.prompts, job.follow, strict=False)],
        "tokens": job.tokens,
        "texts": job.texts,
        "load_dtype": job.load_dtype,
        "quantize": job.quantize,
        "config": job.config,
        "embed": job.embed,
        "as_read": job.as_read,
        "vocab": job.vocab,
        "context": max(64, (longest + 63) // 64 * 64, job.context or 0),
    }
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once: reading its output will say so
    return child


def child_lines(child: subprocess.Popen[bytes], patience: float) -> Generator[dict[str, Any] | None, None, None]:
    """The child's lines as they come; None about every 50 ms of silence. Raises ExportRefused when it dies or hangs."""
    assert child.stdout is not None
    descriptor, buffer, heard = child.stdout.fileno(), b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(0.05):
                if time.monotonic() - heard > patience:
                    raise ExportRefused(f"the runtime said nothing for {patience:.0f} s while trying the export")
                yield None
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                code = child.wait()
                ended = f"by signal {-code}" if code < 0 else f"with code {code}"
                raise ExportRefused(f"the runtime ended {ended} while trying the export")
            buffer, heard = buffer + piece, time.monotonic()
            *whole, buffer = buffer.split(b"\n")
            for line in whole:
                yield json.loads(line)


def runtime_answers(job: ParityJob, patience: float = PATIENCE_SECONDS) -> Generator[Progress, None, Answers]:
    """Load the export into its runtime, in a child process, and ask. The child is gone when this ends, however it ends.

    Raises ExportRefused when the runtime refuses the files, crashes, or is silent for `patience` seconds.
    """
    answers = Answers([], [])
    label, done, speed = "", 0, None
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child's pipes
    total, child = job.steps, _child(job, log)
    try:
        for line in child_lines(child, patience):
            if line is None or "working" in line:
                yield Progress("runtime", done, total)
                continue
            if "failed" in line:
                child.wait()  # its log is whole then
                raise ExportRefused(_why_failed(job, str(line["failed"]), log if not label else None))
            if "done" in line:
                speed = line["tokens_per_second"]
                break
            if "loaded" in line:
                label = str(line["loaded"])
                continue
            done += 1
            if "logprobs" in line:
                answers.logprobs.append(np.frombuffer(base64.b64decode(line["logprobs"]), dtype="<f4"))
            elif "embedding" in line:
                answers.embeddings.append(np.frombuffer(base64.b64decode(line["embedding"]), dtype="<f4"))
            elif "greedy" in line:
                answers.greedy.append(line["greedy"])
            elif "followed" in line:
                answers.followed.append(line["followed"])
            else:
                answers.tokenized.append(line["tokens"])
            yield Progress("runtime", done, total)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, log):
            if pipe is not None:
                pipe.close()
    return replace(answers, label=label, tokens_per_second=speed)


def _why_failed(job: ParityJob, failed: str, loading: IO[bytes] | None) -> str:
    """The sentence for a runtime that `failed`; `loading` is its log where that was before it had loaded the export."""
    if job.runtime == "llama.cpp" and loading is not None:
        loading.seek(0)
        # those behind the first say only that there was one
        error = _LLAMA_ERROR.search(loading.read().decode(errors="replace"))
        other = [target for target in TARGETS if target not in GGUF_TARGETS]
        remedy = f"the targets {', '.join(other[:-1])} and {other[-1]} need no llama.cpp"
        return f"llama.cpp does not load the export: {error[1].strip() if error else failed}; {remedy}"
    return f"the runtime cannot use the export: {failed}"


def compare(
    ours: Answers, theirs: Answers, dtype: str, remedy: str = "bf16 and f32 reach further than f16"
) -> dict[str, Any]:
    """runtime, prompts, vocabulary, max_abs_logprob_diff, mean_kl and max_kl in nats, greedy_agree in [0, 1], dtype.

    Greedy tokens are compared step by step along our own answers where the other side followed them: one that went its
    own way differs from its first near tie on, which says nothing. Raises ExportRefused for probabilities that are not
    finite, with the `remedy`, and for answers that are one token over and over.
    """
    differences, divergences = [], []
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        if mine.shape != other.shape or not np.isfinite(other).all():
            raise ExportRefused(
                f"{theirs.label} gives no finite probability for every token: the numbers overflow in {dtype}, "
                f"or the vocabulary is another one; {remedy}"
            )
        # float32 leaves the sum of 262,144 probabilities off by more than a right export diverges: scaled again
        a, b = (torch.from_numpy(side.astype(np.float64)).log_softmax(-1) for side in (mine, other))
        differences.append(float((a - b).abs().max()))
        divergences.append(float(kl_divergence(a, b)))
    if _one_token(theirs.greedy) and not _one_token(ours.greedy):
        raise ExportRefused(f"{theirs.label} answers with one token over and over, which the workbench does not")
    said = theirs.followed or theirs.greedy
    pairs = [(x, y) for mine, other in zip(ours.greedy, said, strict=True) for x, y in _aligned(mine, other)]
    agreed = sum(x == y for x, y in pairs)
    return {
        "runtime": theirs.label,
        "prompts": len(ours.logprobs),
        "vocabulary": int(ours.logprobs[0].shape[0]),
        "max_abs_logprob_diff": max(differences),
        "mean_kl": float(np.mean(divergences)),
        "max_kl": max(divergences),
        "greedy_agree": agreed / len(pairs) if pairs else 1.0,
        "greedy_tokens": len(pairs),
        "dtype": dtype,
    }


def _one_token(answers: Sequence[Sequence[int]]) -> bool:
    said = [token for answer in answers for token in answer]
    return len(said) > 1 and len(set(said)) == 1


def _aligned(mine: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    padded = [*other, *([-1] * (len(mine) - len(other)))]
    return list(zip(mine, padded[: len(mine)], strict=True))


def judge(parity: dict[str, Any], dtype: str, over: str = "") -> None:
    """Raises ExportRefused when the figures are beyond what computing with `dtype` can explain.

    `over` tells in the message what was asked, if it was something of its own.
    """
    verb = "do" if parity["against"].endswith("stored") else "does"
    head = f"the export does not answer as {parity['against']} {verb}{over}"
    limits = (
        ("max_abs_logprob_diff", "log-probabilities differ by", MAX_DIFFERENCE.get(dtype)),
        ("mean_kl", "the mean divergence is", MAX_MEAN_KL.get(dtype, MAX_MEAN_KL_QUANTISED)),
    )
    for key, what, limit in limits:
        if limit is not None and not parity[key] <= limit:
            raise ExportRefused(
                f"{head}: {what} {parity[key]:.3g} nats in {parity['runtime']}, and {dtype} explains at most {limit:g}"
            )
    if parity["greedy_agree"] < MIN_AGREE:
        raise ExportRefused(
            f"{head}: in {parity['runtime']} {parity['greedy_agree']:.0%} of the likeliest tokens are the same, "
            f"and {dtype} leaves at least {MIN_AGREE:.0%}"
        )


def check_tokenizer(texts: Sequence[str], expected: Sequence[list[int]], found: Sequence[list[int] | None]) -> None:
    """Raises ExportRefused naming the first text that the runtime's own tokenizer splits differently."""
    for text, ours, theirs in zip(texts, expected, found, strict=True):
        if theirs is not None and list(ours) != list(theirs):
            raise ExportRefused(f"the tokenizer written into the GGUF splits {text!r} differently in llama.cpp")
