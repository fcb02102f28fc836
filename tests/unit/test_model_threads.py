"""Thread counts and number formats are chosen by measuring, within what this process may use."""

from __future__ import annotations

import subprocess
import sys

import torch

from dlm_tui.model.threads import available_cores, bfloat16_pays, choose_threads


def test_the_choice_is_within_reach_and_leaves_torch_alone() -> None:
    before = torch.get_num_threads()
    chosen = choose_threads()
    assert 1 <= chosen <= available_cores()
    assert torch.get_num_threads() == before
    assert choose_threads(1) == 1
    assert choose_threads() == chosen


def test_the_format_is_measured_once() -> None:
    assert bfloat16_pays() is bfloat16_pays()


def test_the_environment_for_children_needs_no_torch() -> None:
    code = "import sys, dlm_tui.model.environment as e; sys.exit('torch' in sys.modules or not e.CHILD_ENVIRONMENT)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
