"""The references an export is compared with: what its stored weights, or base and mix, answer in transformers.

Runs only inside the child of `parity_child`, on one thread, a module's weights at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.initialization import no_init_weights

from dlm_tui.export.architectures import Architecture, read_architecture
from dlm_tui.export.ggml_arithmetic import Loras, rounded_inputs
from dlm_tui.export.runtimes import Vector
from dlm_tui.export.stored_weights import StoredWeights
from dlm_tui.export.streamed_model import StreamedModel, Weights


class Reference:
    """A runtime of transformers whose weights are read as they are needed; all prompts run together."""

    tokens_per_second = None

    def __init__(self, config: Any, weights: Weights, label: str, beat: Callable[[], None]) -> None:
        torch.set_num_threads(1)
        with no_init_weights():
            shell: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.label = f"{label} in transformers {transformers.__version__}"
        self._model = StreamedModel(shell, weights, beat)

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> Iterator[Vector]:
        """log p of every token after each prompt, in nats, [vocab]."""
        return iter(self._model.logprobs(prompts).float().numpy())

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        """The `tokens` likeliest tokens one after another behind each prompt."""
        return iter(self._model.greedy(prompts, tokens))

    def followed(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        """It is what others follow."""
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int] | None:
        """It has none of its own."""
        return None


class GgufWeights:
    """The weights that a GGUF and adapter files at their scales stand for, multiplied as llama.cpp does."""

    def __init__(self, path: Path, loras: Sequence[tuple[str, float]], architecture: Architecture) -> None:
        self._architecture = architecture
        self._stored = StoredWeights(path, architecture)
        self._adapters = [(StoredWeights(Path(lora), architecture), scale) for lora, scale in loras]

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole weight, float32."""
        return self._stored.weight(name, shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the input embedding or of the output layer."""
        [place] = self._architecture.places(self._untied(name))
        return self._stored.rows(name, place, start, stop)

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """`x` rounded as llama.cpp does before it multiplies the matrix `name`."""
        tensor = self._architecture.gguf_name(self._untied(name))
        assert tensor is not None
        return rounded_inputs(x, self._stored.kind(tensor))

    def loras(self, module: str) -> Loras:
        """What the adapter files add to a module."""
        found = [(adapter.lora(module), scale) for adapter, scale in self._adapters]
        return [(*pair, scale) for pair, scale in found if pair is not None]

    def _untied(self, name: str) -> str:
        tied = self._architecture.tied and name == "lm_head.weight"
        return "model.embed_tokens.weight" if tied else name


class MergedWeights:
    """A base with low-rank pairs (`<module>.lora_A`, `.lora_B`) added, rounded to a type."""

    def __init__(self, model: Any, pairs: dict[str, Tensor], dtype: torch.dtype) -> None:
        self._base = {name: one.data for name, one in model.named_parameters(remove_duplicate=False)}
        self._pairs = pairs
        self._dtype = dtype

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole weight, float32."""
        return self.rows(name, 0, shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a weight; the output layer of a tied base is what the embedding was before the mix."""
        found: Tensor = self._base[name][start:stop].float()
        module = name.rpartition(".")[0]
        if name.endswith(".weight") and f"{module}.lora_A" in self._pairs:
            found = found + self._pairs[f"{module}.lora_B"][start:stop] @ self._pairs[f"{module}.lora_A"]
        rounded: Tensor = found.to(self._dtype).float()
        return rounded

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def loras(self, module: str) -> Loras:
        """All in the weights."""
        return []


def stored_in_gguf(
    config: dict[str, Any], model: str, loras: Sequence[tuple[str, float]], beat: Callable[[], None]
) -> Reference:
    """The transformers model of `config` with the weights of a GGUF, adapter files beside them."""
    settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    weights = GgufWeights(Path(model), loras, read_architecture(settings.to_dict()))
    return Reference(settings, weights, "the stored weights", beat)


def base_and_pairs(model: str, pairs: str, dtype: str, beat: Callable[[], None]) -> Reference:
    """The base's folder with the pairs in a safetensors file merged, all rounded to `dtype`, computed in float32."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    weights = MergedWeights(loaded, load_file(pairs), getattr(torch, dtype))
    return Reference(loaded.config, weights, "the base and the mix", beat)
