"""Training rows of one adapter, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dlm_tui.document import Document, Row, sources, split_side, training_rows

if TYPE_CHECKING:
    from dlm_tui.model import Base


@dataclass(frozen=True)
class PreferencePair:
    """Token ids of prompt + chosen and prompt + rejected; the first `prompt_length` of each are the prompt."""

    chosen: list[int]
    rejected: list[int]
    prompt_length: int


@dataclass
class AdapterRows:
    """Rows of one adapter: causal-LM sequences for training and validation, and preference pairs.

    `prose_share` is the part of the training sequences that is plain text; `weight_distribution` counts rows per tag
    and value before weighting, None where no folder gives weights.
    """

    train: list[list[int]] = field(default_factory=list)
    validation: list[list[int]] = field(default_factory=list)
    preference: list[PreferencePair] = field(default_factory=list)
    section_ids: list[str] = field(default_factory=list)
    truncated: int = 0
    prose_share: float = 0.0
    weight_distribution: dict[str, dict[str, int]] | None = None


def adapter_rows(
    document: Document, indices: Sequence[int], base: Base, weights: sources.Weights | None = None
) -> AdapterRows:
    """Rows of the sections at `indices`, in document order, rendered with the base's chat template.

    `weights` repeats or drops the rows of tagged sections. Every sequence is cut at `training.sequence_len` tokens. The
    validation share follows the section ids and the seed, so that a row keeps its side when the document grows. Raises
    MediaTrainingError, the errors of malformed bodies, and DlmTuiError if the weights drop every row.
    """
    settings = document.training
    rows = AdapterRows()
    seen: set[str] = set()
    given = training_rows(document, indices)
    rows.weight_distribution = sources.weight_distribution(given, document, weights or {})
    prose = 0
    for row in sources.weighted_rows(given, document, weights or {}):
        if row.section_id not in seen:
            seen.add(row.section_id)
            rows.section_ids.append(row.section_id)
        if row.kind == "preference":
            rows.preference.append(_preference_pair(row, base, settings.sequence_len))
            continue
        ids = _sequence(row, base)
        rows.truncated += len(ids) > settings.sequence_len
        side = split_side(settings.seed, row.section_id, row.sub_index)
        (rows.train if side == "train" else rows.validation).append(ids[: settings.sequence_len])
        prose += row.kind == "text" and side == "train"
    if not rows.train:  # too small to spare anything
        rows.train, rows.validation = rows.validation, []
        prose = sum(row.kind == "text" for row in given)
    rows.prose_share = prose / len(rows.train) if rows.train else 0.0
    return rows


def _sequence(row: Row, base: Base) -> list[int]:
    tokenizer = base.tokenizer
    if row.kind == "messages" and tokenizer.chat_template:
        turns = [{"role": role, "content": content} for role, content in row.messages]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    text = row.text if row.kind == "text" else "\n".join(content for _, content in row.messages)
    ids = list(tokenizer(text)["input_ids"])
    return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]


def _preference_pair(row: Row, base: Base, limit: int) -> PreferencePair:
    prompt = base.chat(row.prompt)
    tokenizer = base.tokenizer
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def answer(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]

    prompt = prompt[: max(1, limit // 2)]
    return PreferencePair(
        chosen=(prompt + answer(row.chosen))[:limit],
        rejected=(prompt + answer(row.rejected))[:limit],
        prompt_length=len(prompt),
    )


def pad(sequences: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and attention mask, both int64 [batch, longest]."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids, mask


def filler_id(base: Base) -> int:
    """Any id will do under a mask: the pad token where there is one, so that no vocabulary has to grow."""
    tokenizer = base.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def collate_sequences(sequences: Sequence[list[int]], filler: int) -> dict[str, torch.Tensor]:
    """A causal-LM batch: loss on every real token."""
    ids, mask = pad(sequences, filler)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def collate_pairs(pairs: Sequence[PreferencePair], filler: int) -> dict[str, torch.Tensor]:
    """A preference batch: the chosen rows first, then the rejected ones; labels only on the answers."""
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids, mask = pad(sequences, filler)
    labels = ids.masked_fill(mask == 0, -100)
    for row, pair in enumerate([*pairs, *pairs]):
        labels[row, : pair.prompt_length] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
