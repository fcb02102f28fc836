"""What the system raises becomes a sentence with the place and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dlm_tui.document.side_file import SideFileError, set_side_value
from dlm_tui.files import scratch_sibling, write_atomic
from dlm_tui.store import Store, StoreError, new_version, store_lock
from dlm_tui.system_errors import database_reason, error_line, naming, system_sentence

_Usage = namedtuple("_Usage", "total used free")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "/home/a"), ("/home/a", "no space", "free some")),
        (PermissionError(errno.EACCES, "x", "/lock"), ("/lock", "permissions")),
        (OSError(errno.EROFS, "x", "/ro"), ("/ro", "read-only", "--home")),
        (OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/y"), ("/y", os.strerror(errno.EXDEV))),
        (OSError(errno.ENOSPC, "x"), ("a file", "no space")),
        (shutil.Error([("/a", "/b/c", "[Errno 28] No space left on device: '/b/c'")]), ("/b/c", "no space")),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), ("no space",)),
        (SafetensorError("Error while deserializing header: header too large"), ("header too large",)),
        (Exception("No space left on device (os error 28)"), ("no space",)),
        (MemoryError(), ("memory",)),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), ("memory",)),
        (RecursionError("maximum recursion depth exceeded"), ("nested too deeply",)),
        (sqlite3.DatabaseError("database disk image is malformed"), ("malformed", "doctor")),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), ("UTF-8",)),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ("0xff",)),
    ],
)
def test_a_sentence_names_place_and_remedy(error: Exception, words: tuple[str, ...]) -> None:
    sentence = system_sentence(error)
    assert sentence is not None and "\n" not in sentence
    for word in words:
        assert word in sentence


def test_other_errors_are_left_to_their_own_words() -> None:
    assert system_sentence(ValueError("no")) is None
    assert system_sentence(RuntimeError("shapes differ")) is None
    assert error_line(ValueError("one\ntwo")) == "ValueError: one"
    assert error_line(KeyError()) == "KeyError"


def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"gate\.json") as caught:
        write_atomic(tmp_path / "gate.json", b"{}")
    expected = f"{tmp_path}/gate.json: no space is left on its disk; free some and do it again"
    assert system_sentence(caught.value) == expected
    assert not list(tmp_path.iterdir())


def test_what_is_written_beside_a_file_is_called_by_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / ("n" * 240), tmp_path / "file" / "x.csv"):
        with pytest.raises(OSError) as caught:
            write_atomic(target, b"x")
        assert str(system_sentence(caught.value)).startswith(
            f"{target if target.parent == tmp_path else target.parent}: "
        )
    inside = OSError(errno.ENOSPC, "x", f"{scratch_sibling(tmp_path / 'export')}/model.gguf")
    assert str(system_sentence(inside)).startswith(f"{tmp_path}/export/model.gguf: no space")


def test_libraries_errors_get_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, naming(tmp_path):
        save_file({"a": torch.zeros(2)}, tmp_path / "missing" / "a.safetensors")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path))
    with pytest.raises(OSError) as caught, naming(tmp_path):
        Path("/does/not/exist").read_bytes()
    assert caught.value.filename == "/does/not/exist"
    with pytest.raises(ValueError), naming(tmp_path):
        raise ValueError


def test_a_database_on_a_full_disk_says_which_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    database = tmp_path / "metrics.sqlite"
    assert database_reason(error, database) == "disk I/O error"
    for full in (tmp_path, Path(tempfile.gettempdir())):
        used = dict.fromkeys((tmp_path, Path(tempfile.gettempdir())), (1, 1, 1 << 30)) | {full: (1, 1, 4096)}
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, used=used: _Usage(*used[folder]))
        assert database_reason(error, database).startswith(f"no space is left on the disk of {full};")
    assert database_reason(sqlite3.DatabaseError("malformed"), database) == "malformed"


_WITHOUT_REMEDY = {
    # the home itself; errors that are raised anew; a missing document, whose nearest one is named; sources, which are
    # skipped; ports; what the store says in its own words
    "dlm_tui/system_errors.py",
    "dlm_tui/small_files.py",
    "dlm_tui/document/replacing.py",
    "dlm_tui/document/in_place.py",
    "dlm_tui/output.py",
    "dlm_tui/training/cluster_node.py",
    "dlm_tui/document/document.py",
    "dlm_tui/document/sources/reading.py",
    "dlm_tui/document/sources/roots.py",
    "dlm_tui/document/sources/scan.py",
    "dlm_tui/document/sources/walk.py",
    "dlm_tui/serving/server.py",
    "dlm_tui/app/web.py",
    "dlm_tui/store/checkpoints.py",
    "dlm_tui/store/journal.py",
    "dlm_tui/store/sqlite.py",
    "dlm_tui/store/version_record.py",
}


def test_every_error_of_the_system_is_said_with_its_remedy() -> None:
    program = Path(__file__).resolve().parents[2] / "dlm_tui"
    bare = {path for path in program.rglob("*.py") if "strerror" in path.read_text(encoding="utf-8")}
    assert {path.relative_to(program.parent).as_posix() for path in bare} - _WITHOUT_REMEDY == set()


def test_a_full_disk_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path, "01J9ZK4M2N6P8Q0R1S3T5V7W9X").create()
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreError, match=r"A new version cannot be created .* free some and do it again"):
        new_version(store, "default")
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=r"\.lock cannot be created: .* free some and do it again"), store_lock(store):
        pass
    monkeypatch.setattr("dlm_tui.document.side_file.write_through_links", full)
    with pytest.raises(SideFileError, match=r"cannot write .*/n\.dlm\.tui\.toml: .* free some and do it again"):
        set_side_value(tmp_path / "n.dlm.tui.toml", "quantize", "nf4")
