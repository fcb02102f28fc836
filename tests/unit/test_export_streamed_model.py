"""A model whose weights are read as it runs answers as the whole model does, and never holds more than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from dlm_tui.export.ggml_arithmetic import Loras
from dlm_tui.export.reference_runtimes import MergedWeights, base_and_pairs
from dlm_tui.export.runtimes import Transformers
from dlm_tui.export.streamed_model import StreamedModel
from tests.tiny_models import ARCHITECTURES, write_tiny_base

PROMPTS = [list(range(5, 5 + length)) for length in (7, 1, 20, 12)]


class Counted:
    """The weights of a model as they are; counts the numbers that are handed out and kept."""

    def __init__(self, model: Any) -> None:
        self.state = {name: one.data.clone() for name, one in model.named_parameters(remove_duplicate=False)}
        self.largest = 0

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        assert tuple(self.state[name].shape) == shape
        return self.rows(name, 0, shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        found = self.state[name][start:stop].clone()
        self.largest = max(self.largest, found.numel())
        return found

    def inputs(self, name: str, x: Tensor) -> Tensor:
        return x

    def loras(self, module: str) -> Loras:
        return []


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_answers_as_the_whole_model(tmp_path: Path, architecture: str) -> None:
    """Prompts of several lengths together, padded, beyond a sliding window of twelve, against one at a time."""
    model = loaded(write_tiny_base(tmp_path / "base", architecture))
    whole = Transformers(model, "whole")
    logprobs, greedy = list(whole.logprobs(PROMPTS)), list(whole.greedy(PROMPTS[:2], 20))
    weights, beats = Counted(model), []
    streamed = StreamedModel(model, weights, lambda: beats.append(1))
    assert held(model) == 0
    found = streamed.logprobs(PROMPTS).float().numpy()
    for one, other in zip(found, logprobs, strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    assert streamed.greedy(PROMPTS[:2], 20) == greedy
    assert held(model) == 0 and beats


def held(model: Any) -> int:
    """Numbers that the parameters of a model hold."""
    return sum(one.numel() for one in model.parameters())


def test_embedding_and_output_layer_are_read_in_rows(tmp_path: Path) -> None:
    model = loaded(write_tiny_base(tmp_path / "base", "llama", vocab_size=40_000, hidden_size=128))
    weights = Counted(model)
    StreamedModel(model, weights, lambda: None).logprobs(PROMPTS)
    assert weights.largest <= 1 << 20 < model.config.vocab_size * 128


@pytest.fixture(params=["llama", "gemma3_text", "gpt2"])
def merged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path, dict[str, Tensor]]]:
    """A base, a file with pairs for a matrix and for the embedding, and what is in it."""
    folder = write_tiny_base(tmp_path / "base", request.param)
    model = loaded(folder)
    generator = torch.Generator().manual_seed(3)
    matrix = next(name for name, one in model.named_parameters() if ".0." in name and one.ndim == 2)
    embedding = next(name for name, one in model.named_modules() if one is model.get_input_embeddings())
    tensors = {}
    for module in (matrix.rpartition(".")[0], embedding):
        rows, columns = model.get_submodule(module).weight.shape
        tensors[f"{module}.lora_A"] = 0.3 * torch.randn(4, columns, generator=generator)
        tensors[f"{module}.lora_B"] = 0.3 * torch.randn(rows, 4, generator=generator)
    save_file(tensors, tmp_path / "pairs.safetensors")
    yield folder, tmp_path / "pairs.safetensors", tensors


def test_base_and_pairs_are_merged_and_rounded_once(merged: tuple[Path, Path, dict[str, Tensor]]) -> None:
    """Against the whole model, merged by hand; the output layer keeps the embedding from before the mix."""
    folder, pairs, tensors = merged
    model = loaded(folder)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone())
    with torch.no_grad():
        for name in {key.rpartition(".")[0] for key in tensors}:
            model.get_submodule(name).weight += tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    wanted = list(Transformers(model, "whole").logprobs(PROMPTS))
    reference = base_and_pairs(str(folder), str(pairs), "bfloat16", lambda: None)
    for one, other in zip(reference.logprobs(PROMPTS), wanted, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_the_mix_changes_the_embedding_only(tmp_path: Path) -> None:
    model = loaded(write_tiny_base(tmp_path / "base", "llama"))
    name = "model.embed_tokens"
    rows, columns = model.get_submodule(name).weight.shape
    pairs = {f"{name}.lora_A": torch.ones(1, columns), f"{name}.lora_B": torch.ones(rows, 1)}
    weights = MergedWeights(model, pairs, torch.float32)
    before = model.get_submodule(name).weight.detach()
    assert torch.equal(weights.rows("lm_head.weight", 3, 5), before[3:5])
    assert torch.equal(weights.rows(f"{name}.weight", 3, 5), before[3:5] + 1)
