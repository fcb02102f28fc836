"""Versions of adapters: facts, going back and forward, keeping, dropping, and what nothing may drop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlm_tui.errors import UsageError
from dlm_tui.losses import Loss
from dlm_tui.platform import process_mark
from dlm_tui.store import (
    AdapterKind,
    Manifest,
    Store,
    StoreError,
    current_version,
    new_version,
    run_lock,
    update_manifest,
)
from dlm_tui.store.adapter_history import (
    HISTORY,
    before_last_training,
    changes,
    drop_version,
    find_version,
    keep_version,
    prunable,
    record_effects,
    use_versions,
    version_history,
)
from dlm_tui.store.adapter_kind import TrainingRecord, write_training_record
from dlm_tui.store.effects import OwnEffect
from dlm_tui.store.examine import examine
from dlm_tui.store.litter import dead_versions
from dlm_tui.store.manifest import LOSS_KIND_KEY
from dlm_tui.store.versions import all_versions, discard_version
from tests.adapter_versions import finished_training

NAMES = ("tone", "facts")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "01JEXPXRTTESTSEXPXRTTESTSE").create()


def in_force(store: Store) -> dict[str, int | None]:
    found = {name: current_version(store, name) for name in NAMES}
    return {name: version.version if version else None for name, version in found.items()}


def test_every_version_says_where_it_came_from(store: Store) -> None:
    finished_training(store, *NAMES, run=1)
    finished_training(store, "tone", run=3)
    first, second = version_history(store, NAMES)["tone"]
    assert (first.version, first.run_id, first.in_force, first.train_loss, first.rank) == (1, 1, False, 1.0, 8)
    assert (second.version, second.run_id, second.in_force, second.when) == (2, 3, True, "2026-01-03T01:00:00")
    assert second.size > first.size


def test_a_loss_is_told_with_its_unit_where_its_kind_is_known(store: Store) -> None:
    finished_training(store, "tone", run=1)
    (facts,) = version_history(store, ["tone"])["tone"]
    assert facts.loss_words == ["loss 1.000"], "nobody has recorded what it is"

    def judged(manifest: Manifest) -> None:
        manifest.training_runs[0].final_val_loss = 0.923
        manifest.training_runs[0].pinned_versions = {LOSS_KIND_KEY: "dpo"}

    update_manifest(store, judged, base_model="pocket")
    (facts,) = version_history(store, ["tone"])["tone"]
    assert facts.loss_words == ["dpo 1.000 nats/pair", "val 0.923 nats/token"] and facts.train_loss == 1.0
    both = [Loss.of("sft", 0.351), Loss.of("dpo", 1.0)]
    write_training_record(facts.path, TrainingRecord(losses=both))
    (facts,) = version_history(store, ["tone"])["tone"]
    assert facts.loss_words == ["loss 0.351 nats/token", "dpo 1.000 nats/pair", "val 0.923 nats/token"]


def test_the_last_loss_of_signed_pairs_is_theirs_also_where_nobody_wrote_so(store: Store) -> None:
    finished_training(store, "tone", run=1)
    (facts,) = version_history(store, ["tone"])["tone"]
    write_training_record(facts.path, TrainingRecord(kind=AdapterKind(signed=True)))
    (facts,) = version_history(store, ["tone"])["tone"]
    assert facts.loss_words == ["signed 1.000 nats/token"]


def test_back_is_to_what_was_in_force_before_the_last_training(store: Store) -> None:
    finished_training(store, *NAMES, run=1)
    assert before_last_training(store, NAMES) == {}
    finished_training(store, *NAMES, run=3)
    assert before_last_training(store, NAMES) == {"tone": 1, "facts": 1}
    assert use_versions(store, before_last_training(store, NAMES), "back") == {"tone": (2, 1), "facts": (2, 1)}
    assert in_force(store) == {"tone": 1, "facts": 1}
    assert changes(store)[-1].reason == "back"
    assert use_versions(store, {"tone": 2}) == {"tone": (1, 2)} and in_force(store)["tone"] == 2


def test_using_what_is_in_force_changes_nothing(store: Store) -> None:
    finished_training(store, "tone", run=1)
    assert use_versions(store, {"tone": 1}) == {} and changes(store) == []


def test_a_version_that_does_not_exist_is_named_with_those_that_do(store: Store) -> None:
    finished_training(store, *NAMES, run=1)
    with pytest.raises(UsageError, match="no version 7; there are: 1"):
        use_versions(store, {"facts": 1, "tone": 7})
    assert in_force(store) == {"tone": 1, "facts": 1}


def test_prune_leaves_what_is_in_force_kept_exported_or_gone_back_to(store: Store) -> None:
    for run in (1, 2, 3, 4, 5):
        finished_training(store, "tone", run=run)
    keep_version(store, "tone", 2)
    folder = store.exports_dir / "peft"
    folder.mkdir(parents=True)
    (folder / "export_manifest.json").write_text(json.dumps({"adapters": {"tone": {"version": 1}}}))
    assert [facts.version for facts in prunable(store, NAMES)] == [3]
    keep_version(store, "tone", 2, kept=False)
    assert [facts.version for facts in prunable(store, NAMES)] == [2, 3]


def test_drop_refuses_what_is_needed_and_frees_the_rest(store: Store) -> None:
    for run in (1, 2, 3):
        finished_training(store, "tone", run=run)
    with pytest.raises(UsageError, match="in force"):
        drop_version(store, "tone", 3)
    assert drop_version(store, "tone", 1) > 100
    assert [facts.version for facts in version_history(store, ["tone"])["tone"]] == [2, 3]
    # the number is not given to another version
    finished_training(store, "tone", run=4)
    assert in_force(store)["tone"] == 4


def test_the_number_of_a_dropped_version_is_never_given_to_another(store: Store) -> None:
    for run in (1, 2, 3):
        finished_training(store, "tone", run=run)
    use_versions(store, {"tone": 1})
    drop_version(store, "tone", 3)
    assert finished_training(store, "tone", run=4) == {"tone": 4}
    use_versions(store, {"tone": 1})
    drop_version(store, "tone", 4)
    (store.adapters_dir / HISTORY).unlink()
    assert new_version(store, "tone").version == 5, "the manifest knows of it, too"


def test_the_number_of_a_dropped_import_is_in_the_history_alone(store: Store) -> None:
    finished_training(store, "tone", run=1)
    for number in (2, 3):
        shutil.copytree(
            store.adapter_dir("tone") / "versions/v0001", store.adapter_dir("tone") / f"versions/v000{number}"
        )
    drop_version(store, "tone", 3)
    drop_version(store, "tone", 2)
    assert new_version(store, "tone").version == 4


def test_a_version_that_was_made_in_vain_leaves_its_number_to_the_next(store: Store) -> None:
    finished_training(store, "tone", run=1)
    discard_version(store, new_version(store, "tone"))
    assert new_version(store, "tone").version == 2, "a training that goes on makes the same again"


def test_a_damaged_history_costs_marks_and_no_version(store: Store) -> None:
    finished_training(store, "tone", run=1)
    finished_training(store, "tone", run=2)
    (store.adapters_dir / HISTORY).write_text("[" * 100_000)
    assert len(version_history(store, ["tone"])["tone"]) == 2
    use_versions(store, {"tone": 1})
    assert in_force(store)["tone"] == 1


def test_a_version_that_another_process_is_making_cannot_be_used(store: Store) -> None:
    finished_training(store, "tone", run=1)
    path = store.adapter_dir("tone") / "versions" / "v0002"
    shutil.copytree(path.with_name("v0001"), path)
    record = {"format": 1, "pid": os.getpid(), "host": socket.gethostname(), "files": {}, "claim": "its training"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for state in ("filling", "trained"):
            (path / "tui_version.json").write_text(json.dumps({**record, **written_by(other), "state": state}))
            assert [facts.version for facts in version_history(store, ["tone"])["tone"]] == [1]
            with pytest.raises(UsageError, match="tone@2 is being trained"):
                use_versions(store, {"tone": 2})
            with pytest.raises(UsageError, match="tone@2 is being trained"):
                drop_version(store, "tone", 2)
        (path / "tui_version.json").write_text(json.dumps({**record, **written_by(other), "state": "kept"}))
        assert len(version_history(store, ["tone"])["tone"]) == 2
        (path / "tui_version.json").write_text(json.dumps({**record, **written_by(other), "state": "trained"}))
        other.communicate(b"\n")
    assert use_versions(store, {"tone": 2}) == {"tone": (1, 2)}, "its writer is gone and left it whole"


def written_by(process: subprocess.Popen[bytes]) -> dict[str, object]:
    return {"pid": process.pid, "started": process_mark(process.pid)}


@contextlib.contextmanager
def living(code: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which has run `code` and waits."""
    program = f"{code}print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.communicate(b"\n")


