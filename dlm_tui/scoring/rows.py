"""One prompt under many mixes: hidden states of its last tokens, row by row, in pieces that can be interrupted."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from dlm_tui.errors import UsageError
from dlm_tui.model import Backbone, MixedModel
from dlm_tui.progress import Progress
from dlm_tui.scoring.errors import EmptyText, NonFiniteScores

ROWS_PER_STEP = 8
TOKENS_PER_PIECE = 32


@torch.no_grad()
def last_hidden(
    backbone: Backbone, ids: Sequence[int], coefficients: Tensor, last: int, stage: str = "score"
) -> Generator[Progress, None, Tensor]:
    """Final hidden states [B, last, H] of the last tokens of `ids` under every row of `coefficients` [B, N].

    Runs at most 8 rows by 32 tokens at a time and yields after each; the caller's mixer decides what a row means.
    """
    total = len(coefficients) * len(ids)
    done, found = 0, []
    for first in range(0, len(coefficients), ROWS_PER_STEP):
        rows = coefficients[first : first + ROWS_PER_STEP]
        cache = backbone.new_cache(len(rows), len(ids)) if len(ids) > TOKENS_PER_PIECE else None
        kept: list[Tensor] = []
        for start in range(0, len(ids), TOKENS_PER_PIECE):
            piece = torch.tensor(ids[start : start + TOKENS_PER_PIECE], dtype=torch.long).expand(len(rows), -1)
            hidden = backbone.forward(piece, cache, rows)
            wanted = start + piece.shape[1] - (len(ids) - last)
            if wanted > 0:
                kept.append(hidden[:, -min(wanted, piece.shape[1]) :])
            done += piece.numel()
            yield Progress(stage, done, total)
        found.append(torch.cat(kept, dim=1))
    return torch.cat(found)


@torch.no_grad()
def log_probabilities(backbone: Backbone, hidden: Tensor, name: str) -> Tensor:
    """Log-probabilities float64 [T, V] on the CPU of one row's hidden states [T, H].

    Raises NonFiniteScores naming the view when its logits are not finite.
    """
    logits = backbone.logits(hidden).double().cpu()
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).sum())
        raise NonFiniteScores(f"view {name!r} gives {bad} of {logits.numel()} logits that are not finite")
    return torch.log_softmax(logits, dim=-1)


def check_length(model: MixedModel, count: int) -> None:
    """Raises EmptyText for no tokens, UsageError for more than the base reads."""
    if count == 0:
        raise EmptyText("a prompt of zero tokens cannot be scored")
    if count > model.base.context_length:
        raise UsageError(f"the text has {count} tokens but the base reads at most {model.base.context_length}")
