"""One adapter, or a whole mix stacked into one, as an adapter GGUF."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path

import gguf

from dlm_tui.export.architectures import Architecture, permute_rows
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.gguf_file import PlannedTensor, new_writer, write_tensors
from dlm_tui.export.requests import ExportRefused
from dlm_tui.progress import Progress


def plan_adapter(pairs: Mapping[str, LoraPair], architecture: Architecture) -> list[PlannedTensor]:
    """The tensors of an adapter file: lora_a [r, in] and lora_b [out, r], rows of q and k permuted in B only.

    Always float32: adapters are small, and the mix stays exact. Raises ExportRefused for a module that the runtime
    would silently ignore (norms) or cannot hold apart (a tied output layer).
    """
    tensors = []
    for module, pair in pairs.items():
        name = architecture.gguf_name(f"{module}.weight")
        if name is None or "norm" in name or (name == "token_embd.weight") != pair.tokens:
            raise ExportRefused(
                f"an adapter on {module!r} would be ignored by llama.cpp, so it cannot be written as GGUF"
            )
        if name == "output.weight" and architecture.tied:
            raise ExportRefused(
                f"an adapter on {module!r} would also change the tied embedding, so it cannot be written"
            )
        if pair.tokens and architecture.tied:
            raise ExportRefused(
                f"llama.cpp takes {module!r} and the output layer that is tied to it for one, so an adapter GGUF cannot"
                " change the embedding alone; `export --target llama-server` or `ollama` writes them apart"
            )
        lora_B = permute_rows(pair.lora_B, architecture.permuted_heads(f"{module}.weight"))
        # llama.cpp looks a token's row up in lora_a, which is therefore [vocabulary, r]
        lora_A = pair.lora_A.T if pair.tokens else pair.lora_A
        for suffix, matrix in (("lora_a", lora_A), ("lora_b", lora_B)):
            kept = matrix.float().contiguous()
            whole = partial(iter, (kept,))
            tensors.append(PlannedTensor(f"{name}.{suffix}", tuple(kept.shape), gguf.GGMLQuantizationType.F32, whole))
    return tensors


def write_adapter(
    path: Path, pairs: Mapping[str, LoraPair], architecture: Architecture, *, name: str
) -> Generator[Progress, None, None]:
    """Write `pairs` (scales folded into lora_B) to `path`. Progress counts bytes.

    The runtime's own scale is alpha/rank; alpha 0 means the user's scale alone, which is what files without a common
    rank need.
    """
    tensors = plan_adapter(pairs, architecture)
    writer = new_writer(path, architecture.family.gguf, None)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(name)
    writer.add_float32("adapter.lora.alpha", 0.0)
    yield from write_tensors(writer, path, tensors)
