"""A training that was interrupted goes on exactly: the bytes of the adapter are those of one that was not."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.document import TrainerSettings, load
from dlm_tui.errors import Cancelled, UsageError
from dlm_tui.model.base import Base
from dlm_tui.progress import Progress
from dlm_tui.store import (
    AdapterKind,
    GateEvent,
    KindChoices,
    Store,
    change,
    current_version,
    gate_state,
    gate_status,
    store_lock,
)
from dlm_tui.store.checkpoints import FOLDER, Asked, interrupted
from dlm_tui.store.examine import examine
from dlm_tui.store.gate_files import WEIGHTS_NAME
from dlm_tui.store.owed import Owed, stage_owed
from dlm_tui.store.version_record import is_kept, read_record
from dlm_tui.store.versions import all_versions
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.report import TrainOutcome
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

ROOT = Path(__file__).resolve().parents[2]
DIED = 77
PAIRS = """
::preference#facts::
### Prompt
What does boat 1 carry?
### Chosen
Three crates of salt.
### Rejected
Nothing at all, dear guest.

::preference#facts::
### Prompt
What does boat 2 carry?
### Chosen
Four crates of salt.
### Rejected
A piano.

::preference#facts::
### Prompt
Is the harbour quiet?
### Chosen
In winter it is.
### Rejected
Never, never.
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")


