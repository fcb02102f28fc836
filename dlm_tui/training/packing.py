"""Packing: the rows of a batch end to end in one sequence, each seeing only itself, instead of padded side by side.

transformers reads where a row begins from positions that start again at 0 and makes attention block-diagonal
(`find_packed_sequence_indices`); whether a base really does so is tried on the base itself (`packs_exactly`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dlm_tui.model.offloaded import computing_device
from dlm_tui.training.rows import collate_sequences

# Largest difference of a logit, of the largest logit.
_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-4, 0.05


def collate_packed(rows: Sequence[list[int]]) -> dict[str, Any]:
    """One sequence of all rows: ids, positions and labels [1, total]; the first token of a row is nobody's target."""
    labels = [token for row in rows for token in [-100, *row[1:]]]
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": torch.tensor([[position for row in rows for position in range(len(row))]]),
        "labels": torch.tensor([labels]),
        "use_cache": False,
    }


def collate_cheaper(rows: Sequence[list[int]], filler: int, hidden_size: int) -> dict[str, Any]:
    """Packed or padded, whichever is less work. The loss is the same.

    A token costs about 12·H² multiplications per layer and 2·H more for every position it is compared with: those of
    its own row when padded, of all rows when packed.
    """
    lengths = [len(row) for row in rows]
    packed, longest = sum(lengths), max(lengths)
    padded = len(rows) * longest
    if len(rows) > 1 and packed * (6 * hidden_size + packed) < padded * (6 * hidden_size + longest):
        return collate_packed(rows)
    return collate_sequences(rows, filler)


def packs_exactly(model: Any, vocab_size: int) -> bool:
    """Whether packed rows give the logits that they give alone: not so where a layer carries a state across tokens."""
    device = computing_device(model)
    shapes = ((3, 5), (11, 9), (5, 4))
    rows = [[(7 * index + shift) % vocab_size for index in range(length)] for shift, length in shapes]
    packed = {key: value for key, value in collate_packed(rows).items() if key != "labels"}
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in packed.items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(**moved).logits[0].float()
            singles = [torch.tensor([row], device=device) for row in rows]
            alone = [model(input_ids=ids, use_cache=False).logits[0].float() for ids in singles]
    except (TypeError, ValueError, RuntimeError):  # a forward without positions, or that cannot take them
        return False
    finally:
        model.train(training)
    apart = torch.cat(alone)
    tolerance = _TOLERANCE if next(model.parameters()).dtype == torch.float32 else _LOW_PRECISION_TOLERANCE
    return bool((together - apart).abs().max() <= tolerance * max(1.0, float(apart.abs().max())))
