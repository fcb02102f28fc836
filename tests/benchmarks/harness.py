"""Rows, paired timing, the machine, and the base the benchmarks run on.

A module `bench_<topic>.py` in this folder has a function `rows(quick: bool) -> list[Row]`; `python -m
tests.benchmarks.run` collects them. Ours and the baseline are timed in turns, in one process, and the ratio is the
median over the pairs: whatever disturbs the machine disturbs both.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dlm_tui.model.adapters import Adapter, LowRank, layer_shape
from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.registry import resolve_base
from dlm_tui.progress import run_to_end
from tests.tiny_models import target_names

SMOL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Row:
    """One line of the report. `ours` and `baseline` are in `unit`; `ratio` is the better-is-larger speed-up or, for
    goals that begin with ≤, ours over baseline. `met` is None where there is no goal or nothing was measured;
    `exact` says what was compared beside the timing and how far apart it was."""

    name: str
    ours: float | None
    baseline: float | None
    baseline_name: str
    ratio: float | None
    goal: str
    met: bool | None
    exact: str
    unit: str = "ms"


@dataclass(frozen=True)
class Timing:
    """Medians in seconds over the rounds, and the median of the per-round ratios baseline / ours."""

    ours: float
    baseline: float
    speedup: float
    rounds: int


def paired(
    ours: Callable[[], object],
    baseline: Callable[[], object],
    *,
    rounds: int = 15,
    warmup: int = 2,
    repeat: int = 1,
) -> Timing:
    """Time both in turns, the order alternating; `repeat` runs of `ours` count as one measurement each round."""
    for _ in range(warmup):
        ours()
        baseline()
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            slow = _alone(baseline)
            quick = _alone(ours, repeat)
        else:
            quick = _alone(ours, repeat)
            slow = _alone(baseline)
        pairs.append((quick, slow))
    return Timing(
        statistics.median(quick for quick, _ in pairs),
        statistics.median(slow for _, slow in pairs),
        statistics.median(slow / quick for quick, slow in pairs),
        rounds,
    )


def _alone(work: Callable[[], object], repeat: int = 1) -> float:
    # torch's idle threads go on spinning for some milliseconds and would take a core from the other side; nothing tells
    # when they have ended
    time.sleep(0.05)
    return seconds(work, repeat)


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Wall-clock seconds of one run of `work`, averaged over `repeat`."""
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def faster(name: str, timing: Timing, baseline_name: str, goal: float, exact: str) -> Row:
    """A row whose goal is to be at least `goal` times faster than the baseline."""
    met = timing.speedup >= goal
    return _row(name, timing, baseline_name, timing.speedup, f"≥ {goal:,g}×", met, exact)


def at_most(name: str, timing: Timing, baseline_name: str, goal: float, exact: str) -> Row:
    """A row whose goal is to take at most `goal` times as long as the baseline."""
    ratio = 1.0 / timing.speedup
    return _row(name, timing, baseline_name, ratio, f"≤ {goal:g}×", ratio <= goal, exact)


def reported(name: str, timing: Timing, baseline_name: str, exact: str) -> Row:
    """A row without a goal."""
    return _row(name, timing, baseline_name, timing.speedup, "report", None, exact)


def skipped(name: str, baseline_name: str, goal: str, reason: str) -> Row:
    """A row that could not be measured here, and why."""
    return Row(name, None, None, baseline_name, None, goal, None, f"not measured: {reason}")


def _row(name: str, timing: Timing, baseline_name: str, ratio: float, goal: str, met: bool | None, exact: str) -> Row:
    ours, baseline = timing.ours * 1e3, timing.baseline * 1e3
    return Row(name, ours, baseline, baseline_name, ratio, goal, met, exact)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "read_gb_per_second": read_bandwidth() / 1e9,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_bandwidth(size: int = 1 << 27, rounds: int = 5) -> float:
    """Bytes per second at which torch.sum reads `size` float32 numbers, the best of `rounds`."""
    numbers = torch.ones(size)
    torch.sum(numbers)
    return numbers.nbytes / min(seconds(lambda: torch.sum(numbers)) for _ in range(rounds))


