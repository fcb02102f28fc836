"""Rows as token ids: cut where they must be, never so that a pair says nothing, and always said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.document import Document, parse_bytes
from dlm_tui.model.base import Base
from dlm_tui.training.plan import planned_rows
from dlm_tui.training.rows import AdapterRows, cut_notes, tokenised
from tests.tiny_models import tiny_base

HEAD = """---
dlm_id: 01KTESTTESTTESTTESTTESTTES
dlm_version: 15
base_model: hf:test/llama
training:
  sequence_len: {length}
  adapters: {{facts: {{}}, tone: {{}}}}
---
"""
LONG = "the tide turns and the bell rings " * 40


def document(body: str, length: int) -> Document:
    return parse_bytes((HEAD.format(length=length) + body).encode())


def preference(prompt: str, chosen: str, rejected: str) -> str:
    return f"::preference#facts::\n### Prompt\n{prompt}\n### Chosen\n{chosen}\n### Rejected\n{rejected}\n\n"


def rows_of(text: Document, base: Base) -> AdapterRows:
    return tokenised(planned_rows(text, range(len(text.sections))), text.training.sequence_len, base)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("rows") / "m")


def test_a_long_preference_prompt_keeps_its_question(base: Base) -> None:
    body = preference(f"{LONG}\nWhat is the last word?", "rings", "stone")
    text = document(body, 64)
    rows = rows_of(text, base)
    (pair,) = rows.preference
    prompt = base.tokenizer.decode(pair.chosen[: pair.prompt_length])
    assert prompt.endswith("What is the last word?<|im_end|>\n<|im_start|>assistant\n")
    assert len(pair.chosen) <= 64 and len(pair.rejected) <= 64
    assert base.tokenizer.decode(pair.chosen[pair.prompt_length :]) == "rings<|im_end|>\n"
    assert base.tokenizer.decode(pair.rejected[pair.prompt_length :]) == "stone<|im_end|>\n"
    assert cut_notes("facts", rows) == ["facts: 1 preference prompt without the beginning, to fit into 64 tokens"]


def test_pairs_cut_into_equality_are_left_out_and_said(base: Base) -> None:
    body = preference("Tell me.", f"{LONG} one", f"{LONG} two") + preference("Tell me.", f"one {LONG}", f"two {LONG}")
    text = document(body, 64)
    rows = rows_of(text, base)
    assert len(rows.preference) == 1
    assert rows.preference[0].chosen != rows.preference[0].rejected
    assert cut_notes("facts", rows) == [
        "facts: the answers of 2 preference pairs cut at 64 tokens",
        "facts: 1 preference pair left out: chosen and rejected are the same within 64 tokens",
    ]


def test_pairs_end_as_instruction_rows_do(base: Base) -> None:
    body = (
        preference("Who rings?", "The master.", "Nobody.")
        + "::instruction#facts::\n### Q\nWho rings?\n### A\nThe master.\n"
    )
    text = document(body, 128)
    rows = rows_of(text, base)
    assert rows.preference[0].chosen == rows.train[0]
    assert rows.preference[0].chosen[: rows.preference[0].prompt_length] == base.chat("Who rings?")
    assert not cut_notes("facts", rows)


def test_rows_are_cut_at_the_bases_positions(tmp_path: Path) -> None:
    small = tiny_base(tmp_path / "m", "gpt2")  # 256 positions, learned
    text = document(LONG * 2, 2048)
    rows = rows_of(text, small)
    assert [len(row) for row in rows.train] == [256]
    assert cut_notes("facts", rows) == [
        "facts: 1 row cut at 256 tokens (the base has no more positions; sequence_len is 2048)"
    ]
    assert (small.position_rows, small.context_length) == (256, 256)


def test_the_prompt_embedding_stays_within_a_learned_position_table(tmp_path: Path) -> None:
    from dlm_tui.gate.embedding import prompt_tokens

    tokens = prompt_tokens(tiny_base(tmp_path / "m", "gpt2"), LONG)
    assert len(tokens.ids) == 256 and tokens.truncated
    assert len(prompt_tokens(tiny_base(tmp_path / "llama"), LONG).ids) > 256
