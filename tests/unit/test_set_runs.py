"""Sets of prompts run as a whole: the same answers as alone, log-probabilities by float64, kept, compared, checked."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path

import msgspec
import pytest
import torch

from dlm_tui.app.state import StateFile
from dlm_tui.cli.main import main
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.errors import UsageError
from dlm_tui.model import Sampling, View
from dlm_tui.model.generation import generate
from dlm_tui.model.views import BASE, GATED, solo
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.prompt_runs import PromptAnswer, run_prompts
from dlm_tui.session import Session
from dlm_tui.store.set_comparison import (
    MovedAnswer,
    compare_runs,
    drawn_otherwise,
    new_answers,
    sorted_answers,
    sorted_moves,
)
from dlm_tui.store.set_runs import SetAnswer, SetRun, SetRuns, run_before
from tests.export_sessions import QUESTIONS, open_tiny

PROMPTS = [
    *[question for questions in QUESTIONS.values() for question in questions][:3],
    "Why?",
    "A longer prompt, so that the rows of a batch differ in length.",
    "x",
    "y",
    "z",
]
VIEWS = [GATED, BASE, solo("tone")]
SAMPLING = Sampling(max_tokens=8, temperature=0.8, top_p=1.0, seed=3)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("sets"))


def answers_of(session: Session, former: dict[tuple[int, str], list[int]] | None = None) -> list[PromptAnswer]:
    found: list[PromptAnswer] = []
    steps: list[Progress] = []

    def take(step: Progress | PromptAnswer) -> None:
        (found if isinstance(step, PromptAnswer) else steps).append(step)  # type: ignore[arg-type]

    run_to_end(run_prompts(session, PROMPTS, VIEWS, SAMPLING, former or {}), take)
    done = [step.done for step in steps]
    assert done == sorted(done) and (done[0], done[-1]) == (0, 24) and {step.total for step in steps} == {24}
    return found


@torch.no_grad()
def reference(session: Session, prompt: list[int], answer: list[int], mix: dict[str, float]) -> float:
    """Log-probability of an answer under a float64 copy of the base with the mix merged into its weights."""
    network = copy.deepcopy(session.base.model).double()
    for name, c in mix.items():
        for module, pair in session.model.adapters[name].modules.items():
            network.get_submodule(module).weight += c * pair.scale * (pair.lora_B.double() @ pair.lora_A.double())
    logprobs = torch.log_softmax(network(torch.tensor([prompt + answer])).logits[0], dim=-1)
    return sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))


def test_a_set_answers_as_each_prompt_alone_and_scores_by_float64(session: Session) -> None:
    found = answers_of(session, {(0, "tone"): [5, 6, 7], (1, "base"): [10**9]})
    assert [(item.prompt, item.view) for item in found] == [(n, v.name) for n in range(8) for v in VIEWS]
    for item in found[::5]:
        ids = list(session.base.chat(PROMPTS[item.prompt], session.document.system_prompt))
        routed = run_to_end(session.router.route(PROMPTS[item.prompt]))
        assert item.weights == pytest.approx(routed.weights, abs=1e-6)
        alone = run_to_end(generate(session.model, ids, [item.mix], SAMPLING))[0]
        assert (item.text, item.token_ids) == (alone.text, alone.token_ids)
        if item.token_ids:
            assert item.logprob == pytest.approx(reference(session, ids, item.token_ids, item.mix), abs=1e-4)
    tone = next(item for item in found if (item.prompt, item.view) == (0, "tone"))
    ids = list(session.base.chat(PROMPTS[0], session.document.system_prompt))
    assert tone.former_logprob == pytest.approx(reference(session, ids, [5, 6, 7], {"tone": 1.0}), abs=1e-4)
    assert [item.former_logprob for item in found if item is not tone] == [None] * 23, "ids that the base lacks, too"


def test_every_view_may_have_a_seed_of_its_own(session: Session) -> None:
    found: list[PromptAnswer] = []
    views, seeds = [BASE, BASE, GATED], [5, 6, 7]
    work = run_prompts(session, PROMPTS[:2], views, SAMPLING, {}, seeds)
    run_to_end(work, lambda step: found.append(step) if isinstance(step, PromptAnswer) else None)
    assert [(item.prompt, item.seed) for item in found] == [(n, seed) for n in range(2) for seed in seeds]
    for item in found:
        ids = list(session.base.chat(PROMPTS[item.prompt], session.document.system_prompt))
        assert (
            item.token_ids
            == run_to_end(generate(session.model, ids, [item.mix], SAMPLING, seeds=[item.seed]))[0].token_ids
        )
    with pytest.raises(UsageError, match="2 seeds for 1 views"):
        run_to_end(run_prompts(session, ["p"], [BASE], SAMPLING, {}, [1, 2]))


def test_a_random_adapter_is_no_view_of_a_set(session: Session) -> None:
    with pytest.raises(UsageError, match="random"):
        run_to_end(run_prompts(session, ["p"], [View(name="n", kind="null")], SAMPLING, {}))


def run_of(text: str, number: int = 1, **changes: object) -> SetRun:
    answer = SetAnswer(
        prompt="p", view="gated", text=text, token_ids=[number], reason="stop", weights={"a": 0.1 * number, "b": 0.5},
        mix={}, logprob=-1.0 * number, former_logprob=-5.0, expected=1, broken=[] if number == 1 else ["why"],
    )  # fmt: skip
    values = {
        "set_name": "s", "at": "2026-11-29T00:00:00Z", "base": "b", "versions": {"a": number}, "seed": 0,
        "temperature": 0.0, "top_p": 1.0, "max_tokens": 8, "answers": [answer],
    }  # fmt: skip
    return SetRun(**{**values, **changes})  # type: ignore[arg-type]


def test_runs_are_kept_found_and_bounded(tmp_path: Path) -> None:
    runs = SetRuns(tmp_path / "runs.sqlite", limit=3 * len(msgspec.json.encode(run_of("x" * 1000))))
    assert runs.newest("s") == []
    kept = [runs.keep(run_of("x" * 1000)) for _ in range(5)]
    assert [run.run_id for run in runs.newest("s")] == [kept[4].run_id, kept[3].run_id, kept[2].run_id]
    assert runs.newest("s", 1) == [kept[4]] and runs.newest("other") == []
    huge = runs.keep(run_of("x" * 100_000))
    assert runs.newest("s") == [huge], "the newest stays, however large"


def test_a_damaged_database_has_no_runs_and_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(b"no database at all" * 100)
    assert SetRuns(path).newest("s") == []
    kept = SetRuns(path).keep(run_of("a"))
    assert SetRuns(path).newest("s") == [kept] and list(tmp_path.glob("runs.damaged-*"))


def test_what_moved_between_two_runs() -> None:
    before, after = run_of("a", run_id=4), run_of("b", 3, run_id=5, former=4)
    (move,) = compare_runs(before, after)
    assert move.changed and move.weight == pytest.approx(0.2) and move.logprob == pytest.approx(-4.0)
    assert compare_runs(before, run_of("b", 3, former=2))[0].logprob is None, "the former answer is another run's"
    same = run_of("a", run_id=6)
    assert run_before([after, before], same) == after
    assert run_before([run_of("a", run_id=5), run_of("a", 2, run_id=3)], same).run_id == 3  # type: ignore[union-attr]
    assert run_before([], same) is None
    assert new_answers(before, after) == [] and new_answers(None, after) == after.answers
    still = compare_runs(before, same)[0]
    good, broken = still.after, move.after
    assert sorted_answers([good, broken], "checks") == [broken, good]
    assert sorted_answers([good, broken], "order") == [good, broken]
    stays = MovedAnswer(before=broken, after=broken, weight=0.0, logprob=None)
    assert sorted_moves([still, stays, move], "checks") == [move, stays, still], "newly broken, still broken, good"
    for by, first in (("weights", move), ("answer", move), ("logprob", move), ("checks", move), ("order", still)):
        assert sorted_moves([still, move], by)[0] is first, by


def test_a_run_is_compared_with_the_most_alike() -> None:
    def asked(number: int, *views: str, **changes: object) -> SetRun:
        (answer,) = run_of("a").answers
        answers = [msgspec.structs.replace(answer, view=view) for view in views]
        return run_of("a", run_id=number, answers=answers, **changes)

    after, long = asked(9, "gated", "base"), {"max_tokens": 64}
    whole, part, drawn = asked(1, "gated", "base"), asked(2, "gated"), asked(3, "gated", "base", **long)
    other = asked(4, "gated", "base", versions={"a": 7}, **long)
    assert run_before([asked(5, "tone")], after) is None, "no view in common"
    assert run_before([part, whole], after) == whole, "all of its views"
    assert run_before([other, drawn, part, whole], after) == whole, "and drawn as it was"
    assert run_before([other, drawn, part], after) == other, "else under other adapters, which is said"
    assert drawn_otherwise(other, after) == "max_tokens 64 → 8" and drawn_otherwise(whole, after) == ""
    warm = asked(6, "gated", temperature=0.5)
    assert drawn_otherwise(after, warm) == "temperature 0 → 0.5, top_p 1, seed 0"
    assert drawn_otherwise(after, asked(7, "gated", seed=5, top_p=0.5)) == "", "greedy answers have neither"
    planned = msgspec.structs.replace(after, run_id=0, answers=[])
    assert run_before([part, whole], planned, ["gated", "base"]) == whole, "what is not kept yet is behind all"


def test_check_exits_with_1_and_says_which_and_why(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    path = session.path
    arguments = ["--home", str(session.store.home), "--base", str(session.base_override), "--max-tokens", "6"]
    given = path.with_name("mine.csv")
    given.write_text(
        "prompt,__expected1,__expected2\nWhy?,not-contains: zebra,\nHow?,contains: zebra,adapter: nobody\n"
    )
    assert main(["sets", str(path), "import", str(given), "--set", "mine"]) == 0
    assert main(["check", str(path), "--set", "mine", *arguments]) == 1
    out = capsys.readouterr().out
    assert (
        out.count("FAILED [gated] How?") == 2 and "zebra" in out and "nobody should have" in out and "Why?" not in out
    )
    assert main(["check", str(path), "--set", "mine", "--json", *arguments]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["answers"], report["expectations"], report["passed"]) == (2, 3, False)
    assert [item["prompt"] for item in report["failed"]] == ["How?"]
    given.write_text("prompt,__expected\nWhy?,not-contains: zebra\n")
    assert main(["sets", str(path), "import", str(given), "--set", "mine", "--replace"]) == 0
    assert main(["check", str(path), *arguments]) == 0, "the only set need not be named"
    assert main(["check", str(path), "--set", "other", *arguments]) == 2
    assert "there is no set 'other'; there is mine" in capsys.readouterr().err


def test_sets_are_run_compared_and_exported(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    path = session.path
    arguments = ["--home", str(session.store.home), "--base", str(session.base_override), "--max-tokens", "6"]
    PromptSets(path).save({"one": ["Why?", "=How?"]})
    StateFile(path).set_runs.path.unlink(missing_ok=True)
    assert main(["sets", str(path), "compare", "--set", "one"]) == 1
    assert "never run" in capsys.readouterr().err
    assert main(["sets", str(path), "run", "--set", "one", "--views", "gated,tone", *arguments]) == 0
    assert "nothing to compare with" in capsys.readouterr().err
    assert main(["sets", str(path), "run", "--set", "one", "--views", "tone,base", "--json", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(move["prompt"], move["view"]) for move in told["moved"]] == [("Why?", "tone"), ("=How?", "tone")]
    for move in told["moved"]:
        assert (
            not move["changed"] and move["weights_moved"] == 0 and move["logprob_moved"] == pytest.approx(0, abs=1e-4)
        )
    assert [(answer["prompt"], answer["view"]) for answer in told["new"]] == [("Why?", "base"), ("=How?", "base")]
    assert main(["sets", str(path), "compare", "--set", "one", "--sort", "logprob"]) == 0
    streams = capsys.readouterr()
    assert "0 of 2 answers changed, 2 new" in streams.err and "otherwise" not in streams.err
    assert [line.split()[1] for line in streams.out.splitlines()[1:]] == ["same", "same", "new", "new"]
    longer = ["--views", "tone,base", *arguments[:-1], "7"]
    assert main(["sets", str(path), "run", "--set", "one", *longer]) == 0
    assert "run 2 was drawn otherwise (max_tokens 6 → 7)" in capsys.readouterr().err
    assert main(["sets", str(path), "run", "--set", "one", "--views", "tone,base", *arguments]) == 0
    streams = capsys.readouterr()
    assert "run 4 against run 2: 0 of 4 answers changed" in streams.err and "otherwise" not in streams.err
    out = path.with_name("results.csv")
    assert main(["sets", str(path), "results", str(out), "--set", "one"]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
    assert [(row["prompt"], row["view"]) for row in rows] == [
        ("Why?", "tone"), ("Why?", "base"), ("'=How?", "tone"), ("'=How?", "base"),
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["sets", str(path), "results", str(path.with_name("r.jsonl")), "--set", "one"]) == 0
    sample = json.loads(path.with_name("r.jsonl").read_text().splitlines()[0])
    assert sample["doc"] == {"prompt": "Why?"} and sample["resps"] == [[rows[0]["output"]]]
    capsys.readouterr()
    assert main(["sets", str(path), "results", str(out), "--set", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": str(out)}
    assert main(["sets", str(path), "results", "--set", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == sample
    PromptSets(path).save({"one": ["Why?", "=How?"], "two": ["Where?"]})
    assert main(["sets", str(path), "results", str(out)]) == 0, "the last run, whatever its set"
    assert "Why?" in out.read_text()
    capsys.readouterr()
    assert main(["sets", str(path), "export", "--set", "one"]) == 0
    assert capsys.readouterr().out == "prompt\r\nWhy?\r\n'=How?\r\n"


def test_a_file_that_is_there_is_replaced_only_when_asked(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    path = session.path
    PromptSets(path).save({"one": ["Why?"]})
    out = path.with_name("out.csv")
    export = ["sets", str(path), "export", str(out), "--set", "one"]
    assert main(export) == 0 and main(export) == 0, "the same once more loses nothing"
    PromptSets(path).save({"one": ["How?"]})
    capsys.readouterr()
    assert main(export) == 2
    assert "holds another list of prompts; choose another name, such as out-2.csv, or replace it with --replace" in (
        capsys.readouterr().err
    )
    assert "Why?" in out.read_text()
    assert main([*export, "--replace"]) == 0 and "Why?" not in out.read_text()
    out.write_text("month,euros\n")
    assert main([*export, "--replace"]) == 2 and out.read_text() == "month,euros\n"