def left_behind(store: Store, state: str, **writer: object) -> Path:
    """The second version of `tone`, as a training that was killed leaves it; the first is in force."""
    finished_training(store, "tone", run=1)
    path = store.adapter_dir("tone") / "versions" / "v0002"
    shutil.copytree(path.with_name("v0001"), path)
    record = {"format": 1, "host": socket.gethostname(), "files": {}, "claim": "its training", "state": state}
    (path / "tui_version.json").write_text(json.dumps({**record, **writer}))
    return path


@pytest.mark.parametrize(("started", "own"), [("another moment", False), ("another moment", True), (None, False)])
def test_a_process_that_got_the_id_of_a_dead_training_holds_nothing(
    store: Store, started: str | None, own: bool
) -> None:
    """Of a record without a start no training holds the right to train."""
    with living() as process:
        pid = os.getpid() if own else process.pid
        path = left_behind(store, "filling", pid=pid, started=started)
        assert [version.path for version in dead_versions(store)] == [path]
        path = path.rename(path.with_name("v0003"))
        record = json.loads((path / "tui_version.json").read_bytes())
        (path / "tui_version.json").write_text(json.dumps({**record, "state": "trained"}))
        assert [facts.version for facts in version_history(store, ["tone"])["tone"]] == [1, 3]
        assert use_versions(store, {"tone": 3}) == {"tone": (1, 3)}


