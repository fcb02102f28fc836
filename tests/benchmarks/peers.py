"""The peers the benchmarks compare with, each through its public interface."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from dlm_tui.model.adapters import Adapter, save_peft_adapter
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from tests.benchmarks.harness import scratch, shared_base, smol_base


def environment() -> dict[str, str]:
    """What another program is started with: nothing of what the engine sets for itself."""
    return {name: value for name, value in os.environ.items() if name not in CHILD_ENVIRONMENT}


def folders(adapters: Mapping[str, Adapter], kind: str = "smol") -> dict[str, Path]:
    """The adapters of a shared base as PEFT directories."""
    found = {name: scratch() / f"adapters-{kind}" / name for name in adapters}
    for name, folder in found.items():
        if not folder.exists():
            modules = ("q_proj", "k_proj", "v_proj", "o_proj")
            save_peft_adapter(adapters[name], folder, f"bench/{kind}", target_modules=modules)
    return found


def plain_copy(kind: str = "smol") -> Any:
    """A transformers model of its own with a shared base's weights."""
    return copy.deepcopy(shared_base(kind).model)


def peft_model(adapters: Mapping[str, Adapter], kind: str = "smol") -> Any:
    """PEFT with all adapters loaded."""
    return peft_on(plain_copy(kind), folders(adapters, kind))


def peft_on(plain: Any, places: Mapping[str, Path]) -> Any:
    """PEFT on the transformers model `plain` with the adapters in `places`."""
    first, *others = places
    model: Any = PeftModel.from_pretrained(plain, str(places[first]), adapter_name=first)
    for name in others:
        model.load_adapter(str(places[name]), adapter_name=name)
    return model.eval()


def activate(model: Any, mix: Mapping[str, float]) -> None:
    """All adapters of the mix active at once, each layer's scaling set to coefficient · alpha / r."""
    model.base_model.set_adapter(list(mix))
    for module in model.modules():
        if hasattr(module, "set_scale"):
            for name, value in mix.items():
                module.set_scale(name, value)


def xlora(adapters: Mapping[str, Adapter]) -> Any:
    """PEFT's X-LoRA over the same adapters, its classifier as small as it gets."""
    # it loads its adapters under the names "0", "1", … whatever they are called, and then looks for those given
    paths = {str(number): str(path) for number, path in enumerate(folders(adapters).values())}
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=smol_base().hidden_size, xlora_depth=1, adapters=paths)
    model = plain_copy()
    model.config.use_cache = False
    return get_peft_model(model, config).eval()


def arrow(adapters: Mapping[str, Adapter]) -> Any:
    """PEFT's Arrow router over the same adapters, all of them mixed."""
    paths = [str(path) for path in folders(adapters).values()]
    model: Any = create_arrow_model(plain_copy(), paths, ArrowConfig(top_k=len(paths)))
    return model.eval()


class Decoder:
    """One-token decode steps of a transformers-like model from a fixed prompt: always the same step again."""

    def __init__(self, model: Any, prompt: Sequence[int], token: int) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._token = torch.tensor([[token]])
        self._length = len(prompt)
        with torch.no_grad():
            model(input_ids=torch.tensor([list(prompt)]), past_key_values=self._cache, use_cache=True)

    def step(self) -> Tensor:
        """Next-token logits [V] after prompt and token."""
        with torch.no_grad():
            out = self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        self._cache.crop(-1)
        logits: Tensor = out.logits[0, -1]
        return logits
