"""Children give way to the screen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlm_tui.engine import priority
from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.priority import ENGINE, JOB, give_way
from dlm_tui.engine.process import ChildProcess

NICEST = 19


@pytest.mark.slow
@pytest.mark.parametrize(
    ("child", "niceness"),
    [(lambda: EngineClient(threads=1), ENGINE), (lambda: ChildProcess("dlm_tui.engine.job_worker"), JOB)],
    ids=["engine", "job"],
)
async def test_a_child_is_nicer_than_the_screen(child: type[ChildProcess], niceness: int) -> None:
    process = child()  # type: ignore[call-arg]
    hello = await process.start()
    try:
        assert os.getpriority(os.PRIO_PROCESS, hello.pid) == min(NICEST, os.nice(0) + niceness)
    finally:
        await process.close()


def test_only_a_sessions_leader_writes_its_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    group = tmp_path / "autogroup"
    monkeypatch.setattr(priority, "_AUTOGROUP", group)
    monkeypatch.setattr(os, "nice", lambda more: asked.append(more) or 7)
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid() + 1)
    give_way(5)
    assert asked == [5, 0] and not group.exists()
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid())
    give_way(5)
    assert group.read_text() == "7"


def test_what_is_not_permitted_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(more: int) -> int:
        raise PermissionError(more)

    monkeypatch.setattr(os, "nice", refuse)
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid())
    monkeypatch.setattr(priority, "_AUTOGROUP", tmp_path / "no" / "autogroup")
    give_way(5)
