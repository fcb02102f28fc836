"""A change that is written into a document in place, and cut: the next who reads the document completes it."""

from __future__ import annotations

import itertools
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import in_place, load, read_document_bytes, replacing
from dlm_tui.document.in_place import CutChange
from dlm_tui.document.replacing import save_document
from tests.faults.stepping import KILLED, run_child
from tests.training_samples import write_document

SEEN = b"one two three"
TEXTS = [b"", b"one", b"one TWO three and more", b"TWO", b"one two threE", b"four five six"]


@pytest.fixture
def names(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "a.dlm", tmp_path / "b.dlm"
    one.write_bytes(SEEN)
    other.hardlink_to(one)
    save_document(one, SEEN, SEEN)  # what it loads is loaded once, not in every child
    return one, other


def saving(path: Path, data: bytes) -> Callable[[Callable[[str], None]], None]:
    def work(tell: Callable[[str], None]) -> None:
        save_document(path, SEEN, data)
        tell("saved")

    return work


def cut(path: Path, data: bytes, state: bytes) -> Path:
    """Leave what a killed change leaves, with `state` in the file; returns the note."""
    for step in itertools.count(1):
        path.write_bytes(SEEN)
        assert run_child(saving(path, data), kill_at=step).code == KILLED, "no note was ever there"
        if notes := list(path.parent.glob(".dlm-tui-*.change")):
            break
    path.write_bytes(state)
    return notes[0]


@pytest.mark.parametrize("data", TEXTS)
def test_killed_at_any_step_it_is_the_old_text_or_the_new_one(names: tuple[Path, Path], data: bytes) -> None:
    path, other = names
    found = []
    path.write_bytes(SEEN)
    while run_child(saving(path, data), kill_at=len(found) + 1).code == KILLED:
        found.append(read_document_bytes(other))
        path.write_bytes(SEEN)
        assert path.samefile(other) and list(path.parent.glob(".dlm-tui-*.change")) == []
    assert set(found) == {SEEN, data} and len(found) > 9
    assert found == sorted(found, key=data.__eq__), "from one step on it is the new text"
    path.write_bytes(SEEN)
    save_document(path, SEEN, data)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.dlm", "b.dlm"]


def test_a_document_of_somebody_else_is_completed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "theirs.dlm"
    path.write_bytes(SEEN)
    monkeypatch.setattr(replacing, "may_give_away", lambda target: False)
    steps = run_child(saving(path, b"TWO")).steps
    for step in range(1, steps + 1):
        path.write_bytes(SEEN)
        run_child(saving(path, b"TWO"), kill_at=step)
        assert read_document_bytes(path) in (SEEN, b"TWO")


@pytest.mark.parametrize("data", TEXTS)
def test_no_room_at_any_step_leaves_the_old_text_and_nothing_else(names: tuple[Path, Path], data: bytes) -> None:
    path, other = names
    for step in range(1, run_child(saving(path, data)).steps + 1):
        path.write_bytes(SEEN)
        ended = run_child(saving(path, data), full_at=step)
        if ended.code:
            assert "No space left" in ended.error
            assert read_document_bytes(other) == SEEN, step
    save_document(path, read_document_bytes(path), data)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.dlm", "b.dlm"]


@pytest.mark.parametrize("data", TEXTS)
def test_whatever_part_came_to_the_disk_is_completed(
    names: tuple[Path, Path], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = names
    states = [data[:at] + SEEN[at:] for at in range(len(data) + 1)]
    if len(data) > len(SEEN):
        states += [SEEN + bytes(len(data) - len(SEEN)), SEEN[:5] + data[5:]]
    note = cut(path, data, SEEN)
    told = note.read_bytes()
    for state in states:
        note.write_bytes(told)
        path.write_bytes(state)
        caplog.clear()
        assert read_document_bytes(other) == (SEEN if state == SEEN else data)
        assert ("is completed" in caplog.text) == (state not in (SEEN, data))
        assert list(path.parent.glob(".dlm-tui-*")) == []


@pytest.mark.parametrize("edited", [b"one two three, edited", b"completely", b"one twO", b"four five two six"])
def test_what_was_edited_since_is_not_overwritten(
    names: tuple[Path, Path], edited: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = names
    note = cut(path, b"four five six", edited)
    for name in (path, other, path):
        assert read_document_bytes(name) == edited
    assert [record.getMessage().count(str(note)) for record in caplog.records] == [1, 1], "once for each name"
    assert "was edited since" in caplog.text and SEEN in note.read_bytes() and b"four five six" in note.read_bytes()
    with pytest.raises(CutChange, match="then remove it; nothing was changed"):
        save_document(path, edited, b"more")
    assert path.read_bytes() == edited and note.exists()
    note.unlink()
    save_document(path, edited, b"more")
    assert other.read_bytes() == b"more"


def test_another_file_of_that_name_keeps_the_note_for_the_one_it_is_about(names: tuple[Path, Path]) -> None:
    path, other = names
    note = cut(path, b"four five six", b"four fivthree")
    aside = path.with_name("editor")
    aside.write_bytes(SEEN)
    aside.replace(path)  # as an editor saves that still had the old text
    assert read_document_bytes(path) == SEEN and note.exists()
    assert read_document_bytes(other) == b"four five six" and not note.exists()


def test_a_document_that_was_moved_is_completed(names: tuple[Path, Path]) -> None:
    path, _ = names
    cut(path, b"four five six", b"four fivthree")
    assert read_document_bytes(path.rename(path.with_name("c.dlm"))) == b"four five six"


def test_who_may_not_write_it_is_told(names: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = names
    note = cut(path, b"four five six", b"four fivthree")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CutChange, match="this user may not complete it"):
        read_document_bytes(path)
    assert path.read_bytes() == b"four fivthree" and note.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_stranger_in_a_shared_folder_changes_nothing_by_a_note(names: tuple[Path, Path]) -> None:
    path, _ = names
    note = cut(path, b"four five six", b"four fivthree")
    path.parent.chmod(0o1777)
    os.chown(note, 4242, 4242)
    assert read_document_bytes(path) == b"four fivthree"
    os.chown(note, 0, 0)
    assert read_document_bytes(path) == b"four five six"


def test_a_note_is_read_by_nobody_who_may_not_read_the_document(names: tuple[Path, Path]) -> None:
    path, _ = names
    path.chmod(0o600)
    note = cut(path, b"four five six", b"four fivthree")
    assert stat.S_IMODE(note.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"no note", b"[]\n", b'{"before": [3, ""], "after": 5}\nabc'])
def test_a_damaged_note_overwrites_nothing(names: tuple[Path, Path], damage: bytes) -> None:
    path, _ = names
    note = cut(path, b"four five six", b"four fivthree")
    note.write_bytes(damage)
    assert read_document_bytes(path) == b"four fivthree" and note.exists()


ADD = """
import sys
from pathlib import Path
from dlm_tui.document import append_section, load
path = Path(sys.argv[1])
for number in range(8):
    append_section(path, load(path).sha256, type="prose", adapter=None, content=f"{path.name} {sys.argv[2]} {number}")
"""


def test_processes_that_write_one_file_by_several_names_lose_no_section(tmp_path: Path) -> None:
    path = write_document(tmp_path, sections=1)
    other = tmp_path / "other" / "b.dlm"
    other.parent.mkdir()
    other.hardlink_to(path)
    command = [sys.executable, "-c", ADD]
    writers = [subprocess.Popen([*command, str(name), str(who)]) for name in (path, other) for who in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    texts = {section.content.strip() for section in load(path).sections}
    assert texts >= {f"{name} {who} {at}" for name in (path.name, "b.dlm") for who in range(2) for at in range(8)}
    assert path.samefile(other) and list(tmp_path.rglob(".dlm-tui-*")) == []


def test_doctor_names_what_somebody_has_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_document(tmp_path, sections=1)
    path.with_name("b.dlm").hardlink_to(path)
    text = path.read_bytes()
    note = in_place._note_of(path, path.stat().st_ino)
    note.write_bytes(b"no note")
    words = ["doctor", str(path), "--home", str(tmp_path / "home")]
    assert main(words) == 1
    assert str(note) in capsys.readouterr().out and path.read_bytes() == text
    note.unlink()
    assert main(words) == 0
    assert main(["section", str(path), "add", "--type", "prose", "--text", "more"]) == 0


def test_the_warning_reaches_whoever_runs_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_document(tmp_path, sections=1)
    path.with_name("b.dlm").hardlink_to(path)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "_write_from", killed)
        with pytest.raises(SystemExit):
            save_document(path, before, before + b"\nmore\n")
    path.write_bytes(before + b"\nmo")
    assert main(["parse", str(path)]) == 0
    assert "a change that was cut while it was written is completed" in capsys.readouterr().err
    assert path.read_bytes() == before + b"\nmore\n"
    assert logging.getLogger("dlm_tui").handlers == []
