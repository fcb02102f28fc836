"""Scores of views, nulls, sweeps and suites on a tiny base, against merged weights in float64."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.model import MixedModel, Sampling
from dlm_tui.model.base import Base
from dlm_tui.progress import run_to_end
from dlm_tui.scoring import score_suite, score_views, sweep, token_heat, z_score
from dlm_tui.scoring.errors import EmptyText
from dlm_tui.scoring.nulls import matched_nulls, null_seeds
from tests.export_sessions import NAMES, QUESTIONS, open_tiny
from tests.tiny_models import random_adapter, tiny_base

MIX = {"tone": 1.5, "style": -0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Base) -> MixedModel:
    return MixedModel(
        base,
        {
            "tone": random_adapter(base, "tone", rank=4, seed=1, size=0.1),
            "style": random_adapter(base, "style", rank=2, seed=2, size=0.1),
        },
    )


@torch.no_grad()
def reference(model: MixedModel, ids: list[int], mix: dict[str, float]) -> torch.Tensor:
    """Log-probabilities [T, V] of a float64 copy of the base with the mix merged into its weights."""
    network = copy.deepcopy(model.base.model).double()
    for name, c in mix.items():
        for module, pair in model.adapters[name].modules.items():
            network.get_submodule(module).weight += c * pair.scale * (pair.lora_B.double() @ pair.lora_A.double())
    return torch.log_softmax(network(torch.tensor([ids])).logits[0], dim=-1)


def test_scores_equal_merged_weights_in_float64(base: Base, model: MixedModel) -> None:
    prompt = base.chat("How do I bake bread with rye flour? " * 6)
    assert len(prompt) > 64  # several pieces
    answer = base.tokenizer("Mix, wait, fold.", add_special_tokens=False)["input_ids"]
    scores = run_to_end(score_views(model, prompt, {"mixed": MIX, "off": {}}, answer, nulls=0))
    plain, mixed = reference(model, prompt + answer, {}), reference(model, prompt + answer, MIX)
    at = len(prompt) - 1
    p, q = mixed[at].exp(), plain[at].exp()
    middle = ((p + q) / 2).log()
    score = scores.views["mixed"]
    assert score.kl == pytest.approx(float((p * (mixed[at] - plain[at])).sum()), abs=1e-5)
    expected = 0.5 * float((p * (mixed[at] - middle)).sum() + (q * (plain[at] - middle)).sum())
    assert score.js == pytest.approx(expected, abs=1e-5)
    each = [(float(mixed[at + i, token]), float(plain[at + i, token])) for i, token in enumerate(answer)]
    assert score.logprob == pytest.approx(sum(own for own, _ in each), abs=1e-4)
    assert score.base_logprob == pytest.approx(sum(off for _, off in each), abs=1e-4)
    assert score.heat == pytest.approx([own - off for own, off in each], abs=1e-4)
    assert score.z is None and scores.null_mean is None
    off = scores.views["off"]
    assert off.kl < 1e-9 and off.heat == pytest.approx([0.0] * len(answer), abs=1e-5)
    assert list(scores.views) == ["mixed", "off"]
    assert run_to_end(token_heat(model, prompt, answer, MIX)) == pytest.approx(score.heat, abs=1e-6)


def test_nulls_are_what_they_say(base: Base, model: MixedModel) -> None:
    prompt = base.chat("Grüße")
    scores = run_to_end(score_views(model, prompt, {"mixed": MIX, "off": {}}, nulls=10, seed=4))
    plain = reference(model, prompt, {})[-1]
    nulls = matched_nulls(model, null_seeds(4, 10))
    with_nulls = MixedModel(base, {str(place): null for place, null in enumerate(nulls)})
    expected = []
    for place in range(10):
        other = reference(with_nulls, prompt, {str(place): 1.0})[-1]
        expected.append(float((other.exp() * (other - plain)).sum()))
    assert scores.null_kls == pytest.approx(expected, abs=1e-5)
    assert scores.null_mean == pytest.approx(np.mean(expected), abs=1e-5)
    assert scores.null_std == pytest.approx(np.std(expected, ddof=1), abs=1e-5)
    assert scores.views["mixed"].z == z_score(scores.views["mixed"].kl, scores.null_kls)
    assert scores.views["off"].z is None
    again = run_to_end(score_views(model, prompt, {"mixed": MIX}, nulls=10, seed=4))
    assert again.null_kls == scores.null_kls
    assert run_to_end(score_views(model, prompt, {"mixed": MIX}, nulls=10, seed=5)).null_kls != scores.null_kls


@pytest.mark.parametrize("prompt", ["Grüße", "How do I bake bread with rye flour?"])
def test_null_adapters_lie_within_three_sigmas(base: Base, model: MixedModel, prompt: str) -> None:
    views = {f"null {seed}": seed for seed in range(100)}
    scores = run_to_end(score_views(model, base.chat(prompt), {}, nulls=32, null_views=views))
    values = [score.z for score in scores.views.values()]
    assert len(values) == 100 and all(z is not None for z in values)
    assert sum(abs(z) <= 3.0 for z in values if z is not None) >= 99
    assert np.std(values) > 0.5


def test_what_is_asked_for_must_make_sense(base: Base, model: MixedModel) -> None:
    prompt = base.chat("Hello")
    for arguments, error in (
        (([], {"mixed": MIX}), EmptyText),
        ((prompt, {"mixed": MIX}, []), EmptyText),
        ((prompt, {"mixed": {"nobody": 1.0}}), UsageError),
        ((prompt, {"mixed": {"tone": math.nan}}), UsageError),
        ((prompt * 40, {"mixed": MIX}), UsageError),
    ):
        with pytest.raises(error):
            run_to_end(score_views(model, *arguments))
    bare = run_to_end(
        score_views(MixedModel(base, {}), prompt, {"base": {}, "null": {}}, nulls=4, null_views={"null": 1})
    )
    assert bare.null_kls == () and bare.views["base"].kl < 1e-9 and bare.views["null"].z is None


def test_it_reports_progress_and_can_be_stopped(base: Base, model: MixedModel) -> None:
    prompt = base.chat("word " * 50)
    steps = list(score_views(model, prompt, {"mixed": MIX}, prompt[:5], nulls=8, null_views={"null": 1}))
    counts = [step.done for step in steps]
    assert counts == sorted(set(counts)), "one count over all batches"
    assert {(step.stage, step.total) for step in steps} == {("score", counts[-1])}
    work = score_views(model, prompt, {"mixed": MIX}, nulls=8)
    next(work)
    work.close()
    assert run_to_end(score_views(model, base.chat("x"), {"mixed": MIX}, nulls=2)).views["mixed"].kl > 0


def test_sweep_is_one_answer_and_one_effect_per_coefficient(base: Base, model: MixedModel) -> None:
    from dlm_tui.model.generation import generate

    prompt = base.chat("Hello")
    grid = [-2.0, 0.0, 0.5, 2.0]
    sampling = Sampling(max_tokens=6, temperature=0.0)
    points = run_to_end(sweep(model, prompt, "tone", grid, sampling, others={"style": 0.5}))
    assert [point.c for point in points] == grid
    for point in points:
        mix = {"style": 0.5, "tone": point.c}
        alone = run_to_end(generate(model, prompt, [mix], sampling))[0]
        assert (point.text, point.tokens, point.reason) == (alone.text, len(alone.token_ids), alone.reason)
        score = run_to_end(score_views(model, prompt, {"one": mix}, nulls=0)).views["one"]
        assert point.kl == pytest.approx(score.kl, abs=1e-6) and point.js == pytest.approx(score.js, abs=1e-6)
    zero = run_to_end(sweep(model, prompt, "tone", [0.0], sampling))[0]
    assert zero.kl < 1e-9
    with pytest.raises(UsageError, match="at least one"):
        run_to_end(sweep(model, prompt, "tone", []))
    with pytest.raises(UsageError, match="nobody"):
        run_to_end(sweep(model, prompt, "nobody", [1.0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A document with three adapters, a gate and a store, where the command line finds them."""
    place = tmp_path_factory.mktemp("scored")
    open_tiny(place)
    return place


