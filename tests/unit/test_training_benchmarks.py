"""The benchmark of early answers runs on a base so small that it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bench_early_answers, harness
from tests.tiny_models import tiny_base


def test_early_answers_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "m", "llama")
    monkeypatch.setattr(harness, "pocket_base", lambda: base)
    monkeypatch.setattr(
        bench_early_answers, "paired", lambda one, other, **options: harness.paired(one, other, rounds=1, warmup=0)
    )
    row = bench_early_answers.measure(12, quick=True, goal=1.1)
    assert row.name.startswith("train on 1") and row.name.endswith(" short rows with early answers")
    assert row.goal == "≤ 1.1×" and row.ratio is not None and row.met == (row.ratio <= 1.1)
    assert row.exact == "2 looks with 3 answers each; the same bytes are learned"
