"""Exports: how exact they are in the runtimes they are for, what a mix costs, and how much memory streaming takes."""

from __future__ import annotations

import ctypes
import importlib.util
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dlm_tui.export.architectures import read_architecture
from dlm_tui.export.concatenate import concatenate
from dlm_tui.export.gguf_model import plan_model, write_model
from dlm_tui.export.gguf_tokenizer import GgufTokenizer, read_tokenizer
from dlm_tui.export.prompts import parity_prompts
from dlm_tui.export.weights import FolderWeights
from dlm_tui.model.adapters import LowRank
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.benchmarks.harness import (
    Row,
    adapters,
    faster,
    load_smol,
    paired,
    reported,
    scratch,
    skipped,
    smol_base,
    smol_folder,
)
from tests.export_sessions import export, open_tiny
from tests.llama_quantiser import LlamaQuantiser
from tests.tiny_models import LLAMA3_ROPE

_RUNTIME = "the workbench's frozen mix"


def rows(quick: bool) -> list[Row]:
    """Exactness on a small random base with everything that is easy to get wrong; cost on the SmolLM2-135M shape."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    changes: dict[str, Any] = {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False, "vocab_size": 387}
    session = open_tiny(folder, "llama", **changes)
    found = [*_in_llama_cpp(session, quick), _in_peft(session), _linear_baseline(session)]
    return found if quick else [*found, _mix_cost(), _memory("q8_0"), _memory("q4_k_m"), _quantising()]


def _difference(name: str, worst: float, goal: float, exact: str, baseline: str = _RUNTIME) -> Row:
    return Row(name, worst, None, baseline, None, f"≤ {goal:g}", worst <= goal, exact, unit="nats")


def _in_llama_cpp(session: Session, quick: bool) -> list[Row]:
    cases = [("base + mix, f32", "llama-server", "f32", 1e-4), ("merged, f32", "ollama", "f32", 1e-4)]
    cases += [("base + mix, f16", "llama-server", "f16", 2e-2), ("merged, f16", "ollama", "f16", 2e-2)]
    found = []
    for label, target, quant, goal in cases[: 2 if quick else None]:
        name = f"export in llama.cpp, largest |Δ log p|: {label}"
        if importlib.util.find_spec("xllamacpp") is None:
            found.append(skipped(name, _RUNTIME, f"≤ {goal:g}", "xllamacpp is not installed"))
            continue
        parity = export(session, target=target, quant=quant).manifest["parity"]
        same = f"{parity['greedy_agree'] * parity['greedy_tokens']:.0f} of {parity['greedy_tokens']} greedy tokens"
        exact = f"{parity['prompts']} prompts × {parity['vocabulary']} tokens, {same}"
        found.append(_difference(name, parity["max_abs_logprob_diff"], goal, exact))
        apart = parity.get("separate_adapters")
        if apart is not None:
            label = label.replace("base + mix", "adapters apart")
            title = f"export in llama.cpp, largest |Δ log p|: {label}"
            found.append(_difference(title, apart["max_abs_logprob_diff"], goal, "runtime scales"))
    return found


def _in_peft(session: Session) -> Row:
    """The PEFT folder as PEFT loads it."""
    result = export(session, target="peft", verify=False)
    prompts = parity_prompts(session.document, session.base, 96)
    plain: Any = AutoModelForCausalLM.from_pretrained(session.base_override, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, result.folder).eval()
    row = session.model.coefficients(dict(result.manifest["mix"])).reshape(1, -1)
    worst = 0.0
    with torch.no_grad():
        for ids in prompts:
            tokens = torch.tensor([ids])
            theirs = loaded(tokens).logits[0, -1].double().log_softmax(-1)
            hidden = session.model.backbone.forward(tokens, None, row)[0, -1]
            ours = session.model.backbone.logits(hidden).double().log_softmax(-1)
            worst = max(worst, float((theirs - ours).abs().max()))
    return _difference("export in PEFT, largest |Δ log p|", worst, 1e-5, f"{len(prompts)} prompts")


def _linear_baseline(session: Session) -> Row:
    """Relative error of the weight change of one layer: our stack and PEFT's `linear`, equal ranks."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    plain: Any = AutoModelForCausalLM.from_pretrained(session.base_override, dtype=torch.float32)
    model: Any = get_peft_model(plain, config, adapter_name="a")
    for name in ("b", "c"):
        model.add_adapter(name, config)
    model.add_weighted_adapter(["a", "b", "c"], [1 / 3] * 3, "mixed", combination_type="linear")
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        exact = sum(layer.get_delta_weight(name).double() for name in "abc") / 3
        stacked = concatenate({name: _adapter(layer, name) for name in "abc"}, [(name, 1 / 3) for name in "abc"])["q"]
        ours = float(((stacked.lora_B @ stacked.lora_A).double() - exact).norm() / exact.norm())
        linear = float((layer.get_delta_weight("mixed").double() - exact).norm() / exact.norm())
    name = "export, relative error of the mixed weight change"
    return Row(name, ours, linear, "PEFT linear merge", linear / ours, "≤ 1e-6", ours <= 1e-6, "3 × rank 4", unit="")


