"""The demo's trained adapters stand out of the noise, and noise does not stand out of itself."""

from __future__ import annotations

import json

import pytest

from dlm_tui.cli.main import main
from dlm_tui.progress import run_to_end
from dlm_tui.scoring import score_views
from dlm_tui.session import Session
from tests.demo import Demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


def test_trained_adapters_are_five_sigmas_above_noise_on_their_own_sections(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(demo.document), "--suite", "--json", "--home", str(demo.home)]) == 0
    adapters = json.loads(capsys.readouterr().out)["adapters"]
    assert set(adapters) == {"knowledge", "tone", "style"}
    for name, groups in adapters.items():
        assert groups["own"]["z"] > 5.0, (name, groups)
        assert groups["own"]["gain"] > groups["others"]["gain"], (name, groups)


@pytest.mark.parametrize("prompt", ["Who built the old bridge?", "I am so tired after this long day."])
def test_null_adapters_lie_within_three_sigmas(demo: Demo, prompt: str) -> None:
    session = run_to_end(Session.open(demo.document, demo.home))
    ids = session.base.chat(prompt, session.document.system_prompt)
    views = {f"null {seed}": seed for seed in range(100)}
    scores = run_to_end(score_views(session.model, ids, {}, null_views=views, seed=session.document.training.seed))
    assert sum(abs(score.z or 0.0) <= 3.0 for score in scores.views.values()) >= 99
