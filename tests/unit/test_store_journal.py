"""Several files change together or not at all, whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.store import Store, StoreError, change, store_lock
from dlm_tui.store.journal import NAME, pending
from dlm_tui.store.settled import current_path

ID = "01JTESTTESTTESTTESTTESTTES"


class Killed(BaseException):
    """Nothing that the program catches."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "home", ID).create()
    for name in ("one", "two"):
        (store.root / name).write_text(f"old {name}")
    return store


def cut_short(store: Store, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A change of two files and a folder whose process dies after `after` of them were put in place."""
    from dlm_tui.store import journal

    apply, done = journal._apply, []

    def dying(entry: object) -> None:
        if len(done) == after:
            raise Killed
        done.append(entry)
        apply(entry)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(journal, "_apply", dying)
        with change(store) as together:
            for name in ("one", "two"):
                together.write(store.root / name, f"new {name}".encode())
            folder = store.root / "folder.tmp.1.0123abcd"
            folder.mkdir()
            (folder / "file").write_text("new")
            together.replace_folder(store.root / "folder", folder)


def now(store: Store) -> list[str]:
    files = [store.root / name for name in ("one", "two", "folder/file")]
    return [path.read_text() if path.exists() else "" for path in files]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_change_cut_short_is_finished_by_whoever_comes_next(
    store: Store, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    cut_short(store, monkeypatch, after)
    assert pending(store)
    with store_lock(store):
        assert now(store) == ["new one", "new two", "new"]
    assert not pending(store) and not list(store.root.glob("*.tmp.*"))


def test_a_reader_finishes_it_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(store, monkeypatch, 1)
    assert current_path(store, store.root / "two").read_text() == "new two"
    assert not pending(store)


def test_a_reader_that_may_not_write_sees_all_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlm_tui.store import settled

    cut_short(store, monkeypatch, 1)

    def refuse(*_: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(settled, "store_lock", refuse)
    assert [current_path(store, store.root / name).read_text() for name in ("one", "two")] == ["new one", "new two"]


@pytest.mark.parametrize("after", [0, 1])
def test_a_change_whose_files_are_gone_is_taken_back(store: Store, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    cut_short(store, monkeypatch, after)
    (staged,) = store.root.glob("two.tmp.*")
    staged.write_text("half")
    with store_lock(store):
        assert now(store) == ["old one", "old two", ""]
    assert not pending(store) and not list(store.root.glob("*.tmp.*"))


def test_what_another_tool_wrote_after_a_finished_change_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(store, monkeypatch, 0)
    record = (store.root / NAME).read_bytes()
    with store_lock(store):
        pass
    (store.root / NAME).write_bytes(record)  # killed before the record was removed
    (store.root / "two").write_text("theirs")
    with store_lock(store):
        assert now(store) == ["new one", "theirs", "new"]


def written(store: Store, *, proved: bool = True) -> dict[str, Any]:
    record = json.loads((store.root / NAME).read_bytes())
    if not proved:  # as it was written before it had a hash of itself
        del record["record_sha256"]
    return record


def put(store: Store, record: dict[str, Any]) -> None:
    (store.root / NAME).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("proved", [True, False])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("harm", [lambda text: text[:-3], lambda text: text[:3] + "é" + text[4:]])
def test_a_record_whose_contents_are_cut_is_set_aside(
    store: Store, monkeypatch: pytest.MonkeyPatch, harm: Callable[[str], str], after: int, proved: bool
) -> None:
    cut_short(store, monkeypatch, after)
    record = written(store, proved=proved)
    record["entries"][0]["before"] = harm(record["entries"][0]["before"])
    put(store, record)
    with contextlib.suppress(FileNotFoundError):
        (store.root / record["entries"][-1]["staged"]).rename(store.root / "gone")
    with store_lock(store):
        pass
    assert not pending(store) and (store.root / ".journal.damaged.tui").is_file()


def test_a_record_that_is_not_what_was_written_is_never_written_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cut_short(store, monkeypatch, 1)
    record = written(store)
    before = record["entries"][0]["before"]
    record["entries"][0]["before"] = ("A" if before[0] != "A" else "B") + before[1:]
    put(store, record)
    (staged,) = store.root.glob("two.tmp.*")
    staged.unlink()
    with store_lock(store):
        assert (store.root / "one").read_text() == "new one"
    assert ".journal.damaged.tui" in caplog.text and not pending(store)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_wrong_hash_leaves_no_half_of_a_change(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    cut_short(store, monkeypatch, after)
    record = written(store, proved=False)
    record["entries"][0]["sha256"] = "0" + record["entries"][0]["sha256"][1:]
    put(store, record)
    with store_lock(store):
        assert now(store) == ["old one", "old two", ""]
    assert not pending(store) and not list(store.root.glob("*.tmp.*"))
    if after:
        assert (store.root / "one.damaged").read_text() == "new one" and "one.damaged" in caplog.text


def test_a_change_whose_last_file_is_lost_is_taken_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(store, monkeypatch, 2)
    shutil.rmtree(next(store.root.glob("folder.tmp.*")))
    with store_lock(store):
        assert now(store) == ["old one", "old two", ""]
    assert not pending(store)


def test_what_another_tool_wrote_in_the_middle_stays_and_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cut_short(store, monkeypatch, 1)
    (store.root / "one").write_text("theirs")
    (staged,) = store.root.glob("two.tmp.*")
    staged.unlink()
    with store_lock(store):
        assert now(store) == ["theirs", "old two", ""]
    assert str(store.root / "one") in caplog.text


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "adapter/../../x"])
def test_a_record_that_leads_out_of_the_store_is_set_aside(store: Store, path: str) -> None:
    entry = {"kind": "file", "path": path, "staged": f"{path}.tmp.1.0123abcd", "sha256": "0" * 64, "before": None}
    (store.root / NAME).write_text(json.dumps({"format": 1, "entries": [entry]}))
    with store_lock(store):
        pass
    assert not pending(store)
    assert [path.name for path in store.root.glob(".journal*")] == [".journal.damaged.tui"]


def test_an_error_before_the_record_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError), change(store) as together:
        together.write(store.root / "one", b"new one")
        monkeypatch.setattr("dlm_tui.store.journal.write_atomic", full)
    assert now(store) == ["old one", "old two", ""]
    assert not pending(store) and not list(store.root.glob("*.tmp.*"))