def test_a_record_without_the_start_of_its_writer_is_held_while_another_process_trains(store: Store) -> None:
    code = f"""
import contextlib, pathlib
from dlm_tui.store import Store, run_lock
held = contextlib.ExitStack()
held.enter_context(run_lock(Store(pathlib.Path({str(store.home)!r}), {store.dlm_id!r})))
"""
    with living(code) as process:
        left_behind(store, "trained", pid=process.pid)
        with pytest.raises(UsageError, match="tone@2 is being trained"):
            find_version(store, "tone", 2)
    with living() as process, run_lock(store):
        record = {"format": 1, "host": socket.gethostname(), "files": {}, "claim": "its training", "state": "trained"}
        path = store.adapter_dir("tone") / "versions" / "v0002" / "tui_version.json"
        path.write_text(json.dumps({**record, "pid": process.pid}))
        find_version(store, "tone", 2)


def test_what_was_trained_in_vain_goes_unless_somebody_put_it_in_force(store: Store) -> None:
    finished_training(store, "tone", run=1)
    finished_training(store, "tone", run=2)
    first, second = all_versions(store, "tone")
    discard_version(store, second)
    discard_version(store, first)
    assert [version.version for version in all_versions(store, "tone")] == [2]
    assert in_force(store)["tone"] == 2


@pytest.fixture
def pruned(store: Store) -> Store:
    """Four versions of `tone`, of which `prune` would delete two."""
    for run in (1, 2, 3, 4):
        finished_training(store, "tone", run=run)
    assert [facts.version for facts in prunable(store, NAMES)] == [1, 2]
    return store


@pytest.mark.parametrize("marks", [b'{"kept": {"tone": [1]}, "chan', b"", b"\xff"])
def test_prune_deletes_nothing_where_the_marks_cannot_be_read(pruned: Store, marks: bytes) -> None:
    (pruned.adapters_dir / HISTORY).write_bytes(marks)
    with pytest.raises(StoreError, match=rf"{HISTORY} is not what was written\. .*none is deleted; .*doctor DOC"):
        prunable(pruned, NAMES)


def test_prune_deletes_nothing_where_a_digit_of_the_marks_changed(pruned: Store) -> None:
    keep_version(pruned, "tone", 1)
    path = pruned.adapters_dir / HISTORY
    written = json.loads(path.read_bytes())
    path.write_text(json.dumps({**written, "kept": {"tone": [3]}}))
    with pytest.raises(StoreError, match=rf"{HISTORY} is not what was written"):
        prunable(pruned, NAMES)
    del written["record_sha256"]
    path.write_text(json.dumps(written))
    assert [facts.version for facts in prunable(pruned, NAMES)] == [2], "an earlier version wrote no hash"


@pytest.mark.parametrize(
    "change",
    [
        lambda store: use_versions(store, {"tone": 3}),
        lambda store: keep_version(store, "tone", 2),
        lambda store: drop_version(store, "tone", 2),
        lambda store: record_effects(
            store, {"tone": (4, OwnEffect(kl=0.1, gain=0.2, changed=0.1, z=None, sections=3))}
        ),
        lambda store: finished_training(store, "tone", run=5) and use_versions(store, {"tone": 4}),
    ],
)
def test_prune_deletes_nothing_until_lost_marks_are_settled(pruned: Store, change: Callable[[Store], object]) -> None:
    keep_version(pruned, "tone", 1)
    path = pruned.adapters_dir / HISTORY
    path.write_bytes(path.read_bytes()[:-30])
    change(pruned)
    aside = path.with_name("tui_history.damaged.json")
    with pytest.raises(StoreError, match=rf"{aside} .*`dlm-tui adapter keep DOC NAME --version N`\), then delete it\."):
        prunable(pruned, NAMES)
    assert [str(aside) in text for text in found_damages(pruned)].count(True) == 1
    keep_version(pruned, "tone", 1)
    aside.unlink()
    assert 1 not in [facts.version for facts in prunable(pruned, NAMES)]
    assert not any(HISTORY[:-5] in text for text in found_damages(pruned))


def found_damages(store: Store) -> list[str]:
    return [one.text for one in examine(store, NAMES) if one.severity == "damage"]


def test_prune_deletes_nothing_where_the_manifest_is_gone(pruned: Store) -> None:
    pruned.manifest_path.unlink()
    with pytest.raises(StoreError, match=r"manifest\.json is missing.*doctor DOC --repair"):
        prunable(pruned, NAMES)


@pytest.mark.parametrize("what", ["export", "metrics"])
def test_nothing_is_deleted_where_it_cannot_be_told_what_exports_hold(pruned: Store, what: str) -> None:
    path = pruned.exports_dir / "peft" / "export_manifest.json" if what == "export" else pruned.metrics_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"adapters": {"tone": {"version": 1')
    for delete in (lambda: prunable(pruned, NAMES), lambda: drop_version(pruned, "tone", 1)):
        with pytest.raises(StoreError, match=f"{path}.* deleted"):
            delete()
    assert len(version_history(pruned, ["tone"])["tone"]) == 4, "reading goes on"
