"""Files of a store that are not what was written: said with the file and the last good version, and mended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.files import remove, scratch_sibling, temporary_folder
from dlm_tui.platform import process_mark
from dlm_tui.store import (
    GateFileError,
    LockHeld,
    LockStale,
    ManifestError,
    MetricsReader,
    MetricsWriter,
    PointerError,
    StoreError,
    VersionDamaged,
    adapter_versions,
    check_gate_files,
    claim,
    current_version,
    new_version,
    read_gate_config,
    read_gate_record,
    read_manifest,
    run_lock,
    seal_version,
    store_lock,
    update_manifest,
    verify_version,
)
from dlm_tui.store.adapter_history import drop_version, keep_version, prunable, use_versions
from dlm_tui.store.checkpoints import FINISHED, CheckpointState, checkpoint_folder, new_checkpoint
from dlm_tui.store.examine import examine, repair
from dlm_tui.store.litter import clear_earlier_try, dead_runs
from dlm_tui.store.packs import PackError, write_pack
from dlm_tui.store.version_record import AdapterVersion, begin_record, mark_kept
from tests.adapter_versions import rewrite_record
from tests.faults.small_store import NAMES, SmallStore
from tests.faults.stepping import KILLED, run_child
from tests.tensor_bytes import tensor_bytes


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path).make()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def as_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def flip(path: Path, place: int = 5) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "tui_version.json"])
def test_a_damaged_version_names_the_file_and_the_last_good_one(small: SmallStore, file: str) -> None:
    version = adapter_versions(small.store, NAMES)["tone"]
    if file == "tui_version.json":
        (version.path / file).write_bytes((version.path / file).read_bytes()[:-20])
    else:
        flip(version.path / file)
    with pytest.raises(VersionDamaged, match=rf"v0002/{file} is not .*last good version .*tone --version 1"):
        verify_version(small.store, version)
    assert repair(small.store, NAMES, "tiny")
    assert {name: found.version for name, found in adapter_versions(small.store, NAMES).items()} == {
        "tone": 1,
        "style": 2,
    }
    verify_version(small.store, adapter_versions(small.store, NAMES)["tone"])


PAIR = {"m.lora_A.weight": (1, 4), "m.lora_B.weight": (6, 1)}


@pytest.fixture
def without_hashes(small: SmallStore) -> AdapterVersion:
    """A version as another tool writes it."""
    version = adapter_versions(small.store, NAMES)["tone"]
    (version.path / "tui_version.json").unlink()
    (version.path / "adapter_model.safetensors").write_bytes(tensor_bytes(PAIR))
    return version


def test_a_version_without_hashes_is_as_valid_as_before(small: SmallStore, without_hashes: AdapterVersion) -> None:
    config = without_hashes.path / "adapter_config.json"
    config.write_bytes(config.read_bytes().replace(b"second", b"sacond"))
    verify_version(small.store, without_hashes)
    assert not [one for one in examine(small.store, NAMES) if one.severity == "damage"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "is cut short"),
        (lambda path: path.write_bytes(b"garbage, and more of it"), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"?"), "is damaged: it has"),
        (lambda path: path.write_bytes(tensor_bytes({**PAIR, "m.lora_B.weight": (6, 2)})), "do not fit together"),
        (
            lambda path: path.write_bytes(tensor_bytes({"m.lora_A.weight": (2, 4), "m.lora_B.weight": (6, 2)})),
            "the rank of m.lora_A.weight is 2, its configuration says 1",
        ),
        (lambda path: path.write_bytes(tensor_bytes(PAIR, float("inf"))), "not finite"),
        (Path.unlink, "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a plain file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a plain file"),
        (lambda path: path.with_name("adapter_config.json").write_bytes(b"{"), "adapter_config.json is damaged"),
        (lambda path: path.with_name("adapter_config.json").unlink(), "adapter_config.json is missing"),
    ],
)
def test_the_files_of_a_version_without_hashes_are_looked_at_for_their_form(
    small: SmallStore, without_hashes: AdapterVersion, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(without_hashes.path / "adapter_model.safetensors")
    with pytest.raises(VersionDamaged, match=rf"v0002/adapter_.* {words}|{words}.*last good version"):
        verify_version(small.store, without_hashes)
    found = [one for one in examine(small.store, NAMES) if one.severity == "damage"]
    assert any(words in one.text and one.mend is not None for one in found)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_that_cannot_be_read_is_not_called_another(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    from dlm_tui.store import version_record

    version, read = adapter_versions(small.store, NAMES)["tone"], version_record.sha256_file

    def refuse(path: Path) -> str:
        if path == version.path / file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(version_record, "sha256_file", refuse)
    with pytest.raises(StoreError, match=rf"v0002/{file} cannot be read \(Permission denied\)") as caught:
        verify_version(small.store, version)
    assert not isinstance(caught.value, VersionDamaged)
    (found,) = [one.text for one in examine(small.store, NAMES) if one.severity == "damage"]
    assert f"{file} cannot be read (Permission denied)" in found


def test_a_record_that_cannot_be_read_says_nothing_of_the_files(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, opened = adapter_versions(small.store, NAMES)["tone"], os.open
    record = version.path / "tui_version.json"

    def refuse(path: str | Path, *rest: int) -> int:
        if Path(path) == record:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"tui_version\.json cannot be read \(Permission denied\)") as caught:
        verify_version(small.store, version)
    assert not isinstance(caught.value, VersionDamaged)


def spoil_pointer(text: str) -> Callable[[SmallStore], None]:
    return lambda small: (small.store.adapter_dir("tone") / "current.txt").write_text(text) and None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty or missing, though version 2"),
        ("adapter/style/versions/v0002\n", "not a version of the adapter 'tone'"),
        ("adapter/tone/versions/v0001\n", "names version 1 of 'tone', the manifest says 2"),
        ("adapter/tone/versions/v0009\n", "does not exist"),
    ],
)
def test_a_pointer_that_was_not_written_so_is_said_and_put_back(
    small: SmallStore, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_pointer(text)(small)
    assert main(["show", str(small.document), "--home", str(small.store.home)]) == 0
    assert re.search(f"problem: .*{said}", capsys.readouterr().out)
    with pytest.raises(PointerError, match=said):
        adapter_versions(small.store, NAMES)
    repair(small.store, NAMES, "tiny")
    assert {found.version for found in adapter_versions(small.store, NAMES).values()} == {2}
    assert not [one for one in examine(small.store, NAMES, "tiny") if one.severity == "damage"]


def test_a_manifest_of_another_document_is_refused(small: SmallStore) -> None:
    path = small.store.manifest_path
    path.write_text(path.read_text().replace(small.store.dlm_id, "01JOTHEROTHEROTHEROTHEROTH"))
    with pytest.raises(ManifestError, match="belongs to the document '01JOTHER"):
        read_manifest(small.store)
    repair(small.store, NAMES, "tiny")
    manifest = read_manifest(small.store)
    assert manifest is not None and manifest.adapter_versions == {"tone": 2, "style": 2}
    assert [run.run_id for run in manifest.training_runs] == [1, 2, 3, 4]
    assert not small.mixed()


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"dlm_id": 3}', b"\xff"])
def test_a_damaged_manifest_names_its_remedy_and_that_mends_it(
    small: SmallStore, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(small.document), "--home", str(small.store.home)]
    small.store.manifest_path.write_bytes(data)
    with pytest.raises(ManifestError, match=r"manifest\.json.*`dlm-tui doctor DOC --repair` mends it\.$"):
        read_manifest(small.store)
    assert main(["metrics", *command]) == 1
    assert f"`dlm-tui doctor {small.document} --repair --home {small.store.home}` mends it." in capsys.readouterr().err
    assert main(["doctor", *command]) == 1
    said = capsys.readouterr().out
    assert said.count("[--repair mends it]") == 1 and "doctor DOC" not in said
    assert main(["doctor", *command, "--repair"]) == 0
    assert "mended" in capsys.readouterr().out
    manifest = read_manifest(small.store)
    assert manifest is not None and manifest.adapter_versions == {"tone": 2, "style": 2}
    assert manifest.source_path == str(small.document), "nobody else of the id has it from now on"


def test_a_lost_manifest_beside_adapters_is_said_and_mended(
    small: SmallStore, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(small.document), "--home", str(small.store.home)]
    small.store.manifest_path.unlink()
    claim(small.store, load(small.document))
    assert read_manifest(small.store) is None, "an empty one would hide that"
    missing = f"{small.store.manifest_path} is missing, though version 2 of 'style' is in force."
    assert main(["show", *command]) == 0
    shown = capsys.readouterr().out
    assert f"problem: {missing} `dlm-tui doctor {small.document} --repair --home {small.store.home}` mends it." in shown
    assert f"store     {small.store.root}" in shown and "nothing was trained" not in shown
    assert main(["doctor", *command]) == 1
    assert f"damage      {missing} [--repair mends it]" in capsys.readouterr().out
    assert main(["doctor", *command, "--repair"]) == 0
    manifest = read_manifest(small.store)
    assert manifest is not None and manifest.adapter_versions == {"tone": 2, "style": 2}
    assert manifest.source_path == str(small.document)


@pytest.mark.parametrize("file", ["gate.safetensors", "gate_config.json", "tui_gate.json"])
def test_a_damaged_gate_is_said(small: SmallStore, file: str) -> None:
    path = small.store.gate_dir / file
    data = path.read_bytes()
    path.write_bytes(data.replace(b"second", b"secomd").replace(b"0.01", b"0.02"))
    assert path.read_bytes() != data
    config = read_gate_config(small.store)
    assert config is not None
    if file == "tui_gate.json":  # nor may the name of its own hash be damaged
        path.write_bytes(data.replace(b"record_sha256", b"recprd_sha256"))
        with pytest.raises(GateFileError, match="is not the file that was written"):
            check_gate_files(small.store, config)
    with pytest.raises(GateFileError, match=rf"{file} is not the file that was written.*train the gate again"):
        check_gate_files(small.store, config)
    small.gate("third", str)
    assert (read_gate_record(small.store) or {})["base_id"] == "third"


def test_a_damaged_database_keeps_its_readable_rows_when_repaired(small: SmallStore) -> None:
    path = small.store.metrics_path
    before = [row["run_id"] for row in MetricsReader(small.store).runs(None)]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'gate_events'").fetchone()
    with path.open("r+b") as handle:
        handle.seek((page - 1) * 4096)
        handle.write(b"\xff" * 4096)
    assert MetricsReader(small.store).problems()
    repair(small.store, NAMES, "tiny")
    assert MetricsReader(small.store).problems() == []
    assert [row["run_id"] for row in MetricsReader(small.store).runs(None)] == before
    assert list(small.store.root.glob("metrics.damaged-*.sqlite"))


def test_what_killed_trainings_leave_is_cleared_by_the_next(small: SmallStore) -> None:
    ended = run_child(lambda told: small.train("killed", told, random.Random(0)), kill_at=60)
    assert ended.code == KILLED
    assert small.litter()
    scratch = small.store.adapters_dir / f"_gate.tmp.{dead_pid()}.0123abcd"
    scratch.mkdir()
    former = small.store.former_gates_dir / "run000001"
    former.mkdir(parents=True)
    (former / f"gate_config.json.tmp.{dead_pid()}.0123abcd").touch()
    queued = small.store.queue_dir / f"job-0001.receipt.tmp.{dead_pid()}.0123abcd"
    queued.parent.mkdir()
    queued.touch()
    os.utime(queued, (0, 0))
    with run_lock(small.store):
        pass
    assert small.litter() == [] and not small.mixed()


def test_what_may_be_wanted_is_not_cleared(small: SmallStore) -> None:
    kept = new_version(small.store, "tone")
    newer = new_version(small.store, "style")
    for version in (kept, newer):
        (version.path / "adapter_config.json").write_text("{}")
        seal_version(version, "this")
        of_a_dead_process(version)
    mark_kept(kept, claim="this")
    foreign = small.store.adapters_dir / "tone" / "versions" / "v0009"
    foreign.mkdir()
    (foreign / "adapter_model.safetensors").write_bytes(b"another tool is training")
    for _ in range(2):
        small.train("later", str, random.Random(0))
    assert kept.path.is_dir() and foreign.is_dir()
    assert not newer.path.exists()  # overtaken by a later training of the same adapter
    texts = [one.text for one in examine(small.store, NAMES, "tiny") if one.severity == "note"]
    assert any("v0003 was trained and is not in force" in text for text in texts)


def of_a_dead_process(version: AdapterVersion) -> None:
    rewrite_record(version.path, pid=dead_pid())


@contextlib.contextmanager
def given_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is made in the block is of an earlier process that had the id of this one."""
    with monkeypatch.context() as earlier:
        mark = f"{process_mark(os.getpid())}0"
        for module in ("dlm_tui.files", "dlm_tui.store.metrics_writer"):
            earlier.setattr(f"{module}.process_mark", lambda pid: mark)
        yield


