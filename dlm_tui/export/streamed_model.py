"""A transformers model whose weights are read when a layer runs and dropped behind it.

The reference of a trial computes in float32. Held whole it takes twice the memory of a bfloat16 base and four times
that of an eight bit file; read a module at a time, it takes one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dlm_tui.export.ggml_arithmetic import Loras, add_loras
from dlm_tui.export.weights import blocks

_PAD = 0


class Weights(Protocol):
    """The weights of a model by their names in it, as float32."""

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole weight."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the input embedding or of the output layer, which may be tied to it."""

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """What the matrix `name` is multiplied with where `x` [..., columns] comes in."""

    def loras(self, module: str) -> Loras:
        """What is added beside the matrix of a module."""


class StreamedModel:
    """A causal LM without weights of its own. Prompts run together, padded on the left, so each weight is read once.

    Args:
        model: Of transformers, with any weights in it, or none.
        weights: What it computes with.
        beat: Called whenever a module has run, as a sign of life.
    """

    def __init__(self, model: Any, weights: Weights, beat: Callable[[], None]) -> None:
        self._model = model.eval()
        self._weights = weights
        self._beat = beat
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        for name, module in model.named_modules():
            if module is embedding:
                self._read_rows(module, name)
            elif module is head:
                self._in_pieces(module, name)
            elif any(True for _ in module.parameters(recurse=False)):
                self._while_it_runs(module, name)

    def _while_it_runs(self, module: nn.Module, name: str) -> None:
        shapes = {key: tuple(one.shape) for key, one in module.named_parameters(recurse=False)}
        drop(module)

        def fill(*_: Any) -> None:
            for key, shape in shapes.items():
                getattr(module, key).data = self._weights.weight(f"{name}.{key}", shape)

        def empty(*_: Any) -> None:
            drop(module)
            self._beat()

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(empty)
        if isinstance(module, nn.Linear):
            module.forward = self._linear(module, name)  # type: ignore[method-assign]

    def _linear(self, module: nn.Linear, name: str) -> Any:
        loras = self._weights.loras(name)

        def forward(input: Tensor) -> Tensor:
            x = self._weights.inputs(f"{name}.weight", input)
            return add_loras(nn.functional.linear(x, module.weight, module.bias), input, loras)

        return forward

    def _read_rows(self, embedding: Any, name: str) -> None:
        """Only the rows of the tokens that occur; the class of `embedding` looks them up, and may scale them."""
        drop(embedding)
        embedding.padding_idx = None  # it only holds back gradients, and has to be one of the rows
        kind: Any = type(embedding)
        loras = self._weights.loras(name)

        def forward(ids: Tensor) -> Tensor:
            tokens, places = ids.unique(return_inverse=True)
            rows = torch.cat([self._weights.rows(f"{name}.weight", token, token + 1) for token in tokens.tolist()])
            for first, second, scale in loras:
                rows += scale * (first.T[tokens] @ second.T)
            embedding.weight.data = rows
            found: Tensor = kind.forward(embedding, places)
            drop(embedding)
            return found

        embedding.forward = forward

    def _in_pieces(self, head: nn.Linear, name: str) -> None:
        """The output layer over every token, a few rows of it at a time."""
        rows, columns = head.out_features, head.in_features
        bias = None if head.bias is None else self._weights.weight(f"{name}.bias", tuple(head.bias.shape))
        drop(head)
        loras = self._weights.loras(name)

        def forward(input: Tensor) -> Tensor:
            x = self._weights.inputs(f"{name}.weight", input)
            output = input.new_empty(*input.shape[:-1], rows)
            for start, stop in blocks(rows, columns):
                output[..., start:stop] = x @ self._weights.rows(f"{name}.weight", start, stop).T
            return add_loras(output if bias is None else output + bias, input, loras)

        head.forward = forward  # type: ignore[method-assign]

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """log p of every token after each prompt, in nats, [prompts, vocab] float64."""
        return next(self._steps(prompts))

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The `tokens` likeliest tokens one after another behind each prompt."""
        if not prompts:
            return []
        steps, said = self._steps(prompts), []
        for _ in range(tokens):
            said.append(next(steps).argmax(dim=-1))
        return torch.stack(said, dim=1).tolist() if said else [[] for _ in prompts]

    @torch.no_grad()
    def _steps(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """log p after the prompts, then after the likeliest token behind each, and so on."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[_PAD] * (longest - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), None
        while True:
            found = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache = found.past_key_values
            logprobs = torch.log_softmax(found.logits[:, -1].double(), dim=-1)
            yield logprobs
            ids = logprobs.argmax(dim=-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1


def drop(module: nn.Module) -> None:
    """Give up the weights of a module itself."""
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.empty(0)