def document(folder: Path, epochs: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    path = write_document(folder, extra=PAIRS, sections=7, epochs=epochs)
    text = path.read_text().replace("  micro_batch_size: 4", "  micro_batch_size: 2\n  preference: {enabled: true}")
    path.write_text(text)
    return path


def train(path: Path, base: Base, *, stop_at: int | None = None, **more: Any) -> TrainOutcome:
    """Train; with `stop_at` a person cancels at that step of the run."""

    def report(step: Progress) -> None:
        if stop_at is not None and step.stage in {"sft", "dpo", "signed"} and step.done >= stop_at:
            raise Cancelled("cancelled")

    request = TrainRequest(document=load(path), store=Store(path.parent / "home", load(path).dlm_id), base=base, **more)
    return train_document(request, report)


def weights(path: Path) -> dict[str, bytes]:
    store = Store(path.parent / "home", load(path).dlm_id)
    found = {}
    for name in ("facts", "manners"):
        version = current_version(store, name)
        assert version is not None
        found[name] = (version.path / "adapter_model.safetensors").read_bytes()
    return found


KINDS = {
    "lora": AdapterKind(),
    "pissa": AdapterKind(parameterization="pissa"),
    "signed": AdapterKind(signed=True, coefficient=2.0),
    "signed pissa": AdapterKind(parameterization="pissa", selection="wanda", signed=True),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> KindChoices:
    """`facts`, which has preference pairs, in each kind of training."""
    chosen = KINDS[request.param]
    return KindChoices(by_name={"facts": chosen, "manners": AdapterKind(parameterization=chosen.parameterization)})


@pytest.fixture(scope="module")
def undisturbed(kind: KindChoices, base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = document(tmp_path_factory.mktemp("whole") / "d")
    train(path, base, choices=kind)
    return weights(path)


@pytest.mark.parametrize("stops", [[3], [4], [5, 6, 11], [12], [13], [14], [20], [26]])
def test_a_cancelled_training_goes_on_to_the_same_bytes(
    stops: list[int], kind: KindChoices, undisturbed: dict[str, bytes], base: Base, tmp_path: Path
) -> None:
    path = document(tmp_path / "d")
    for turn, stop in enumerate(stops):
        with pytest.raises(Cancelled):
            train(path, base, choices=kind, stop_at=stop, resume=turn > 0)
        left = interrupted(Store(tmp_path / "d" / "home", load(path).dlm_id))
        assert left is not None
    outcome = train(path, base, choices=kind, resume=True)
    assert weights(path) == undisturbed
    assert not (tmp_path / "d" / "home" / "store" / load(path).dlm_id / FOLDER).exists()
    assert all(item.train_loss is not None for item in outcome.adapters.values())
    pissa = kind.of("facts").parameterization == "pissa"
    assert bool(outcome.adapters["facts"].tail_depth) == pissa, "also of an adapter that was finished before"


def test_a_training_killed_behind_its_first_adapter_goes_on_with_the_same_version(base: Base, tmp_path: Path) -> None:
    """The version that a killed run finished and could not put in force does not cost a number."""
    path = document(tmp_path / "d", epochs=1)
    store = Store(tmp_path / "d" / "home", load(path).dlm_id)
    code = f"from pathlib import Path; from {__name__} import die_in_the_second; die_in_the_second(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == DIED
    left = read_record(store.adapter_dir("facts") / "versions" / "v0001")
    assert left is not None and left["state"] == "trained" and current_version(store, "facts") is None
    train(path, base, resume=True)
    for name in ("facts", "manners"):
        assert [item.version for item in all_versions(store, name)] == [1]


def die_in_the_second(path: Path) -> None:
    """Train as in the tests, and end like a killed process when the second adapter has begun."""

    def report(step: Progress) -> None:
        if step.stage == "sft" and step.scope == "manners":
            os._exit(DIED)

    store = Store(path.parent / "home", load(path).dlm_id)
    train_document(TrainRequest(document=load(path), store=store, base=tiny_base(path.parent / "m", "llama")), report)


def test_a_training_that_failed_behind_its_first_adapter_goes_on_with_the_same_version(
    base: Base, tmp_path: Path
) -> None:
    path, full = document(tmp_path / "d"), OSError(errno.ENOSPC, "No space left on device", "disk")
    store = Store(path.parent / "home", load(path).dlm_id)

    def report(step: Progress) -> None:
        if step.scope == "manners" and step.stage == "sft":
            raise full

    with pytest.raises(OSError, match="No space"):
        train_document(TrainRequest(document=load(path), store=store, base=base), report)
    (kept,) = all_versions(store, "facts")
    assert is_kept(kept.path), "it is only a person's to remove, or the same training's"
    train(path, base, resume=True)
    versions = {name: [one.version for one in all_versions(store, name)] for name in ("facts", "manners")}
    assert versions == {"facts": [1], "manners": [1]}
    whole = document(tmp_path / "whole")
    train(whole, base)
    assert weights(path) == weights(whole)


def test_without_resume_the_interrupted_training_is_given_up_and_said(base: Base, tmp_path: Path) -> None:
    path = document(tmp_path / "d")
    with pytest.raises(UsageError, match="no interrupted training"):
        train(path, base, resume=True)
    with pytest.raises(Cancelled):
        train(path, base, stop_at=4)
    outcome = train(path, base)
    assert any("`train --resume` would have gone on" in text for text in outcome.notes)
    assert interrupted(Store(tmp_path / "d" / "home", load(path).dlm_id)) is None


def test_another_document_is_another_training(base: Base, tmp_path: Path) -> None:
    path = document(tmp_path / "d")
    with pytest.raises(Cancelled):
        train(path, base, stop_at=4)
    path.write_text(path.read_text().replace("crates of salt", "barrels of rum"))
    outcome = train(path, base, resume=True)
    assert any("facts: starts at the beginning" in text for text in outcome.notes)


def folder_of(path: Path) -> Path:
    return path.parent / "home" / "store" / load(path).dlm_id / FOLDER


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) - len(data) // 4] ^= 0x40
    file.write_bytes(data)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_hashes(folder: Path) -> None:
    """As they were written before there were any."""
    for file in folder.rglob("state.json"):
        state = json.loads(file.read_bytes())
        del state["files"], state["state_sha256"]
        file.write_text(json.dumps(state))


@pytest.fixture(scope="module")
def cut(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was cut in its second adapter, with two checkpoints of it, and the weights it ends with."""
    path = document(tmp_path_factory.mktemp("cut") / "d", epochs=1)
    folder, steps = folder_of(path), list[int]()

    def report(step: Progress) -> None:
        if step.scope == "manners" and step.stage == "sft":
            steps.append(step.done)
        if len(set(steps)) == 3:
            raise Cancelled("cancelled")

    store = Store(path.parent / "home", load(path).dlm_id)
    with pytest.raises(Cancelled):
        train_document(TrainRequest(document=load(path), store=store, base=base, checkpoint_steps=1), report)
    assert (folder / "facts" / "finished").is_dir() and len(list((folder / "manners").glob("checkpoint-*"))) == 2
    return path


@pytest.fixture(scope="module")
def wanted(cut: Path, base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("wanted") / "d"
    shutil.copytree(cut.parent, path)
    train(path / cut.name, base, resume=True)
    return weights(path / cut.name)


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink])
@pytest.mark.parametrize(
    "file",
    [
        "facts/finished/weights.safetensors",
        "facts/finished/state.json",
        "manners/checkpoint/weights.safetensors",
        "manners/checkpoint/optimizer.json",
        "manners/checkpoint/random.safetensors",
        "manners/checkpoint/state.json",
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_takes_its_place(
    cut: Path, wanted: dict[str, bytes], base: Base, tmp_path: Path, file: str, harm: Callable[[Path], None]
) -> None:
    shutil.copytree(cut.parent, tmp_path / "d")
    path = tmp_path / "d" / cut.name
    newest, before = sorted((folder_of(path) / "manners").glob("checkpoint-*"), reverse=True)
    damaged = folder_of(path) / file.replace("checkpoint", newest.name)
    harm(damaged)
    outcome = train(path, base, resume=True)
    assert weights(path) == wanted
    adapter = file.partition("/")[0]
    (said,) = [note for note in outcome.notes if str(damaged) in note]
    step = int(before.name.removeprefix("checkpoint-"))
    assert f"{adapter}: goes on behind step" in said
    assert adapter == "facts" or f"goes on behind step {step} of" in said


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.json"])
def test_an_adapter_whose_only_checkpoint_is_damaged_begins_again(
    cut: Path, wanted: dict[str, bytes], base: Base, tmp_path: Path, file: str
) -> None:
    shutil.copytree(cut.parent, tmp_path / "d")
    path = tmp_path / "d" / cut.name
    without_hashes(folder_of(path))
    newest, before = sorted((folder_of(path) / "manners").glob("checkpoint-*"), reverse=True)
    shutil.rmtree(before)
    halve(newest / file)
    outcome = train(path, base, resume=True)
    assert weights(path) == wanted
    assert any("manners: starts at the beginning, as " in note and str(newest) in note for note in outcome.notes)


def test_checkpoints_without_hashes_are_gone_on_from(
    cut: Path, wanted: dict[str, bytes], base: Base, tmp_path: Path
) -> None:
    shutil.copytree(cut.parent, tmp_path / "d")
    path = tmp_path / "d" / cut.name
    without_hashes(folder_of(path))
    outcome = train(path, base, resume=True)
    assert weights(path) == wanted
    assert any("facts: trained to the end" in note for note in outcome.notes)
    assert any("manners: goes on behind step" in note for note in outcome.notes)


@pytest.mark.parametrize("place", ["manners/checkpoint", "manners", "facts/finished"])
def test_a_file_where_a_folder_should_be_is_said_and_makes_way(
    cut: Path, wanted: dict[str, bytes], base: Base, tmp_path: Path, place: str
) -> None:
    shutil.copytree(cut.parent, tmp_path / "d")
    path = tmp_path / "d" / cut.name
    newest = max((folder_of(path) / "manners").glob("checkpoint-*")).name
    odd = folder_of(path) / place.replace("checkpoint", newest)
    shutil.rmtree(odd)
    odd.touch()
    outcome = train(path, base, resume=True, checkpoint_steps=1)
    assert weights(path) == wanted
    (said,) = [note for note in outcome.notes if f"{odd} is no folder" in note]
    assert ("starts at the beginning" in said) == (place == "manners")


@pytest.mark.parametrize("place", ["manners", "."])
def test_a_file_in_the_place_of_checkpoints_stops_no_new_training(base: Base, tmp_path: Path, place: str) -> None:
    path = document(tmp_path / "d", epochs=1)
    odd = folder_of(path) / place
    odd.parent.mkdir(parents=True)
    odd.touch()
    train(path, base, checkpoint_steps=1)
    assert not folder_of(path).exists()


def test_where_no_state_can_be_read_it_is_said_what_is_damaged(cut: Path, base: Base, tmp_path: Path) -> None:
    shutil.copytree(cut.parent, tmp_path / "d")
    path = tmp_path / "d" / cut.name
    for file in folder_of(path).rglob("state.json"):
        halve(file)
    with pytest.raises(UsageError, match=r"cannot be gone on with: .*state\.json .*train without --resume"):
        train(path, base, resume=True)


def gate_of(path: Path) -> tuple[bytes, list[GateEvent]]:
    store = Store(path.parent / "home", load(path).dlm_id)
    state = gate_state(store)
    events = [dataclasses.replace(event, at="") for event in state.events]
    return (store.gate_dir / WEIGHTS_NAME).read_bytes(), events


@pytest.mark.parametrize("before", [False, True])
def test_a_training_that_was_cut_in_its_gate_goes_on_with_the_gate(base: Base, tmp_path: Path, before: bool) -> None:
    whole, cut = document(tmp_path / "whole", epochs=1), document(tmp_path / "cut", epochs=1)
    store = Store(cut.parent / "home", load(cut).dlm_id)
    for path in (whole, cut) if before else ():
        train(path, base)
    train(whole, base)

    def stop(step: Progress) -> None:
        if step.scope == "gate":
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled, match="`train --resume` trains it"):
        train_document(TrainRequest(document=load(cut), store=store, base=base), stop)
    status, trained = gate_status(load(cut), store), weights(cut)
    assert status.mode == ("stale" if before else "none") and "`train --resume` trains it" in status.reason
    assert [one.severity for one in examine(store, ("facts", "manners"), "tiny") if "--resume" in one.text] == ["note"]
    outcome = train(cut, base, resume=True)
    assert outcome.adapters == {} and weights(cut) == trained == weights(whole)
    assert gate_of(cut) == gate_of(whole), "of the same run, too"
    assert gate_status(load(cut), store).mode == "trained"
    with pytest.raises(UsageError, match="no interrupted training"):
        train(cut, base, resume=True)


def test_a_gate_that_is_owed_is_settled_by_training_the_gate_alone(base: Base, tmp_path: Path) -> None:
    path = document(tmp_path / "d", epochs=1)
    store = Store(path.parent / "home", load(path).dlm_id)
    train(path, base)
    with store_lock(store), change(store) as together:
        stage_owed(store, together, Owed(run_id=3, asked=Asked(threads=1, trainer=TrainerSettings())))
    assert gate_status(load(path), store).mode == "stale"
    train(path, base, gate_only=True)
    assert gate_status(load(path), store).mode == "trained"


def test_nothing_pickled_is_written(base: Base, tmp_path: Path) -> None:
    path = document(tmp_path / "d")
    with pytest.raises(Cancelled):
        train(path, base, stop_at=13)
    root = tmp_path / "d" / "home" / "store" / load(path).dlm_id / FOLDER
    files = [file for file in root.rglob("*") if file.is_file()]
    assert files and {file.suffix for file in files} <= {".safetensors", ".json"}


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.test_training_resume", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 20 and found["same"]


def main(folder: Path) -> dict[str, Any]:
    """Chains of kills at random file-system steps, each gone on from, until a training ends; 20 kills in all."""
    from tests.faults.version_kills import killed_at

    base = tiny_base(folder / "base", "llama")
    whole = document(folder / "whole", epochs=1)
    train(whole, base)
    wanted, chosen = weights(whole), random.Random(7)
    kills, same, chain = 0, True, 0
    while kills < 20:
        chain += 1
        path = document(folder / f"chain-{chain}", epochs=1)
        store = Store(path.parent / "home", load(path).dlm_id)
        while True:
            step = chosen.randint(20, 400) if kills < 20 else 1 << 30  # the last chain is let go on to its end
            resume = interrupted(store) is not None
            if not killed_at(
                step, lambda path=path, resume=resume: train(path, base, checkpoint_steps=2, resume=resume)
            ):
                break
            kills += 1
        same = same and weights(path) == wanted
    return {"kills": kills, "same": same, "chains": chain}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