def cached(small: SmallStore, pid: int, minutes: int) -> Path:
    """Scratch of a process in the cache, untouched for some minutes."""
    path = small.store.cache_dir / f"tui_gate_embeddings/a.npy.tmp.{pid}.0123abcd"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - 60 * minutes,) * 2)
    return path


@pytest.mark.parametrize(("minutes", "stays"), [(59, True), (61, False)])
def test_scratch_in_the_cache_goes_after_an_hour(small: SmallStore, minutes: int, stays: bool) -> None:
    """Another host may share the folder, and its process ids say nothing here."""
    path = cached(small, dead_pid(), minutes)
    with store_lock(small.store):
        assert path.exists() is stays


def test_scratch_of_a_living_process_stays(small: SmallStore) -> None:
    path = cached(small, os.getpid(), 61)
    with store_lock(small.store):
        assert path.exists()


def test_what_a_dead_process_left_goes_though_its_id_lives_again(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = small.store.adapters_dir / "tone/versions/v0009"
    begun.mkdir()
    small.store.cache_dir.mkdir(exist_ok=True)
    with MetricsWriter(small.store) as metrics:
        with given_anew(monkeypatch):
            path, unpacked, record = (
                scratch_sibling(target)
                for target in (small.store.cache_dir / "a.npy", small.store.root, begun / "tui_version.json")
            )
            run = metrics.begin_run("sft", 0)
        unpacked.mkdir()
        for file in (path, record):
            file.touch()
        os.utime(path, (time.time() - 3660,) * 2)
        assert dead_runs(small.store) == [run]
        with run_lock(small.store):
            assert dead_runs(small.store) == []
    assert not path.exists() and not unpacked.exists() and not begun.exists()


def test_the_clock_ends_no_process(small: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set forward since: by its times this process began long after what it is writing."""
    monkeypatch.setattr("dlm_tui.platform.process_started", lambda pid: time.time() + 3600.0)
    unpacked = scratch_sibling(small.store.root)
    unpacked.mkdir()
    with MetricsWriter(small.store) as metrics:
        metrics.begin_run("sft", 0)
        assert dead_runs(small.store) == []
    with store_lock(small.store):
        pass
    assert unpacked.is_dir()


def test_of_what_says_nothing_of_its_process_one_of_that_id_may_be_it(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of earlier versions, and of containers that share the folder and give out the same ids."""
    old = small.store.root.with_name(f"{small.store.root.name}.tmp.{os.getpid()}.0123abcd")
    with given_anew(monkeypatch), monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another container")
        other = scratch_sibling(small.store.root)
    with MetricsWriter(small.store) as metrics, monkeypatch.context() as earlier:
        earlier.setattr("dlm_tui.store.metrics_writer.process_mark", lambda pid: None)
        metrics.begin_run("sft", 0)
        assert dead_runs(small.store) == []
    for folder in (old, other):
        folder.mkdir()
    with store_lock(small.store):
        pass
    assert old.is_dir() and other.is_dir()


def test_a_run_of_a_living_process_goes_on(small: SmallStore) -> None:
    with MetricsWriter(small.store) as metrics:
        metrics.begin_run("sft", 0)
        assert dead_runs(small.store) == []


def finished(small: SmallStore, claim: str | None = None) -> AdapterVersion:
    """A version of `tone` that nothing points to: a training's with a claim, else one from elsewhere."""
    version = new_version(small.store, "tone")
    (version.path / "adapter_config.json").write_text("{}")
    (version.path / "adapter_model.safetensors").write_bytes(tensor_bytes(PAIR))
    seal_version(version, claim)
    return version


def change_a_digit(version: AdapterVersion) -> None:
    """Of the hash that the weights of the version should have."""
    path = version.path / "tui_version.json"
    digit = json.loads(path.read_bytes())["files"]["adapter_model.safetensors"]["sha256"][:8]
    other = ("0" if digit[0] != "0" else "1") + digit[1:]
    path.write_bytes(path.read_bytes().replace(digit.encode(), other.encode()))


def test_a_damaged_record_is_named_and_costs_no_version(small: SmallStore) -> None:
    made = finished(small)
    use_versions(small.store, {"tone": made.version})
    change_a_digit(made)
    record = made.path / "tui_version.json"
    with pytest.raises(VersionDamaged, match=rf"{record} is not .* own files are whole .* --repair` mends it\.$"):
        verify_version(small.store, made)
    (text,) = damages(small)
    assert text.startswith(f"{record} is not the file that was written; the adapter's own files are whole")
    repair(small.store, NAMES, "tiny")
    assert current_version(small.store, "tone") == made and damages(small) == []
    verify_version(small.store, made)
    use_versions(small.store, {"tone": 2})
    small.train("later", str, random.Random(0))
    assert made.version not in [one.version for one in prunable(small.store, ["tone"])], "it may be kept"


def test_a_damaged_record_of_a_version_that_is_not_in_force_is_set_aside(small: SmallStore) -> None:
    made = finished(small)
    mark_kept(made)
    change_a_digit(made)
    small.train("later", str, random.Random(0))
    assert made.version not in {one.version for one in prunable(small.store, ["tone"])}
    (found,) = [one for one in examine(small.store, NAMES, "tiny") if str(made.path) in one.text]
    assert found.severity == "note" and "own files are whole" in found.text and found.mend is not None
    repair(small.store, NAMES, "tiny")
    (found,) = [one for one in examine(small.store, NAMES, "tiny") if str(made.path) in one.text]
    assert "`dlm-tui adapter prune` leaves its version" in found.text
    use_versions(small.store, {"tone": made.version})


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_damaged_version_is_not_said_to_be_of_use(small: SmallStore, file: str, kept: bool) -> None:
    made = finished(small)
    (made.path / "tokenizer.json").write_text("{}")
    begin_record(made)
    seal_version(made)
    if kept:
        mark_kept(made)
    assert [one.text for one in examine(small.store, NAMES)] == [use_of(made)]
    flip(made.path / file, -1)
    texts = [one.text for one in examine(small.store, NAMES)]
    wrong = f"{made.path / file} is not the file that was written (its hash differs); it is not"
    if file == "tokenizer.json":
        assert texts == [f"{wrong} used when the adapter is applied.", use_of(made)]
        use_versions(small.store, {"tone": made.version})
    else:
        drop = f"`dlm-tui adapter drop DOC tone --version {made.version}` deletes it."
        assert texts == [f"{wrong} in force and cannot be put there: {drop}"]
        with pytest.raises(VersionDamaged):
            use_versions(small.store, {"tone": made.version})
        drop_version(small.store, "tone", made.version)
        assert examine(small.store, NAMES) == []


def test_what_repair_went_back_from_is_not_said_to_be_of_use(small: SmallStore) -> None:
    made = finished(small)
    use_versions(small.store, {"tone": made.version})
    flip(made.path / "adapter_model.safetensors", -1)
    repair(small.store, NAMES, "tiny")
    (found,) = examine(small.store, NAMES, "tiny")
    assert found.severity == "note" and "cannot be put there" in found.text


def test_a_version_that_a_training_holds_is_not_said_to_be_of_use(small: SmallStore) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        made = finished(small, "its training")
        rewrite_record(made.path, pid=other.pid, started=process_mark(other.pid))
        assert examine(small.store, NAMES, "tiny") == []
        other.communicate(b"\n")
    assert [one.text for one in examine(small.store, NAMES)] == [use_of(made)]


def use_of(version: AdapterVersion) -> str:
    use = f"`dlm-tui adapter use DOC {version.name} --version {version.version}` puts it there."
    return f"{version.path} was trained and is not in force: {use}"


def test_a_record_of_an_earlier_version_has_no_hash_of_itself(small: SmallStore) -> None:
    made = finished(small)
    path = made.path / "tui_version.json"
    record = json.loads(path.read_bytes())
    del record["record_sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(VersionDamaged, match=r"tui_version\.json is not the file that was written"):
        verify_version(small.store, made)
    path.write_text(json.dumps({**record, "format": 1}))
    verify_version(small.store, made)
    flip(made.path / "adapter_model.safetensors", -1)
    with pytest.raises(VersionDamaged, match="its hash differs"):
        verify_version(small.store, made)


def test_a_mark_says_nothing_of_files_that_changed_since_they_were_written(small: SmallStore) -> None:
    made = finished(small)
    mark_kept(made)
    flip(made.path / "adapter_model.safetensors", -1)
    keep_version(small.store, "tone", made.version, kept=False)
    with pytest.raises(VersionDamaged, match="its hash differs"):
        verify_version(small.store, made)


@pytest.mark.parametrize("back", [True, False])
def test_versions_that_no_training_made_stay_when_they_are_overtaken(small: SmallStore, back: bool) -> None:
    """An import leaves no training in the manifest."""
    imported = finished(small)
    use_versions(small.store, {"tone": imported.version}, "import")
    if back:
        use_versions(small.store, {"tone": 2}, "back")
    of_a_dead_process(imported)
    for _ in range(2):
        small.train("later", str, random.Random(0))
    assert not [one for one in examine(small.store, NAMES, "tiny") if str(imported.path) in one.text]
    repair(small.store, NAMES, "tiny")
    assert imported.path.is_dir()


@pytest.mark.parametrize("want", ["use", "keep"])
def test_what_a_killed_training_finished_is_a_persons_once_it_was_wanted(small: SmallStore, want: str) -> None:
    made = finished(small, "this")
    of_a_dead_process(made)
    if want == "use":
        use_versions(small.store, {"tone": made.version})
        use_versions(small.store, {"tone": 2})
    else:
        keep_version(small.store, "tone", made.version)
    of_a_dead_process(made)
    for _ in range(2):
        small.train("later", str, random.Random(0))
    assert made.path.is_dir()


@pytest.mark.parametrize(("claim", "stays"), [("this", False), ("other", True), (None, True)])
def test_a_training_that_goes_on_makes_only_its_own_version_again(
    small: SmallStore, claim: str | None, stays: bool
) -> None:
    made = finished(small, claim)
    of_a_dead_process(made)
    state = CheckpointState(fingerprint="this", run_id=9, phase="sft", step=1, total=1, at="")
    with new_checkpoint(checkpoint_folder(small.store, "tone"), FINISHED, state):
        pass
    clear_earlier_try(small.store, "tone", "this")
    assert made.path.is_dir() is stays


def left_of_a_training(small: SmallStore) -> Path:
    """`facts` waits for `tone`, which has two checkpoints."""
    root = checkpoint_folder(small.store, "tone").parent
    state = CheckpointState(fingerprint="this", run_id=9, phase="sft", step=2, total=4, at="")
    for adapter, name, before in (
        ("facts", FINISHED, None),
        ("tone", "checkpoint-000001", None),
        ("tone", "checkpoint-000002", root / "tone/checkpoint-000001"),
    ):
        with new_checkpoint(root / adapter, name, state, before) as folder:
            (folder / "weights.safetensors").write_bytes(b"weights")
    return root


def said_of(small: SmallStore, root: Path) -> list[tuple[str, str]]:
    found = examine(small.store, NAMES, "tiny")
    return [(one.severity, one.text) for one in found if str(root) in one.text or "interrupted" in one.text]


def test_doctor_says_how_an_interrupted_training_goes_on(small: SmallStore) -> None:
    root = left_of_a_training(small)
    words = "A training was interrupted (tone at step 2 of 4): `dlm-tui train DOC --resume` goes on with it."
    assert said_of(small, root) == [("note", words)]
    code = (
        "import sys; from pathlib import Path; from dlm_tui.store import Store, run_lock\n"
        "with run_lock(Store(Path(sys.argv[1]), sys.argv[2])): print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(small.store.home), small.store.dlm_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as training:
        assert training.stdout is not None and training.stdout.readline()
        assert said_of(small, root) == [], "it is not interrupted"
        training.communicate(b"\n")


@pytest.mark.parametrize(
    ("place", "harm", "said"),
    [
        ("tone/checkpoint-000002/weights.safetensors", flip, "its hash differs); tone goes on from checkpoint-000001."),
        ("tone/checkpoint-000002/weights.safetensors", Path.unlink, "is missing; tone goes on from checkpoint-000001."),
        ("facts/finished/weights.safetensors", flip, "its hash differs); facts is trained from the beginning."),
        ("tone", as_a_file, "tone is no folder; tone is trained from the beginning."),
        ("tone/checkpoint-000002", as_a_file, "is no folder; tone goes on from checkpoint-000001."),
    ],
)
def test_doctor_names_a_damaged_checkpoint_and_clears_it(
    small: SmallStore, place: str, harm: Callable[[Path], None], said: str
) -> None:
    root = left_of_a_training(small)
    harm(root / place)
    (damage,) = [text for severity, text in said_of(small, root) if severity == "damage"]
    assert damage.startswith(str(root / place)) and damage.endswith(said)
    assert damage in repair(small.store, NAMES, "tiny")
    assert [severity for severity, _ in said_of(small, root)] == ["note"], "what is left is gone on with"


@pytest.mark.parametrize("harm", ["states", "root"])
def test_doctor_clears_checkpoints_that_nobody_can_go_on_from(small: SmallStore, harm: str) -> None:
    root = left_of_a_training(small)
    if harm == "root":
        as_a_file(root)
    else:
        for state in root.rglob("state.json"):
            state.write_bytes(b"")
    said = said_of(small, root)
    assert len(said) == (1 if harm == "root" else 3)
    assert all(text.endswith("; there is nothing to go on from: train without --resume.") for _, text in said)
    repair(small.store, NAMES, "tiny")
    assert said_of(small, root) == []


def test_damaged_checkpoints_are_nothing_to_a_pack(small: SmallStore) -> None:
    flip(left_of_a_training(small) / "tone/checkpoint-000002/weights.safetensors")
    write_pack(small.document, small.store)


def test_doctor_has_a_version_made_again_by_its_training_while_that_can_go_on(small: SmallStore) -> None:
    root = left_of_a_training(small)
    made = finished(small, "this")
    of_a_dead_process(made)
    assert not [one for one in examine(small.store, NAMES, "tiny") if str(made.path) in one.text]
    shutil.rmtree(root)
    (said,) = [one.text for one in examine(small.store, NAMES, "tiny") if str(made.path) in one.text]
    assert said.endswith("`dlm-tui adapter use DOC tone --version 3` puts it there.")


def test_a_version_that_is_put_in_force_first_of_all_leaves_a_whole_store(small: SmallStore) -> None:
    shutil.rmtree(small.store.root)
    made = finished(small)
    command = ["adapter", "use", str(small.document), made.name, "--version", "1", "--home", str(small.store.home)]
    assert main(command) == 0
    document = load(small.document)
    assert examine(small.store, document.adapter_names, document.base_model) == []
    manifest = read_manifest(small.store)
    assert manifest is not None and manifest.adapter_versions == {"tone": 1}


def test_what_killed_commands_leave_is_said_and_cleared(small: SmallStore) -> None:
    """A version that was being dropped, and a store that was being unpacked; that of another store is not looked at."""
    dropped = small.store.adapters_dir / f"tone/versions/v0001.tmp.{dead_pid()}.0123abcd"
    own = small.store.root.name
    unpacked, living, other = (
        small.store.root.with_name(f"{name}.tmp.{pid}.0123abcd")
        for name, pid in ((own, dead_pid()), (own, os.getpid()), ("01X", dead_pid()))
    )
    for folder in (dropped, unpacked, living, other):
        folder.mkdir()
    said = {one.text for one in examine(small.store, NAMES, "tiny") if one.severity == "litter"}
    assert said == {f"{path} is left of a process that ended." for path in (dropped, unpacked)}
    with store_lock(small.store):
        pass
    assert [path.exists() for path in (dropped, unpacked, living, other)] == [False, False, True, True]


def test_scratch_of_the_line_and_of_packs_is_cleared_by_the_next_that_writes_them(small: SmallStore) -> None:
    pack = small.document.with_name("d.dlm.pack")
    queue = QueueFile(small.store)
    queue.path.parent.mkdir()
    left = [path.with_name(f"{path.name}.tmp.{dead_pid()}.0123abcd") for path in (queue.path, pack)]
    for path in left:
        path.touch()
    with queue.change():
        pass
    write_pack(small.document, small.store)
    assert [path.exists() for path in left] == [False, False]


def test_one_training_at_a_time(small: SmallStore) -> None:
    with run_lock(small.store):
        ended = run_child(lambda told: small.train("other", told, random.Random(0)))
    assert ended.code == 1 and "another run is training this document" in ended.error


@pytest.mark.parametrize("content", [b"who knows", b"", b"1\nanother-host.example\n9.0\n"])
def test_a_lock_that_cannot_be_judged_keeps_nobody_waiting(small: SmallStore, content: bytes) -> None:
    small.store.lock_path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises((LockStale, LockHeld)), store_lock(small.store, 60.0):
        pytest.fail("stolen")
    assert time.monotonic() - began < 40.0, "it waited for the lock"
    with pytest.raises((LockStale, LockHeld)), run_lock(small.store):
        pytest.fail("stolen")
    repair(small.store, NAMES, "tiny")
    with run_lock(small.store):
        pass


def test_exports_of_the_same_second_have_a_row_each(small: SmallStore) -> None:
    with MetricsWriter(small.store) as metrics:
        for number in range(5):
            metrics.record_export(target="peft", ollama_name=str(number))
    with sqlite3.connect(small.store.metrics_path) as connection:
        rows = connection.execute("SELECT ollama_name FROM exports ORDER BY exported_at").fetchall()
    assert [name for (name,) in rows][-5:] == [str(number) for number in range(5)]
    assert len(MetricsReader(small.store).exports(None)) == len(rows)


def test_doctor_looks_through_a_store_and_mends_it(small: SmallStore, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", str(small.document), "--home", str(small.store.home)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    flip(adapter_versions(small.store, NAMES)["style"].path / "adapter_model.safetensors")
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "damage" in out and "version 1 is the last good one. [--repair mends it]" in out
    assert main([*command, "--repair"]) == 0
    assert "mended" in capsys.readouterr().out
    version = current_version(small.store, "style")
    assert version is not None and version.version == 1
    assert main(["doctor", "--repair"]) == 2


def test_what_is_mended_no_longer_says_what_would_mend_it(
    small: SmallStore, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(small.document), "--home", str(small.store.home)]
    (small.store.adapters_dir / "tone/current.txt").write_text("adapter/tone/versions/v0001\n")
    with pytest.raises(PointerError, match=r"`dlm-tui doctor DOC --repair` mends it\.$"):
        adapter_versions(small.store, NAMES)
    assert main([*command, "--repair"]) == 0
    out = capsys.readouterr().out
    assert "mended" in out and "the manifest says 2." in out and "--repair" not in out


@pytest.mark.parametrize("file", ["adapter/tui_history.json", "queue/queue.json"])
def test_what_only_a_person_wrote_is_looked_at_and_set_aside(
    small: SmallStore, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(small.document), "--home", str(small.store.home)]
    path = small.store.root / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'{"kept": 3')
    assert main(command) == 1
    assert re.search(rf"damage +{re.escape(str(path))} is .*\[--repair mends it\]", capsys.readouterr().out)
    marks = file.endswith("tui_history.json")
    assert main([*command, "--repair"]) == int(marks), "which versions are kept only a person knows"
    aside = path.with_name(f"{path.stem}.damaged.json")
    assert aside.read_bytes() == b'{"kept": 3'
    said = capsys.readouterr().out
    assert f"{'damage' if marks else 'note':<11} {aside} was damaged and set aside" in said
    assert ("sound" in said) is not marks
    aside.unlink()
    assert main(command) == 0


def test_a_damaged_history_is_kept_when_the_next_mark_is_written(
    small: SmallStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = small.store.adapters_dir / "tui_history.json"
    path.write_bytes(b'{"kept": {"tone": [1]}, "changes"')
    keep_version(small.store, "style", 1)
    assert "mark anew what is to stay" in caplog.text
    assert path.with_name("tui_history.damaged.json").read_bytes() == b'{"kept": {"tone": [1]}, "changes"'
    assert "tui_history.damaged.json" in caplog.text
    assert json.loads(path.read_bytes())["kept"] == {"style": [1]}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path), os.mkfifo])
@pytest.mark.parametrize("name", ["manifest.json", "dlm.lock", "adapter/tui_history.json"])
def test_what_is_no_file_in_the_place_of_one_is_never_waited_for_and_set_aside(
    small: SmallStore, name: str, make: Callable[[Path], None]
) -> None:
    place = small.store.root / name
    place.unlink(missing_ok=True)
    make(place)
    assert any(str(place) in one.text and one.mend for one in examine(small.store, NAMES, "tiny"))
    repair(small.store, NAMES, "tiny")
    aside = place.with_name(f"{place.stem}.damaged{place.suffix}")
    assert os.path.lexists(aside)
    assert all(str(aside) in text and "mark anew" in text for text in damages(small))


@pytest.mark.parametrize("file", ["gate.safetensors", "gate_config.json", "tui_gate.json"])
def test_a_damaged_former_gate_is_noted(small: SmallStore, file: str) -> None:
    small.gate("third", str)
    assert examine(small.store, NAMES, "tiny") == []
    (folder,) = small.store.former_gates_dir.iterdir()
    flip(folder / file, 12)
    (finding,) = examine(small.store, NAMES, "tiny")
    assert finding.severity == "note" and str(folder) in finding.text
    assert finding.text.endswith("; that gate is not in force.") and "train" not in finding.text
    (folder / "gate_config.json").unlink()
    (finding,) = examine(small.store, NAMES, "tiny")
    assert finding.text == f"{folder / 'gate_config.json'} is missing; that gate is not in force."


def test_repair_waits_for_nobody_who_trains(small: SmallStore) -> None:
    with store_lock(small.store), pytest.raises(StoreError):
        ended = run_child(lambda told: [told(text) for text in repair(small.store, NAMES, "tiny")] and None)
        raise StoreError(ended.error)
    update_manifest(small.store, lambda manifest: None)


def test_folders_of_killed_processes_in_the_temporary_directory_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    old, young = (tmp_path / f"dlm-tui-train.tmp.{dead_pid()}.0123abc{number}" for number in range(2))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1.0, 1.0))
    with temporary_folder("train") as folder:
        (folder / "checkpoint").write_text("x")
        assert not old.exists() and young.exists()
    assert not folder.exists()