def test_suite_tells_own_from_other_sections(folder: Path) -> None:
    from dlm_tui.session import Session

    session = run_to_end(Session.open(folder / "doc.dlm", folder / "home", folder / "base"))
    report = run_to_end(score_suite(session, nulls=6)).as_json()
    assert json.loads(json.dumps(report)) == report
    assert report["prompts"] == 6 and report["nulls"] == 6 and report["skipped"] == []
    own = report["adapters"]["tone"]["own"]
    assert own["prompts"] == 2 and report["adapters"]["tone"]["others"]["prompts"] == 4
    assert report["adapters"]["tone"]["shared"] is None
    kls, gains, effects, noise = [], [], [], []
    for question in QUESTIONS["tone"]:
        ids = session.base.chat(question, session.document.system_prompt)
        answer = session.base.tokenizer("So be it.", add_special_tokens=False)["input_ids"]
        scores = run_to_end(score_views(session.model, ids, {"tone": {"tone": 1.0}}, answer, 6, report["seed"]))
        score = scores.views["tone"]
        kls.append(score.kl)
        gains.append((score.logprob - score.base_logprob) / len(answer))
        effects.append(math.log(score.kl))
        noise.append(np.log(scores.null_kls))
    assert own["kl"] == pytest.approx(np.mean(kls), abs=1e-6)
    assert own["gain"] == pytest.approx(np.mean(gains), abs=1e-5)
    together = z_score(math.exp(np.mean(effects)), np.exp(np.mean(noise, axis=0)).tolist())
    assert own["z"] == pytest.approx(together, abs=1e-3)
    assert [row["adapter"] for row in report["sections"]] == [name for name in QUESTIONS for _ in range(2)]
    for name in list(session.model.names):
        session.model.swap(name, None)
    with pytest.raises(DlmTuiError, match="no adapter is trained"):
        run_to_end(score_suite(session))


