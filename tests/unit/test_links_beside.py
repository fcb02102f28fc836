"""Files beside a document, and files that a person names, that are links to other places: they stay links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui import files
from dlm_tui.cli.main import main
from dlm_tui.cli.repl_terminal import LineHistory
from dlm_tui.document import PromptSets, replacing, set_side_value, side_file_path
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.document.prompt_set_files import write_cases
from dlm_tui.document.replacing import DocumentBusy, document_lock
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_atomic, write_through_links
from dlm_tui.system_errors import sentence_of
from tests.training_samples import write_document

Write = Callable[[Path], object]
WRITERS: dict[str, Write] = {
    "sets": lambda document: PromptSets(document).update(lambda sets: sets.update(new=[])),
    "mixes": lambda document: NamedMixes(document).update(lambda mixes: mixes.update(new={"facts": 0.5})),
    "side file": lambda document: set_side_value(side_file_path(document), "offload", "new"),
    "given": lambda document: write_cases(document.with_name("o.jsonl"), '{"prompt": "new"}\n', replace=True),
}
LINKS = {"sets": "a.prompts.json", "mixes": "a.mixes.json", "side file": "a.dlm.tui.toml", "given": "o.jsonl"}
BEFORE = {"sets": "{}", "mixes": "{}", "side file": 'quantize = "nf4"\n', "given": '{"prompt": "old"}\n'}


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def linked(folder: Path, kind: str) -> tuple[Path, Path, Path]:
    """A document, a link beside it, and the file in another folder that it leads to, over a second link."""
    (folder / "shared").mkdir()
    target, between, link = folder / "shared" / "one", folder / "shared" / "two", folder / LINKS[kind]
    target.write_text(BEFORE[kind])
    between.symlink_to("../shared/one")
    link.symlink_to(between)
    return folder / "a.dlm", link, target


def test_the_link_stays_and_the_file_behind_it_is_changed(tmp_path: Path, kind: str) -> None:
    document, link, target = linked(tmp_path, kind)
    WRITERS[kind](document)
    assert link.is_symlink() and (tmp_path / "shared" / "two").is_symlink() and not target.is_symlink()
    assert "new" in target.read_text() and target.read_text() != BEFORE[kind]
    assert sorted(entry.name for entry in target.parent.iterdir()) == ["one", "two"]
    assert [entry.name for entry in tmp_path.iterdir() if entry != target.parent] == [link.name]


@pytest.mark.parametrize("leads", ["to nothing", "round"])
def test_a_link_that_leads_nowhere_is_named_and_stays(tmp_path: Path, kind: str, leads: str) -> None:
    document, link, target = linked(tmp_path, kind)
    if leads == "round":
        target.unlink()
        target.symlink_to(link)
    else:
        target.rename(target.with_name("elsewhere"))
    told = "its links lead round in a circle; remove one" if leads == "round" else "which does not exist; make that"
    with pytest.raises((OSError, DlmTuiError)) as caught:
        WRITERS[kind](document)
    sentence = sentence_of(caught.value)
    assert told in sentence and str(link) in sentence and "\n" not in sentence
    assert link.is_symlink() and not target.exists()


def test_a_folder_behind_a_link_that_cannot_be_written_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, link, target = linked(tmp_path, kind)

    def refused(path: Path, *_: object) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "write_scratch", refused)
    with pytest.raises((OSError, DlmTuiError)) as caught:
        WRITERS[kind](document)
    sentence = sentence_of(caught.value)
    assert "this user may not do that; change its permissions" in sentence
    assert str(target.parent) in sentence or str(link) in sentence
    assert link.is_symlink() and target.read_text() == BEFORE[kind]


def test_a_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_document(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n')
    link = PromptSets(path).path
    link.symlink_to("gone.json")
    assert main(["sets", str(path), "import", str(tmp_path / "a.jsonl"), "--set", "a"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"dlm-tui: {link}: it is a link to {tmp_path / 'gone.json'}, which does not exist; make that again,"
        " or remove the link"
    ]


def test_two_documents_that_share_a_file_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _, target = linked(tmp_path, "sets")
    monkeypatch.setattr(replacing, "_BESIDE_SECONDS", 0.0)
    with document_lock(target), pytest.raises(DocumentBusy):
        WRITERS["sets"](document)
    WRITERS["sets"](document)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give links away")
def test_a_link_that_a_stranger_put_into_a_shared_folder_is_not_followed(tmp_path: Path) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.write_bytes(b"precious")
    link = shared / "o.jsonl"
    link.symlink_to(victim)
    os.lchown(link, 4242, 4242)
    with pytest.raises(OSError, match="another user put"):
        write_through_links(link, b"x")
    assert victim.read_bytes() == b"precious"
    os.lchown(link, 0, 0)
    write_through_links(link, b"x")
    assert victim.read_bytes() == b"x" and link.is_symlink()


def test_the_history_of_lines_stays_a_link_when_its_older_half_goes(tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(b"\n# one\n+a\n" * (1 << 17))
    link = tmp_path / "history"
    link.symlink_to("shared")
    LineHistory(link)
    assert link.is_symlink() and 0 < (tmp_path / "shared").stat().st_size < 1 << 20


def test_the_demo_takes_the_place_of_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "harbour.dlm"
    link.symlink_to(tmp_path / "gone")
    assert main(["demo", str(tmp_path), "--no-open"]) == 1
    assert f"it is a link to {tmp_path / 'gone'}, which does not exist" in capsys.readouterr().err
    assert link.is_symlink()


def test_what_is_no_persons_file_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"precious")
    link = tmp_path / "manifest.json"
    link.symlink_to("outside")
    write_atomic(link, b"{}")
    assert not link.is_symlink() and (tmp_path / "outside").read_bytes() == b"precious"
