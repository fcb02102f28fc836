"""What a training says at its end is what the store holds, however the gate's training ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import Document
from dlm_tui.errors import Cancelled
from dlm_tui.gate import training as gate_training
from dlm_tui.gate.fitting import Fit, FitStep
from dlm_tui.gate.training import GateTrainingError
from dlm_tui.model import Base, load_base, resolve_base
from dlm_tui.progress import WARNING, Progress, run_to_end
from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, Store, adapter_versions, gate_status
from dlm_tui.system_errors import system_sentence
from dlm_tui.training import TrainRequest, train_document
from tests.interop.peer_fixture import peer_root
from tests.training_samples import sample, write_document

NAMES = ["facts", "manners"]
ERRORS = [OSError(28, "No space left on device"), RuntimeError("CUDA error"), MemoryError()]


@pytest.fixture(scope="module")
def base() -> Base:
    return run_to_end(load_base(resolve_base("peer-tiny", peer_root() / "base")))


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return sample(tmp_path, epochs=1)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def diverging(*_: object) -> Generator[Progress, None, Fit]:
    yield Progress("train", 1, 1, loss=float("nan"))
    return Fit(None, [FitStep(1, float("nan"), 0.0)])


def lines(store: Store, run: int) -> list[dict[str, Any]]:
    """The log of a run, which is one file."""
    (path,) = store.logs_dir.glob(f"train-{run:06d}-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def warnings(steps: list[Progress]) -> list[str | None]:
    return [step.text for step in steps if step.stage == WARNING]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_gate_that_crashes_leaves_the_new_adapters_and_the_next_run_tries_again(
    base: Base, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = Store(tmp_path / "home", document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base)
    steps: list[Progress] = []
    with monkeypatch.context() as fault:
        fault.setattr(gate_training, "save_gate", raising(error))
        outcome = train_document(request, steps.append)
    assert {name: item.version for name, item in adapter_versions(store, NAMES).items()} == {"facts": 1, "manners": 1}
    assert outcome.gate is None and outcome.gate_failed and outcome.gate_error is not None
    said = system_sentence(error) or type(error).__name__
    assert said in outcome.gate_error and "in force are facts version 1" in outcome.gate_error
    assert warnings(steps) == [outcome.gate_error]
    assert [run["status"] for run in MetricsReader(store).runs()] == ["ok", "ok"]
    last = lines(store, 2)[-1]
    assert (last["type"], last["error"]) == ("gate_error", "GateTrainingError") and said in last["text"]
    assert gate_status(document, store).in_force == "none"
    again = train_document(request, steps.append)
    assert again.gate is not None and again.gate.mode == "trained" and again.gate_error is None
    assert gate_status(document, store).mode == "trained"


def test_a_gate_alone_that_crashes_is_an_error_of_one_kind(
    base: Base, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home", document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base, gate_only=True)
    monkeypatch.setattr(gate_training, "save_gate", raising(ERRORS[0]))
    with pytest.raises(GateTrainingError, match="no space is left on its disk"):
        train_document(request, lambda step: None)
    assert [(run["phase"], run["status"]) for run in MetricsReader(store).runs()] == [("gate", "failed")]
    assert [line["type"] for line in lines(store, 1)] == ["gate_error"]


def test_a_stop_while_the_gate_trains_says_what_is_in_force(base: Base, document: Document, tmp_path: Path) -> None:
    store = Store(tmp_path / "home", document.dlm_id)
    for stop in (Cancelled, KeyboardInterrupt):

        def at_the_gate(step: Progress, stop: type[BaseException] = stop) -> None:
            if step.scope == "gate":
                raise stop

        with pytest.raises(Cancelled, match="in force are facts version"):
            train_document(TrainRequest(document=document, store=store, base=base), at_the_gate)
    assert {item.version for item in adapter_versions(store, NAMES).values()} == {2}
    assert gate_status(document, store).in_force == "none"


def test_what_the_metrics_refuse_does_not_undo_a_gate_that_is_in_force(
    base: Base, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home", document.dlm_id)
    refused = raising(MetricsError("the disk is full"))
    monkeypatch.setattr(MetricsWriter, "record_gate_events", refused)
    request = TrainRequest(document=document, store=store, base=base, gate_only=True)
    steps: list[Progress] = []
    with monkeypatch.context() as fault:
        fault.setattr(MetricsWriter, "finish_run", refused)
        outcome = train_document(request, steps.append)
    assert outcome.gate is not None and outcome.gate.mode == "trained" and not outcome.gate_failed
    assert "could not be recorded: the disk is full" in str(warnings(steps))
    assert gate_status(document, store).in_force == "trained"


def test_divergence_and_cold_start_are_warnings_with_the_remedy_and_logged(
    base: Base, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home", document.dlm_id)
    steps: list[Progress] = []
    with monkeypatch.context() as fault:
        fault.setattr(gate_training, "fit_document", diverging)
        outcome = train_document(TrainRequest(document=document, store=store, base=base), steps.append)
    assert outcome.gate_failed and "Lower training.gate.lr" in str(warnings(steps)[0])
    assert (lines(store, 2)[-1]["type"], lines(store, 2)[-1]["mode"]) == ("gate", "diverged")
    few = sample(tmp_path, epochs=1, sections=1)
    cold = train_document(TrainRequest(document=few, store=store, base=base, gate_only=True), steps.append)
    assert cold.gate is not None and cold.gate.mode == "uniform" and not cold.gate_failed
    assert "sections still needed: facts 1, manners 1" in str(warnings(steps)[1]) and len(warnings(steps)) == 2
    assert lines(store, 3)[-1]["mode"] == "uniform" and "still needed" in lines(store, 3)[-1]["reason"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = write_document(tmp_path, epochs=1)
    return ["train", str(path), "--home", str(tmp_path / "home"), "--base", str(peer_root() / "base"), "--json"]


def test_the_command_exits_1_when_the_gate_crashed_and_its_result_says_why(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate_training, "save_gate", raising(ERRORS[0]))
    assert main(command) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert set(report["adapters"]) == set(NAMES) and report["gate"] is None
    assert "no space is left on its disk" in report["gate_error"]
    assert f"warning: {report['gate_error']}" in err.splitlines()
    assert main([*command, "--gate-only"]) == 1
    assert "The gate was not trained: a file: no space is left" in capsys.readouterr().err


def test_a_gate_alone_that_diverges_exits_1(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate_training, "fit_document", diverging)
    assert main([*command, "--gate-only"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["gate"]["mode"] == "diverged"
    assert "warning: The last gate training diverged" in err and "Lower training.gate.lr" in err
