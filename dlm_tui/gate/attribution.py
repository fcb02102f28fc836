"""Which tokens move the gate: the attribution of every token, and the weights after every prefix (the trajectory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dlm_tui.gate.embedding import encodable
from dlm_tui.gate.gate import Gate


class HasTokenizer(Protocol):
    """A base with its tokenizer."""

    @property
    def tokenizer(self) -> Any: ...


@dataclass(frozen=True)
class TokenAttribution:
    """One prompt token: its text, its place prompt[start:end] in code points, and its attribution per adapter.

    An attribution (the screen says "pull") is the first-order change of that adapter's weight caused by the token's
    presence, in weight units.
    """

    text: str
    start: int
    end: int
    attribution: dict[str, float]


def attribution_values(gate: Gate, states: Tensor) -> Tensor:
    """Attribution of every token to every weight; final hidden states [T, H] -> float64 [T, N].

    With m the mean state and g the gradient of a weight at m: attribution = g · (h − m) / (T − 1), the first-order
    change of the weight between leaving the token out of the mean and having it in. g · h alone differs by a constant
    per prompt.
    """
    rows = states.double()
    mean = rows.mean(dim=0)
    _, gradients = gate.weights_and_gradients(mean)
    return (rows - mean) @ gradients.T / max(len(rows) - 1, 1)


def trajectory(gate: Gate, running: Tensor) -> list[dict[str, float]]:
    """Weights after every prefix, from running sums of hidden states [T + 1, H] float64 whose first row is zero."""
    count = len(running) - 1
    if count < 1:
        return []
    lengths = torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(1)
    rows = gate.weights((running[1:] / lengths).float()).tolist()
    return [dict(zip(gate.names, row, strict=True)) for row in rows]


def token_places(base: HasTokenizer, prompt: str, ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where each token lies in the prompt, (start, end) in code points; (0, 0) for special tokens.

    From the tokenizer's own offsets where it has them, else by decoding ever longer prefixes.
    """
    tokenizer, prompt = base.tokenizer, encodable(prompt)
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(prompt, truncation=True, max_length=len(ids), return_offsets_mapping=True)
        if tuple(encoded["input_ids"]) == ids:
            return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    places = []
    before = 0
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:count]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        after = len(text) if prompt.startswith(text) else before
        places.append((before, after))
        before = after
    return places


def token_attributions(
    gate: Gate, base: HasTokenizer, prompt: str, ids: tuple[int, ...], states: Tensor
) -> list[TokenAttribution]:
    """The attributions of all tokens of the prompt, in order; `states` [T, H] belong to `ids`."""
    if not ids:
        return []
    values = attribution_values(gate, states).tolist()
    places = token_places(base, prompt, ids)
    return [
        TokenAttribution(prompt[start:end], start, end, dict(zip(gate.names, row, strict=True)))
        for (start, end), row in zip(places, values, strict=True)
    ]
