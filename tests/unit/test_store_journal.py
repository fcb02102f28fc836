"""Several files change together or not at all, whoever is killed when."""

from __future__ import annotations

import json
from pathlib import Path

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
