"""Who may read a file while it is written anew, and whose it is afterwards."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dlm_tui.document import replacing
from dlm_tui.document.replacing import replace_seen
from dlm_tui.files import write_atomic


def test_what_only_its_owner_may_read_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private"
    path.write_bytes(b"old")
    path.chmod(0o600)
    modes: list[int] = []

    def flushed(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr("os.fsync", flushed)
    opened = os.open
    monkeypatch.setattr("os.open", lambda *given, **named: _noted(modes, opened(*given, **named)))
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert modes and set(modes[:2]) == {0o600}


def _noted(modes: list[int], descriptor: int) -> int:
    modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
    return descriptor


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "ours", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "labelled"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.tag", b"blue")
    except (AttributeError, OSError) as error:
        pytest.skip(f"there are no extended attributes here: {error}")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.getxattr(path, "user.tag") == b"blue"


def test_a_document_of_somebody_else_stays_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "theirs.dlm"
    path.write_bytes(b"old")
    before = path.stat().st_ino
    assert replace_seen(path, b"old", b"ours") is None and path.stat().st_ino != before
    before = path.stat().st_ino
    monkeypatch.setattr(replacing, "may_give_away", lambda target: False)
    assert replace_seen(path, b"ours", b"new one") is None
    assert path.read_bytes() == b"new one" and path.stat().st_ino == before