def damages(small: SmallStore) -> list[str]:
    return [one.text for one in examine(small.store, NAMES, "tiny") if one.severity == "damage"]


def test_a_database_that_has_lost_what_the_manifest_lists_is_damage(small: SmallStore) -> None:
    before = {row["run_id"]: row["adapter_version"] for row in MetricsReader(small.store).runs(None)}
    small.store.metrics_path.write_bytes(b"")
    assert damages(small) == [f"{small.store.metrics_path} has lost 4 runs of manifest.json: 1, 2, 3, 4."]
    repair(small.store, NAMES, "tiny")
    assert damages(small) == []
    rows = {row["run_id"]: row["adapter_version"] for row in MetricsReader(small.store).runs(None)}
    assert rows == {run: before[run] for run in (1, 2, 3, 4)}
    assert MetricsReader(small.store).run_extras(2)["adapter_name"] == "style"


def in_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


SPOILT: list[Callable[[Path], object]] = [flip, lambda path: path.write_bytes(b""), in_a_circle, Path.unlink]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_file_that_applying_does_not_need_is_damage_and_can_be_done_without(
    small: SmallStore, spoil: Callable[[Path], object]
) -> None:
    version = new_version(small.store, "tone")
    (version.path / "adapter_config.json").write_text("{}")
    (version.path / "adapter_model.safetensors").write_bytes(tensor_bytes(PAIR))
    (version.path / "tui_base.json").write_text('{"base_id": "tiny"}')
    use_versions(small.store, {"tone": version.version})
    spoil(version.path / "tui_base.json")
    (found,) = damages(small)
    assert found.startswith(str(version.path / "tui_base.json")) and found.endswith(
        "is not used when the adapter is applied."
    )
    repair(small.store, NAMES, "tiny")
    assert damages(small) == []
    now = current_version(small.store, "tone")
    assert now is not None and now.version == version.version, "nothing else of it is damaged"


