"""The mix as one PEFT folder: uniform rank, alpha equal to the rank, every targeted layer present."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from dlm_tui.export.concatenate import LoraPair, padded
from dlm_tui.export.requests import ExportRefused
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.model.adapters import pair_keys

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that vLLM takes for an adapter of this rank. Raises ExportRefused above 512."""
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise ExportRefused(
        f"the mix has rank {rank} and vLLM takes at most {VLLM_RANKS[-1]}: export it as merged, or leave adapters out"
    )


def target_shapes(pairs: Mapping[str, LoraPair], linears: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Every layer of the base (name -> (out, in)) whose last name part an adapter touches anywhere.

    Serving programs choose layers by that last part, so each of them gets weights, zeros where the mix has none.
    """
    leaves = {module.rpartition(".")[2] for module in pairs}
    return {name: shape for name, shape in linears.items() if name.rpartition(".")[2] in leaves}


def write_peft(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    linears: Mapping[str, tuple[int, int]],
    base_name: str,
    revision: str | None = None,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors (float32) to `folder`; returns the common rank.

    Raises ExportRefused for an adapter on a layer that is not among `linears`; OSError when the disk is full.
    """
    missing = set(pairs) - set(linears)
    if missing:
        raise ExportRefused(f"the base has no layer {min(missing)!r} for the adapters")
    uniform, rank = padded(pairs, target_shapes(pairs, linears))
    tensors: dict[str, Tensor] = {}
    for module, pair in uniform.items():
        key_A, key_B = pair_keys(module, pair.tokens)
        tensors |= {key_A: pair.lora_A.contiguous(), key_B: pair.lora_B.contiguous()}
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": sorted({module.rpartition(".")[2] for module in uniform}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / "adapter_config.json", json_bytes(config))
    return rank