def run(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(
        ["score", str(folder / "doc.dlm"), *arguments, "--home", str(folder / "home"), "--base", str(folder / "base")]
    )
    return code, *capsys.readouterr()


def test_command_scores_views_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, "Hello", "--json", "--null", "4", "--completion", "So be it.")
    found = json.loads(out)
    assert code == 0
    assert [view["view"] for view in found["views"]] == ["gated", *NAMES]
    assert found["nulls"] == 4 and found["null_mean"] > 0 and found["null_std"] > 0
    tone = found["views"][1]
    assert tone["mix"] == {"tone": 1.0} and tone["kl"] > 0 and 0 < tone["js"] < math.log(2)
    assert isinstance(tone["z"], float)
    assert "".join(item["token"] for item in tone["heat"]) == "So be it."
    gained = sum(item["nats"] for item in tone["heat"])
    assert gained == pytest.approx(tone["logprob"] - tone["base_logprob"], abs=1e-6)
    assert sum(found["views"][0]["mix"].values()) == pytest.approx(1.0)


def test_command_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, "Hello", "--views", "base,tone", "--mix", "tone:-1.5,facts:0.5", "--null", "3")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4
    assert lines[0] == "base changes the next token by 0.000 nats (JS 0.000)"
    assert lines[1].startswith("tone changes the next token by") and " noise (JS" in lines[1]
    assert lines[2].startswith("tone:-1.5,facts:0.5 changes")
    assert lines[3].startswith("noise: 3 random adapters")
    code, out, err = run(folder, capsys, "Hello", "--views", "tone", "--heat", "--null", "0", "--max-tokens", "3")
    assert code == 0 and "answer of tone" in err and "completion:" in out and "noise" not in out


def test_command_sweeps_and_runs_the_suite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, "Hello", "--sweep", "tone", "--grid", "0,1", "--max-tokens", "3", "--json")
    points = json.loads(out)["points"]
    assert code == 0 and [point["c"] for point in points] == [0.0, 1.0] and points[1]["kl"] > points[0]["kl"]
    code, out, _ = run(folder, capsys, "Hello", "--sweep", "tone", "--grid", "0,1", "--max-tokens", "3")
    assert code == 0 and out.startswith("c = +0  0.000 nats")
    code, out, _ = run(folder, capsys, "--suite", "--null", "2", "--json")
    assert code == 0 and set(json.loads(out)["adapters"]) == set(NAMES)
    code, out, _ = run(folder, capsys, "--suite", "--null", "2")
    assert code == 0 and "tone on own sections:" in out and "facts on others sections:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hello", "--views", "nobody"], "no view 'nobody'"),
        (["Hello", "--mix", "nobody:1"], "nobody"),
        (["Hello", "--sweep", "nobody"], "nobody"),
        (["Hello", "--sweep", "tone", "--grid", "a,b"], "--grid must be numbers"),
        (["Hello", "--sweep", "tone", "--grid", "1,inf"], "finite"),
        (["Hello", "--sweep", "tone", "--views", "tone"], "--sweep shows one adapter"),
        (["Hello", "--suite"], "--suite takes no prompt"),
        (["Hello", "--null", "-1"], "must not be negative"),
        (["Hello", "--completion", ""], "the completion is empty"),
        (["Hello", "--heat", "--completion", "x"], "heat"),
        (["  "], "the prompt is empty"),
    ],
)
def test_command_refuses_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(folder, capsys, *arguments)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_command_shows_foreign_text_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        folder, capsys, "Hello \x1b[31m", "--views", "tone", "--null", "0", "--completion", "a\x1b]0;title\x07\u202eb"
    )
    assert code == 0
    assert not any(char in out for char in "\x1b\x07\u202e") and "\\x1b" in out
