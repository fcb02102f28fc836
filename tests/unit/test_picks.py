"""Pairs to pick from, preferences that an adapter has and needs, and what the frontmatter lacks to train them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.app.picks import Drawn, pairs_of
from dlm_tui.document import load, parse_bytes
from dlm_tui.document.change_log import ChangeLog, DocumentChange
from dlm_tui.document.preferences import lacking_settings, preference_counts
from dlm_tui.document.settings import with_settings
from dlm_tui.training import plan_training
from tests.tui.document import HEAD

VIEWS = ("gated", "tone", "style")


def drawn(prompts: int = 3, seeds: int = 2) -> list[Drawn]:
    return [
        Drawn(f"p{number}", view, seed, f"{view} {seed} {number}", {})
        for number in range(prompts)
        for seed in range(seeds)
        for view in VIEWS
    ]


def test_every_answer_is_in_one_pair_of_its_prompt_and_the_seed_decides_the_order() -> None:
    pairs = pairs_of(drawn(), 7)
    assert len(pairs) == 9
    assert all(pair.first.prompt == pair.second.prompt and pair.first.text != pair.second.text for pair in pairs)
    shown = [answer.text for pair in pairs for answer in (pair.first, pair.second)]
    assert sorted(shown) == sorted(answer.text for answer in drawn())
    assert pairs_of(drawn(), 7) == pairs and pairs_of(drawn(), 8) != pairs
    sides = {seed: sum(pair.first.view == "tone" for pair in pairs_of(drawn(20), seed)) for seed in range(8)}
    assert min(sides.values()) > 10 and max(sides.values()) < 30, "no view has a side of its own"


def test_equal_and_empty_answers_are_no_pair() -> None:
    same = [Drawn("p", view, 0, text, {}) for view, text in (("a", "x"), ("b", " x\n"), ("c", ""), ("d", "y"))]
    (pair,) = pairs_of(same, 1)
    assert {pair.first.view, pair.second.view} == {"a", "d"}
    assert pairs_of(same[:3], 1) == []


PREFERENCE = "::preference{tag}::\n### Prompt\np\n### Chosen\na\n### Rejected\nb\n\n"


def test_preferences_are_counted_where_they_train(tmp_path: Path) -> None:
    path = tmp_path / "x.dlm"
    body = PREFERENCE.format(tag="#tone") * 3 + PREFERENCE.format(tag="") + "::preference#style::\nbroken\n"
    path.write_text(HEAD + body)
    assert preference_counts(load(path)) == {"knowledge": 1, "tone": 3, "style": 0}


@pytest.mark.parametrize(
    ("block", "lacking"),
    [
        ("", {"preference.hyperparams.learning_rate": "5e-05", "preference.hyperparams.num_epochs": "10"}),
        ("  preference: {enabled: false, hyperparams: {num_epochs: 3}}\n", {"preference.enabled": "true"}),
        ("  preference:\n    hyperparams:\n      learning_rate: 0.001\n", {}),
        (
            "  preference:\n    enabled: false   # not yet\n    method: orpo\n",
            {
                "preference.enabled": "true",
                "preference.hyperparams.learning_rate": "5e-05",
                "preference.hyperparams.num_epochs": "10",
            },
        ),
    ],
)
def test_what_the_frontmatter_lacks_is_written_and_trains(tmp_path: Path, block: str, lacking: dict[str, str]) -> None:
    path = tmp_path / "x.dlm"
    path.write_text((HEAD + PREFERENCE.format(tag="#tone") * 4).replace("  gate:\n", f"{block}  gate:\n"))
    document = load(path)
    assert lacking_settings(document) == lacking
    before = path.read_bytes()
    after = with_settings(before, lacking)
    assert lacking_settings(parse_bytes(after)) == {}
    plan = plan_training(parse_bytes(after), adapters=["tone"])
    (phase,) = [phase for phase in plan.adapters[0].phases if phase.name != "sft"]
    assert phase.epochs in (3, 10) or phase.learning_rate == 0.001
    if not lacking:
        return
    path.write_bytes(after)
    log = ChangeLog(tmp_path / "log.json")
    log.add(DocumentChange.between("settings", before, after))
    assert log.undo(path).kind == "settings" and path.read_bytes() == before
