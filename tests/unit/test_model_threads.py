"""Thread counts are chosen by measuring, within what this process may use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.threads import available_cores, measure_threads, threads_for
from tests.tiny_models import tiny_base


def test_the_environment_for_children_needs_no_torch() -> None:
    code = "import sys, dlm_tui.model.environment as e; sys.exit('torch' in sys.modules or not e.CHILD_ENVIRONMENT)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_quickest_count_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("dlm_tui.model.threads.time", SimpleNamespace(perf_counter=lambda: now))
    if available_cores() == 1:
        assert measure_threads(lambda: torch.zeros(1)) == 1
        return

    def slower_with_more() -> torch.Tensor:
        nonlocal now
        now += 0.002 * torch.get_num_threads()
        return torch.zeros(1)

    def quicker_with_more() -> torch.Tensor:
        nonlocal now
        now += 0.02 / torch.get_num_threads()
        return torch.zeros(1)

    assert measure_threads(slower_with_more) == 1
    assert measure_threads(quicker_with_more, limit=2) == 2


def test_a_model_is_measured_by_its_own_steps(tmp_path: Path) -> None:
    backbone = MixedModel(tiny_base(tmp_path / "m"), {}).backbone
    before = torch.get_num_threads()
    assert 1 <= threads_for(backbone, limit=2) <= 2
    assert threads_for(backbone, limit=1) == 1
    assert torch.get_num_threads() == before
