"""Seeds outside 32 bits: valid in a document, taken into range by one rule, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_tui.document import parse_bytes, seed_in_range, seed_note
from dlm_tui.model.sampling import Sampling
from dlm_tui.progress import Progress
from dlm_tui.store import MetricsReader, Store, read_manifest
from dlm_tui.training import TrainRequest, train_document
from tests.tiny_models import tiny_base
from tests.training_samples import write_document


@pytest.mark.parametrize(
    ("seed", "used"), [(0, 0), (2**32 - 1, 2**32 - 1), (2**32, 0), (-1, 2**32 - 1), (10**23 - 1, (10**23 - 1) % 2**32)]
)
def test_one_rule_for_every_seed(seed: int, used: int) -> None:
    assert seed_in_range(seed) == used
    assert Sampling(seed=seed).seed == used
    note = seed_note(seed)
    assert note is None if seed == used else note == f"training.seed {seed} is used as {used} (modulo 2^32)"


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-38, 1e-30, 1e-7])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(temperature: float) -> None:
    assert Sampling(temperature=temperature).temperature == 0.0 and Sampling(temperature=1e-5).temperature == 1e-5


def test_a_very_long_seed_is_said_shortly() -> None:
    assert seed_note(1 << 20000) == "training.seed of 20001 bits is used as 0 (modulo 2^32)"


@pytest.mark.parametrize("seed", [-1, 10**23 - 1])
def test_a_document_with_such_a_seed_trains(tmp_path: Path, seed: int) -> None:
    text = (
        write_document(tmp_path, sections=2, epochs=1)
        .read_text()
        .replace("training:\n", f"training:\n  seed: {seed}\n")
    )
    document, notes = parse_bytes(text.encode()), []
    store = Store(tmp_path / "home", document.dlm_id)

    def report(step: Progress | None) -> None:
        if step is not None and step.stage == "note":
            notes.append(step.text)

    train_document(TrainRequest(document=document, store=store, base=tiny_base(tmp_path / "m")), report)
    used = seed % 2**32
    assert notes[0] == f"training.seed {seed} is used as {used} (modulo 2^32)"
    assert {run["seed"] for run in MetricsReader(store).runs(limit=None)} == {used}
    manifest = read_manifest(store)
    assert manifest is not None and {run.seed for run in manifest.training_runs} == {used}
