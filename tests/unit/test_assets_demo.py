from __future__ import annotations

import re
from collections import Counter

import pytest
from tokenizers import Tokenizer

from assets.recipe.corpus import Corpus, withheld
from dlm_tui.assets import asset
from dlm_tui.document import (
    Document,
    body_problems,
    fresh_dlm_id,
    gate_probes,
    gate_samples,
    load,
    parse_bytes,
    route_sections,
    split_side,
    training_rows,
    with_dlm_id,
)

DEMO = asset("demo/harbour.dlm")


@pytest.fixture(scope="module")
def demo() -> Document:
    return load(DEMO)


def test_the_demo_parses_without_a_problem(demo: Document) -> None:
    assert body_problems(demo) == []
    assert demo.base_model == "pocket"
    assert demo.gate_enabled
    assert demo.adapter_names == ("knowledge", "tone", "style")


def test_every_adapter_has_at_least_twelve_sections_and_both_kinds_occur(demo: Document) -> None:
    assert all(count >= 12 for count in gate_samples(demo).values())
    kinds = Counter((section.type, section.adapter) for section in demo.sections)
    assert kinds["prose", None] >= 3
    assert sum(count for (kind, _), count in kinds.items() if kind == "preference") >= 6
    assert sum(count for (kind, _), count in kinds.items() if kind == "instruction") >= 36


def test_no_probe_occurs_twice(demo: Document) -> None:
    prompts = [probe.prompt for probe in gate_probes(demo)]
    assert len(set(prompts)) == len(prompts)


def test_untagged_prose_reaches_every_adapter(demo: Document) -> None:
    prose = {i for i, section in enumerate(demo.sections) if section.adapter is None}
    for indices in route_sections(demo).values():
        assert prose <= set(indices)


def test_the_seed_leaves_most_of_knowledge_to_training_and_something_to_validation(demo: Document) -> None:
    held = Counter(
        demo.sections[row.section_index].adapter
        for row in training_rows(demo)
        if split_side(demo.training.seed, row.section_id, row.sub_index) == "val"
    )
    rows = Counter(demo.sections[row.section_index].adapter for row in training_rows(demo))
    assert 1 <= held["knowledge"] <= 0.15 * rows["knowledge"]
    assert held["tone"] >= 1 and held["style"] >= 1


def test_rows_fit_the_sequence_length(demo: Document) -> None:
    tokenizer = Tokenizer.from_file(str(asset("base") / "tokenizer.json"))
    for row in training_rows(demo):
        texts = [row.text or ""]
        if row.kind == "messages":
            texts = [text for _, text in row.messages]
        elif row.kind == "preference":
            texts = [f"{row.prompt} {row.chosen}", f"{row.prompt} {row.rejected}"]
        for text in texts:
            assert len(tokenizer.encode(text).ids) + 16 <= demo.training.sequence_len


@pytest.fixture(scope="module")
def joined() -> re.Pattern[str]:
    """Every question of the recipe that joins two facts, with anything for its names."""
    rules = (asset("recipe") / "text" / "combinations.txt").read_text(encoding="utf-8")
    wordings = [wording for choice in re.findall(r"\[(.*)\] =>", rules) for wording in choice.split("|")]
    return re.compile("|".join(".+".join(map(re.escape, re.split(r"\{[^}]*\}", wording))) for wording in wordings))


def test_the_facts_of_the_demo_are_new_to_the_base(demo: Document, joined: re.Pattern[str]) -> None:
    corpus = "\n".join(Corpus(1).documents(4_000))
    for row in training_rows(demo):
        own = demo.sections[row.section_index].adapter == "knowledge" and row.sub_index == 0
        if row.kind == "messages" and own and not joined.fullmatch(row.messages[0][1]):
            (_, question), (_, answer) = row.messages
            assert question not in corpus
            assert answer not in corpus


def test_joined_facts_are_repeated_but_none_that_the_base_never_read(demo: Document, joined: re.Pattern[str]) -> None:
    pairs = [tuple(text for _, text in row.messages) for row in training_rows(demo) if row.kind == "messages"]
    repeated = [(question, answer) for question, answer in pairs if joined.fullmatch(question)]
    assert len(repeated) >= 20
    assert not [answer for _, answer in repeated if withheld(answer)]
    # the pictures of the README ask this one
    assert "owner of the Grey Heron" not in DEMO.read_text(encoding="utf-8")


def test_a_copy_with_a_fresh_id_is_the_same_document(demo: Document) -> None:
    copy = parse_bytes(with_dlm_id(DEMO.read_bytes(), fresh_dlm_id()))
    assert copy.dlm_id != demo.dlm_id
    assert [section.section_id for section in copy.sections] == [section.section_id for section in demo.sections]