def _adapter(layer: Any, name: str) -> Any:
    lora_A, lora_B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return type("One", (), {"modules": {"q": LowRank(lora_A, lora_B, layer.scaling[name])}})


def _mix_cost() -> Row:
    """One mix of eight adapters as one adapter."""
    trained = adapters(8)
    weights = [(name, 1 / 8) for name in trained]
    plain = load_smol().model
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    model: Any = get_peft_model(plain, config, adapter_name="a0")
    for name in list(trained)[1:]:
        model.add_adapter(name, config)
    names = [name for name, _ in weights]

    def by_peft() -> None:
        model.add_weighted_adapter(names, [1 / 8] * 8, "mixed", combination_type="cat")
        model.delete_adapter("mixed")

    timing = paired(lambda: concatenate(trained, weights), by_peft, rounds=5, warmup=1)
    return reported("export, 8 adapters into one", timing, "PEFT cat", "both exact; finiteness is checked in ours")


def _quantising() -> Row:
    """The SmolLM2-135M shape read, quantised to Q4_K_M and written, against llama.cpp's quantiser alone on one core.

    llama.cpp gets its numbers from memory in float32 and writes nothing.
    """
    name, baseline, goal = "export, quantising to Q4_K_M", "ggml_quantize_chunk, one core", "≥ 0.8×"
    if importlib.util.find_spec("xllamacpp") is None:
        return skipped(name, baseline, goal, "xllamacpp is not installed")
    base, source = smol_base(), FolderWeights(smol_folder())
    architecture = read_architecture(base.config.to_dict())
    tokenizer = GgufTokenizer("gpt2", "gpt-2", ["a"], [1])  # packing 49,152 tokens is no quantising
    out, quantiser = scratch() / "quantised.gguf", LlamaQuantiser()
    work = []
    for tensor in plan_model(source, architecture, "q4_k_m"):
        if len(tensor.shape) > 1:
            rows = np.concatenate([block.numpy() for block in tensor.blocks()])
            work.append((rows, tensor.kind, np.empty(tensor.nbytes, dtype=np.uint8)))

    def ours() -> None:
        run_to_end(write_model(out, source, architecture, tokenizer, "q4_k_m", name="x"))

    def theirs() -> None:
        for rows, kind, filled in work:
            quantiser.quantise(rows, kind, filled)

    timing = paired(ours, theirs, rounds=3, warmup=1)
    elements = sum(rows.size for rows, _, _ in work)
    exact = f"{elements / 1e6:.0f} M numbers, read from safetensors and flushed to disk in ours"
    return faster(name, timing, baseline, 0.8, exact)


def _memory(quant: str) -> Row:
    """The most memory of one's own, above the start, while the SmolLM2-135M shape is merged and written."""
    base = smol_base()
    pairs = concatenate(adapters(3), [(name, 1 / 3) for name in adapters(3)])
    architecture = read_architecture(base.config.to_dict())
    tokenizer = read_tokenizer(base.tokenizer, architecture.vocab)
    out = scratch() / "smol.gguf"
    ours = _peak(
        lambda: run_to_end(
            write_model(out, FolderWeights(smol_folder()), architecture, tokenizer, quant, name="x", mix=pairs)
        )
    )
    held: list[dict[str, torch.Tensor]] = []

    def whole() -> None:
        merged = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
        for module, pair in pairs.items():
            merged[f"{module}.weight"] += pair.lora_B @ pair.lora_A
        held.append(merged)

    baseline = _peak(whole)
    layer = 4 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    name = f"export, peak memory while merging to {quant}"
    exact = f"one layer is {layer / 1e6:.0f} MB, the embedding {4 * 576 * 49152 / 1e6:.0f} MB in float32"
    goal = 2 * layer
    ratio = baseline / max(ours, 1)
    return Row(
        name, ours / 1e6, baseline / 1e6, "all weights at once", ratio, "≤ 2 layers", ours <= goal, exact, unit="MB"
    )


def _peak(work: Callable[[], object]) -> int:
    """The largest growth in anonymous memory while `work` runs, sampled every 2 ms."""
    # what earlier work freed but kept would hide the growth
    ctypes.CDLL(None).malloc_trim(0)
    start, worst, stop = _own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal worst
        while not stop.wait(0.002):
            worst = max(worst, _own_memory() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    stop.set()
    thread.join()
    return worst


def _own_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
