"""The engine's own first use, inside this process."""

from __future__ import annotations

import pytest

from dlm_tui.engine import warmup
from dlm_tui.engine.handlers import Handlers
from dlm_tui.engine.protocol import Event, Generate, Generated, Open, Opened, Progress, Route, Routed, TrainGate
from dlm_tui.model.views import BASE
from dlm_tui.progress import run_to_end

pytestmark = [pytest.mark.slow]


def test_a_warm_engine_has_run_everything_once_and_remembers_nothing(routed: Open) -> None:
    handlers = Handlers(threads=1)
    steps: list[Event | None] = []
    opened = run_to_end(handlers(routed), steps.append)
    assert isinstance(opened, Opened) and opened.warning == ""
    warm = [step for step in steps if isinstance(step, Progress) and step.stage == "warm-up"]
    assert [(step.done, step.total) for step in warm] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert handlers.session.router.ids == () and handlers.session.model.prefilled is None


def test_a_warm_up_that_fails_is_told_and_the_document_is_open(routed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory\nfor this")

    monkeypatch.setattr(warmup, "generate", broken)
    handlers = Handlers(threads=1)
    opened = run_to_end(handlers(routed))
    assert isinstance(opened, Opened) and opened.warning == "the warm-up failed: RuntimeError: no memory"
    assert isinstance(run_to_end(handlers(Route(prompt="Say hello"))), Routed)
    assert isinstance(run_to_end(handlers(Generate(prompt="Say hello", views=[BASE], max_tokens=2))), Generated)


def test_typing_leaves_the_mark_open_and_a_pause_settles_it(routed: Open) -> None:
    handlers = Handlers(threads=1)
    run_to_end(handlers(routed))
    run_to_end(handlers(TrainGate()))
    typed = run_to_end(handlers(Route(prompt="Say hello to 東京 and the boats")))
    settled = run_to_end(handlers(Route(prompt="Say hello to 東京 and the boats", settled=True)))
    assert isinstance(typed, Routed) and isinstance(settled, Routed)
    assert not typed.settled and settled.settled and typed.weights == settled.weights
    alone = run_to_end(handlers.session.router.route("Say hello to 東京 and the boats"))
    assert (settled.ood_score, settled.is_ood) == (alone.ood_score, alone.is_ood)
    again = run_to_end(handlers(Route(prompt="Say hello to 東京 and the boats")))
    assert isinstance(again, Routed) and again.settled and again.is_ood == settled.is_ood
