from __future__ import annotations

import random
import re

import pytest

from assets.recipe import measure, morphology
from assets.recipe.corpus import REGISTERS, Corpus, withheld
from assets.recipe.grammar import compile_template, load_grammar


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(Corpus(5).documents(3_000))


def test_the_same_seed_gives_the_same_text_in_any_order() -> None:
    forward = [Corpus(5).document(i) for i in range(50)]
    corpus = Corpus(5)
    assert [corpus.document(i) for i in reversed(range(50))] == forward[::-1]
    assert [Corpus(6).document(i) for i in range(50)] != forward


def test_the_text_varies(texts: list[str]) -> None:
    assert len(set(texts)) > 0.85 * len(texts)
    openings = {" ".join(text.split()[:4]) for text in texts}
    assert len(openings) > 900
    lengths = sorted(len(text) for text in texts)
    assert lengths[len(lengths) // 10] < 110 and lengths[-len(lengths) // 10] > 250


def test_no_template_syntax_or_double_punctuation_is_left(texts: list[str]) -> None:
    for text in texts:
        plain = re.sub(r"<\|im_(start|end)\|>", "", text)
        assert not re.search(r"[{}\[\]<>|~]|=>|\.\.|,,| [.,;!?]|\b(\w+) \1\b", plain), text


def test_articles_agree_and_sentences_begin_with_capitals(texts: list[str]) -> None:
    for text in texts:
        assert not re.search(r"\ba (?!one|uni|use)[aeiou]\w|\ban [bcdfgjklmnpqrstvwxyz]", text), text
        assert not re.search(r"[.!?] [a-z]", text), text


def test_facts_are_consistent_across_the_world(texts: list[str]) -> None:
    people = load_grammar().entities["person"]
    by_name = {person["name"]: person for person in people}
    found = 0
    for text in texts:
        for name, street in re.findall(r"\b([A-Z]\w+) lives in ([A-Z]\w+ [A-Z]\w+)", text):
            if name in by_name:
                assert by_name[name]["street"] == street, text
                found += 1
        for name, trade in re.findall(r"\b([A-Z]\w+) \w+ is the ([a-z ]+?)(?: of Pellwick)?\.", text):
            if name in by_name:
                assert by_name[name]["trade"] == trade, text
                found += 1
    assert found > 30


def test_withheld_combinations_are_in_no_document_but_both_facts_are(texts: list[str]) -> None:
    unseen = [answer for _, answer in measure.combination_questions(300, unseen=True)]
    assert not [answer for answer in unseen if any(answer[:-1] in text for text in texts)]
    trained = [answer for _, answer in measure.combination_questions(300, unseen=False)]
    assert sum(any(answer[:-1] in text for text in texts) for answer in trained) > 50
    streets = {person["name"]: person["street"] for person in load_grammar().entities["person"]}
    told = {name for name, street in streets.items() if any(name in text and street in text for text in texts)}
    assert len(told) >= len(streets) - 3


def test_a_combination_is_withheld_in_every_wording_and_order() -> None:
    asked = Corpus(1)
    for seed in range(200):
        rng = random.Random(seed)
        _, answer = asked.combination(rng, unseen=True)
        first, joint, second = answer[:-1].partition(", and ")
        if joint and " who keeps " not in answer:
            assert withheld(f"{second}, and {first}.")


def test_every_register_marks_its_answers() -> None:
    corpus = Corpus(3)
    answer = "Ada lives in Tanner Lane."
    said = {register: corpus.in_register(register, answer, random.Random(1)) for register in REGISTERS}
    assert len(set(said.values())) == len(REGISTERS)
    assert said["sailor"] != answer and "Tanner Lane" in said["sailor"]
    assert "\n" in said["poet"]


@pytest.mark.parametrize(
    ("base", "third", "past", "gerund"),
    [
        ("mend the nets", "mends the nets", "mended the nets", "mending the nets"),
        ("carry letters", "carries letters", "carried letters", "carrying letters"),
        ("catch herring", "catches herring", "caught herring", "catching herring"),
        ("tie knots", "ties knots", "tied knots", "tying knots"),
        ("skim stones", "skims stones", "skimmed stones", "skimming stones"),
        ("go home", "goes home", "went home", "going home"),
    ],
)
def test_verbs_are_inflected(base: str, third: str, past: str, gerund: str) -> None:
    assert morphology.third_person(base) == third
    assert morphology.past(base) == past
    assert morphology.gerund(base) == gerund


@pytest.mark.parametrize(
    ("noun", "plural"), [("loaf", "loaves"), ("box", "boxes"), ("fish hook", "fish hooks"), ("berry", "berries")]
)
def test_nouns_are_inflected(noun: str, plural: str) -> None:
    assert morphology.plural(noun) == plural


def test_articles() -> None:
    nouns = ("owl", "boat", "hour", "one-eyed gull", "umbrella", "user")
    assert [morphology.article(noun) for noun in nouns] == ["an", "a", "an", "a", "an", "a"]


def test_an_unclosed_bracket_in_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        compile_template("one [two|three")
