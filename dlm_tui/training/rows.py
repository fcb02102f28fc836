"""Training rows of one adapter, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch

from dlm_tui.counting import counted
from dlm_tui.document import Row
from dlm_tui.training.plan import Phase, PlannedRows

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

    `limit` is the most tokens a row may have, `wanted` what the document says. `truncated` counts sequences cut there,
    `cut_prompts` pairs whose prompt lost its beginning, `cut_answers` pairs with a shortened answer, `equal_pairs`
    those left out because no difference between chosen and rejected was left.
    """

    train: list[list[int]] = field(default_factory=list)
    validation: list[list[int]] = field(default_factory=list)
    preference: list[PreferencePair] = field(default_factory=list)
    limit: int = 0
    wanted: int = 0
    truncated: int = 0
    cut_prompts: int = 0
    cut_answers: int = 0
    equal_pairs: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        answers = ((pair.chosen, pair.rejected) for pair in self.preference)
        return max(map(len, chain(self.train, self.validation, *answers)), default=0)

    def of(self, phase: Phase) -> int:
        """How many rows a phase goes over per epoch."""
        return len(self.train if phase.name == "sft" else self.preference)


def tokenised(planned: PlannedRows, sequence_len: int, base: Base) -> AdapterRows:
    """The rows as tokens, rendered with the base's chat template and cut at `sequence_len` tokens, or at the base's
    positions where it has fewer."""
    rows = AdapterRows(limit=min(sequence_len, base.positions or sequence_len), wanted=sequence_len)
    for sequences, given in ((rows.train, planned.train), (rows.validation, planned.validation)):
        for row in given:
            ids = _sequence(row, base)
            rows.truncated += len(ids) > rows.limit
            sequences.append(ids[: rows.limit])
    for row in planned.preference:
        _add_pair(rows, row, base)
    return rows


def cut_notes(name: str, rows: AdapterRows) -> list[str]:
    """A sentence for everything that was left out of the rows of adapter `name`."""
    notes = []
    why = f" (the base has no more positions; sequence_len is {rows.wanted})" if rows.limit < rows.wanted else ""
    if rows.truncated:
        notes.append(f"{name}: {counted(rows.truncated, 'row')} cut at {rows.limit} tokens{why}")
    if rows.cut_prompts:
        notes.append(
            f"{name}: {counted(rows.cut_prompts, 'preference prompt')} without the beginning, to fit into"
            f" {rows.limit} tokens{why}"
        )
    if rows.cut_answers:
        pairs = counted(rows.cut_answers, "preference pair")
        notes.append(f"{name}: the answers of {pairs} cut at {rows.limit} tokens{why}")
    if rows.equal_pairs:
        notes.append(
            f"{name}: {counted(rows.equal_pairs, 'preference pair')} left out: chosen and rejected are the same"
            f" within {rows.limit} tokens"
        )
    return notes


def _sequence(row: Row, base: Base) -> list[int]:
    if row.kind == "text":
        return base.passage(row.text)
    return base.conversation([{"role": role, "content": content} for role, content in row.messages])[0]


def _add_pair(rows: AdapterRows, row: Row, base: Base) -> None:
    """One pair, cut to the limit: the answers keep their beginning, at least half of the row, the prompt its end."""
    (chosen, asked), (rejected, asked_again) = (
        base.conversation([{"role": "user", "content": row.prompt}, {"role": "assistant", "content": answer}])
        for answer in (row.chosen, row.rejected)
    )
    question = min(asked, asked_again)
    prompt, limit = chosen[:question], rows.limit
    longest = max(len(chosen), len(rejected)) - question
    room = max(1, limit - min(longest, (limit + 1) // 2))
    if question > room:
        rows.cut_prompts += 1
        prompt = prompt[-room:]
    left = limit - len(prompt)
    answers = chosen[question:], rejected[question:]
    rows.cut_answers += longest > left
    if answers[0][:left] == answers[1][:left]:
        rows.equal_pairs += 1
        return
    rows.preference.append(PreferencePair(prompt + answers[0][:left], prompt + answers[1][:left], len(prompt)))


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