def as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("adapter/tone/versions/v0002/adapter_model.safetensors", flip),
        ("adapter/_gate/gate.safetensors", flip),
        ("metrics.sqlite", lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)),
        ("metrics.sqlite", lambda path: path.write_bytes(b"")),
        ("metrics.sqlite", as_a_folder),
        ("metrics.sqlite", lambda path: (path.unlink(), os.mkfifo(path))),
    ],
)
def test_a_damaged_store_takes_no_good_packs_place(
    small: SmallStore, name: str, spoil: Callable[[Path], object]
) -> None:
    good = write_pack(small.document, small.store).path
    before = good.read_bytes()
    spoil(small.store.root / name)
    with pytest.raises(PackError, match=rf"nothing was packed: .*{name} .*`dlm-tui doctor DOC`"):
        write_pack(small.document, small.store, overwrite=True)
    assert good.read_bytes() == before and list(small.root.glob("*.pack*")) == [good]


def test_a_store_where_nobody_can_write_is_packed_all_the_same(small: SmallStore) -> None:
    remove(small.store.cache_dir)
    home = (small.store.root, small.store.root.parent)
    for folder in home:
        folder.chmod(0o555)
    try:
        packed = write_pack(small.document, small.store)
    finally:
        for folder in home:
            folder.chmod(0o755)
    assert packed.path.is_file() and not small.store.cache_dir.exists(), "no lock was made"


