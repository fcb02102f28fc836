"""A text under many views against plain forwards; λ, null views, and the sweep's two sides."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.progress import run_to_end
from dlm_tui.scoring import score_text, score_views, sweep
from dlm_tui.scoring.errors import EmptyText, NullScaleError
from dlm_tui.scoring.rolling import windows
from dlm_tui.session import Session
from tests.export_sessions import open_tiny

IDS = torch.randint(3, 300, (40,), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("text"), "llama")


def plain(session: Session, mix: dict[str, float], ids: list[int]) -> float:
    """Σ log p in float64, by the reference backbone over the whole text."""
    reference = session.model.reference
    with torch.no_grad():
        hidden = reference.forward(torch.tensor([ids]), None, session.model.coefficients(mix)[None])
        logprobs = torch.log_softmax(reference.logits(hidden)[0].double(), dim=-1)
    return float(sum(logprobs[place, token] for place, token in enumerate(ids[1:])))


def test_every_view_equals_a_plain_forward(session: Session) -> None:
    mixes = {"tone": {"tone": 1.0}, "both": {"tone": 0.5, "facts": -0.25}}
    found = run_to_end(score_text(session.model, IDS, mixes, {"null 3": 3}))
    assert list(found) == ["base", "tone", "both", "null 3"]
    for name, mix in {"base": {}, **mixes}.items():
        assert found[name].logprob == pytest.approx(plain(session, mix, IDS), abs=1e-3)
        assert found[name].perplexity == pytest.approx(math.exp(-found[name].logprob / (len(IDS) - 1)))
    assert found["null 3"].logprob != found["base"].logprob


def test_each_token_is_predicted_once_with_half_a_window_before_it() -> None:
    assert windows(2, 8) == [(0, 2, 1)] and windows(8, 8) == [(0, 8, 1)]
    for count in (9, 20, 33):
        found = windows(count, 8)
        assert [first for _, _, first in found][1:] == [end for _, end, _ in found][:-1] and found[-1][1] == count
        assert all(end - start <= 8 and (start == 0 or first - start == 4) for start, end, first in found)


def test_a_long_text_is_read_in_windows(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.base, "context_length", 16)
    found = run_to_end(score_text(session.model, IDS, {}))
    wanted = 0.0
    for start, end, first in windows(len(IDS), 16):
        piece = IDS[start:end]
        wanted += plain(session, {}, piece) - (plain(session, {}, piece[: first - start]) if first > 1 else 0.0)
    assert found["base"].logprob == pytest.approx(wanted, abs=1e-3)


def test_a_text_of_one_token_and_a_scale_of_zero_are_refused(session: Session) -> None:
    with pytest.raises(EmptyText):
        run_to_end(score_text(session.model, IDS[:1], {}))
    with pytest.raises(NullScaleError):
        run_to_end(score_text(session.model, IDS, {}, {"null 1": 1}, rank_scale=0.0))


def test_a_larger_null_moves_more(session: Session) -> None:
    def kl(rank_scale: float) -> float:
        work = score_views(session.model, IDS, {"n": {}}, nulls=0, null_views={"n": 1}, rank_scale=rank_scale)
        return run_to_end(work).views["n"].kl

    assert kl(0.01) < kl(1.0) < kl(9.0)


def test_the_sweep_follows_both_sides(session: Session) -> None:
    sides = (IDS[:3], IDS[3:7])
    points = run_to_end(sweep(session.model, IDS[:10], "tone", [-1.0, 0.0, 1.0], sides=sides))
    for point in points:
        work = score_views(session.model, IDS[:10], {"v": {"tone": point.c}}, sides[0], nulls=0)
        assert point.chosen == pytest.approx(run_to_end(work).views["v"].logprob, abs=1e-6)
        work = score_views(session.model, IDS[:10], {"v": {"tone": point.c}}, sides[1], nulls=0)
        assert point.rejected == pytest.approx(run_to_end(work).views["v"].logprob, abs=1e-6)


def command(session: Session, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    base = str(session.base.source.path)
    code = main(["score", str(session.path), *arguments, "--home", str(session.store.home), "--base", base])
    assert code == 0
    return capsys.readouterr().out


def test_the_commands(session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "held-out.txt"
    file.write_text("The harbour is quiet in winter, and the bell rings twice.")
    found = json.loads(command(session, capsys, "--text", str(file), "--null-view", "5", "--json"))
    assert [view["view"] for view in found["views"]][:1] == ["base"] and found["views"][-1]["view"] == "null 5"
    zero = json.loads(command(session, capsys, "Where?", "--views", "tone", "--lambda", "0", "--null", "0", "--json"))
    assert zero["views"][0]["kl"] == 0.0 and zero["views"][0]["mix"] == {"tone": 0.0}
    table = command(
        session, capsys, "Where?", "--sweep", "tone", "--grid=-1,0,1", "--chosen", "Here.", "--csv", "--max-tokens", "2"
    )
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["c"] for row in rows] == ["-1.0", "0.0", "1.0"] and all(float(row["chosen"]) < 0 for row in rows)
    assert rows[1]["kl"] == "0.0"
