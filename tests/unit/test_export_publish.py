"""An export takes its place whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_tui.export.atomic_folder import check_destination, check_space, publish, read_manifest, recover
from dlm_tui.export.requests import ExportRefused
from dlm_tui.platform import exchange_names

OURS = {"created_by": "dlm-tui-0.1.0"}


def fill(folder: Path, text: str, creator: str = "dlm-tui-0.1.0") -> None:
    (folder / "data").write_text(text)
    (folder / "export_manifest.json").write_text(json.dumps({"created_by": creator, "artifacts": [{"path": "data"}]}))


def siblings(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_new_and_a_replaced_export(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        with publish(target) as scratch:
            fill(scratch, text)
            assert not (target / "data").exists() or (target / "data").read_text() == "first"
        assert (target / "data").read_text() == text
    assert siblings(target) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failure_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr("dlm_tui.platform._exchange_call", lambda: None)
    target = tmp_path / "out"
    with publish(target) as scratch:
        fill(scratch, "first")
    with pytest.raises(RuntimeError), publish(target) as scratch:
        fill(scratch, "second")
        raise RuntimeError
    assert (target / "data").read_text() == "first"
    assert siblings(target) == []
    with publish(target) as scratch:
        fill(scratch, "third")
    assert (target / "data").read_text() == "third"
    assert siblings(target) == []


def test_the_swap_in_steps_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm_tui.platform._exchange_call", lambda: None)
    target = tmp_path / "out"
    with publish(target) as scratch:
        fill(scratch, "first")
    with pytest.raises(OSError), publish(target) as scratch:
        fill(scratch, "second")
        moved = Path.replace

        def once(self: Path, other: Path) -> Path:
            if self == scratch:
                raise OSError(5, "no")
            return moved(self, other)

        monkeypatch.setattr(Path, "replace", once)
    assert (target / "data").read_text() == "first"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="names can be exchanged at once there only")
def test_names_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    assert exchange_names(one, other)
    assert ((one / "name").read_text(), (other / "name").read_text()) == ("other", "one")
    assert not exchange_names(one, tmp_path / "absent")


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    check_destination(folder)
    check_destination(tmp_path / "absent")
    fill(folder, "x")
    check_destination(folder)
    for content in ("{}", "[]", "no json", json.dumps({"created_by": "dlm-0.10.0"}), json.dumps({"created_by": 3})):
        (folder / "export_manifest.json").write_text(content)
        with pytest.raises(ExportRefused, match="not empty"):
            check_destination(folder)
        assert read_manifest(folder) is None
    (folder / "export_manifest.json").unlink()
    with pytest.raises(ExportRefused, match="not empty"):
        check_destination(folder)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ExportRefused, match="not a folder"):
        check_destination(file)
    broken = tmp_path / "link"
    broken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportRefused, match="not a folder"):
        check_destination(broken)


def test_somebody_who_comes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ExportRefused), publish(target) as scratch:
        fill(scratch, "ours")
        target.mkdir()
        (target / "letter.txt").write_text("theirs")
    assert (target / "letter.txt").read_text() == "theirs"
    assert siblings(target) == []


def test_leftovers_of_killed_exports_are_cleared_and_halved_swaps_undone(tmp_path: Path) -> None:
    target, pid = tmp_path / "out", dead_pid()
    half, whole = tmp_path / f"out.tmp.{pid}.00000000", tmp_path / f"out.tmp.{pid}.11111111"
    live, other = tmp_path / f"out.tmp.{os.getpid()}.22222222", tmp_path / f"outer.tmp.{pid}.33333333"
    for folder in (half, whole, live, other):
        folder.mkdir()
    (half / "data").write_text("half")
    fill(whole, "whole")
    recover(target)
    assert (target / "data").read_text() == "whole"
    assert siblings(target) == sorted([live.name, other.name])
    shutil.copytree(target, whole)
    recover(target)
    assert siblings(target) == sorted([live.name, other.name])


def test_a_disk_without_room_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"too full: the export takes about 1152921504\.6 GB, .* are free$"):
        check_space(tmp_path / "a" / "b", 1 << 60, 1)
    with pytest.raises(ExportRefused, match=r"about 0\.6 MB, .* are free, and 1152921504\.6 GB have to stay free$"):
        check_space(tmp_path / "a" / "b", 600_000, 1 << 60)
    check_space(tmp_path / "a" / "b", 1, 1)


def test_a_file_that_no_export_wrote_is_not_swept_away(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with publish(target) as scratch:
        fill(scratch, "first")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ExportRefused, match=r"notes\.txt"):
        check_destination(target)
    with pytest.raises(ExportRefused), publish(target) as scratch:
        fill(scratch, "second")
    assert (target / "notes.txt").read_text() == "mine" and (target / "data").read_text() == "first"


AT_ONCE = """
import sys
from pathlib import Path
from dlm_tui.export.atomic_folder import publish
for number in range(10):
    with publish(Path(sys.argv[1])) as scratch:
        (scratch / "a").write_text(f"{sys.argv[2]} {number}")
        (scratch / "b").write_text(f"{sys.argv[2]} {number}")
        (scratch / "export_manifest.json").write_text(
            '{"created_by": "dlm-tui-test", "artifacts": [{"path": "a"}, {"path": "b"}]}'
        )
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="an open folder is read by its number there")
def test_exports_to_one_place_at_once_never_share_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-c", AT_ONCE, str(target)]
    exports = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    while any(export.poll() is None for export in exports):
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(target, os.O_RDONLY)  # the folder that has the name now, whoever replaces it
            try:
                texts = [Path(f"/proc/self/fd/{folder}/{name}").read_text() for name in ("a", "b")]
            finally:
                os.close(folder)
            assert texts[0] == texts[1]
    assert [export.wait() for export in exports] == [0, 0, 0, 0]
    assert (target / "a").read_text() == (target / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_a_file_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "sub", tmp_path / "file" / "sub" / "below"):
        with pytest.raises(ExportRefused, match="file is not a folder; choose another folder"):
            check_destination(target)