def test_unpacking_says_what_was_damaged_when_it_was_packed(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions packed it."""
    flip(small.store.gate_dir / "gate.safetensors")
    monkeypatch.setattr("dlm_tui.store.packs.writing.examine", lambda *_, **__: [])
    pack = write_pack(small.document, small.store).path
    assert main(["unpack", str(pack), "--home", str(small.root / "other"), "--out", str(small.root / "out")]) == 0
    assert re.search(r"damaged when it was packed: .*gate\.safetensors .*doctor", capsys.readouterr().err)


@pytest.mark.parametrize(("name", "mendable"), [("metrics.sqlite", True), ("adapter/_gate/tui_gate.json", False)])
def test_one_damage_is_said_once(
    small: SmallStore, name: str, mendable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = small.store.root / name
    as_a_folder(path)
    (said,) = damages(small)
    assert said.startswith(str(path))
    if mendable:
        mended = repair(small.store, NAMES, "tiny")
        assert mended[0].startswith(str(path)) and "move it away" not in "".join(mended)
        assert damages(small) == [] and caplog.text == ""


def test_show_says_what_of_a_version_cannot_be_told(small: SmallStore, capsys: pytest.CaptureFixture[str]) -> None:
    version = finished(small)
    (version.path / "tui_training.json").write_text("{}")
    begin_record(version)
    seal_version(version)
    use_versions(small.store, {"tone": version.version})
    (version.path / "tui_training.json").write_bytes(b"")
    assert main(["show", str(small.document), "--home", str(small.store.home)]) == 0
    assert re.search(r"problem: .*tui_training\.json is not the file that was written", capsys.readouterr().out)