PLAIN_READ = "one read of those weights, a plain loop in every thread"


def layer_weights(base: Base) -> list[Tensor]:
    """The matrices that every token reads whole: all but the token embedding, of which it reads a row, and as many
    experts, stacked or apart, as a token goes through."""
    embedding = cast("Any", base.model).get_input_embeddings().weight
    per_token = int(getattr(base.config, "num_experts_per_tok", None) or 0)
    found = []
    for name, weight in base.decoder.named_parameters():
        expert = name.rpartition(".")[2]
        is_read = weight.dim() > 1 and weight is not embedding and not (expert.isdecimal() and int(expert) >= per_token)
        if is_read:
            found.append(weight[:per_token] if weight.dim() == 3 else weight)
    return found


def plain_read(weights: Sequence[Tensor]) -> Callable[[], None]:
    """A function that reads every byte of `weights` once, in as many threads as torch has, and does nothing else.

    An addition of whole numbers per 8 bytes: how fast memory gives them is all that it measures.
    """
    count = torch.get_num_threads()
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    for weight in {weight.data_ptr(): weight for weight in weights}.values():
        start, length = weight.data_ptr(), weight.numel() * weight.element_size()
        first = -start % 8
        words = np.frombuffer((ctypes.c_char * length).from_address(start), np.uint8)[first:]
        for part, piece in zip(parts, np.array_split(words[: len(words) // 8 * 8].view(np.uint64), count), strict=True):
            part.append(piece)
    pool, add = ThreadPoolExecutor(count), _adder()

    def of_one(pieces: list[np.ndarray]) -> int:
        return sum(int(add(piece)) for piece in pieces)

    def read() -> None:
        list(pool.map(of_one, parts))

    read()  # compiles
    return read


@functools.cache
def _adder() -> Any:
    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def add(words: Any) -> Any:
        total = np.uint64(0)
        for word in words:
            total += word
        return total

    return add


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines: Iterator[str] = iter(info.read_text().splitlines()) if info.is_file() else iter(())
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


@functools.cache
def scratch() -> Path:
    """A folder for this benchmark run, removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="dlm-bench-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def smol_folder() -> Path:
    """A random model of the SmolLM2-135M shape, saved as a model folder with the embedded base's tokenizer."""
    folder = scratch() / "smol"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMOL))
    model.save_pretrained(folder)
    pocket = resolve_base("pocket").path
    PreTrainedTokenizerFast.from_pretrained(str(pocket)).save_pretrained(folder)
    leave_cache(folder)
    return folder


def leave_cache(folder: Path) -> None:
    """Take weight files out of the system's cache, as after a start of the machine: pages that a writer left there are
    small, those that the program reads in itself are huge where the system can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_smol() -> Base:
    """A fresh copy of the benchmark base."""
    return run_to_end(load_base(resolve_base("hf:bench/smol", smol_folder()), device="cpu"))


@functools.cache
def smol_base() -> Base:
    """The benchmark base that all modules share."""
    return load_smol()


@functools.cache
def pocket_base() -> Base:
    """The embedded base that all modules share."""
    return run_to_end(load_base(resolve_base("pocket"), device="cpu"))


def shared_base(kind: str) -> Base:
    """The base called `smol` (the 135M shape, random) or `pocket` (the embedded one)."""
    return smol_base() if kind == "smol" else pocket_base()


@functools.cache
def adapters(count: int, rank: int = 8, kind: str = "smol") -> dict[str, Adapter]:
    """Random adapters on the attention projections of a shared base, large enough to change its answers."""
    return random_adapters(shared_base(kind), count, rank)


def random_adapters(base: Base, count: int, rank: int = 8) -> dict[str, Adapter]:
    """Random adapters on the attention projections of `base`."""
    names = target_names(base)
    made = {}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        modules = {}
        for name in names:
            out_features, in_features = layer_shape(base.target_module(name))
            lora_A = torch.randn(rank, in_features, generator=generator) * 0.05
            lora_B = torch.randn(out_features, rank, generator=generator) * 0.05
            modules[name] = LowRank(lora_A, lora_B, 2.0)
        made[f"a{number}"] = Adapter(f"a{number}", modules)
    return made
