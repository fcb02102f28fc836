"""A document to start from: valid, with an id of its own, learning from folders, and never over something."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from dlm_tui.cli.main import main
from dlm_tui.document import gate_mode, load, read_side_file, side_file_path, sources
from dlm_tui.document.templates import TEMPLATES, compose, folders_to_learn, write_new
from dlm_tui.errors import DlmTuiError, UsageError


def _folder(path: Path, files: int = 4) -> Path:
    path.mkdir(parents=True)
    for index in range(files):
        (path / f"{index}.txt").write_text(f"{path.name} {index}")
    return path


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("base", ["pocket", "smollm2-135m", "hf:org/name"])
def test_every_template_is_valid_and_enough_for_a_gate(template: str, base: str, tmp_path: Path) -> None:
    new = compose(tmp_path / "mine.dlm", template=template, base_model=base)
    write_new(new)
    assert b"{{" not in new.data
    document = load(tmp_path / "mine.dlm")
    assert document.base_model == base
    expanded, _ = sources.expand_sources(document)
    assert gate_mode(expanded) == "trained"
    assert document.dlm_id != compose(tmp_path / "mine.dlm", template=template).document.dlm_id


def test_new_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "mine"), "--adapters", "a,on, c", "--no-open", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["document"] == str(tmp_path / "mine.dlm")
    assert told["adapters"] == list(load(tmp_path / "mine.dlm").adapter_names) == ["a", "on", "c"]
    before = (tmp_path / "mine.dlm").read_bytes()
    assert main(["new", str(tmp_path / "mine.dlm"), "--no-open"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.dlm").read_bytes() == before
    assert main(["new", str(tmp_path / "x.dlm"), "--base-model", "no-such-base", "--no-open"]) != 0
    assert main(["new", str(tmp_path / "x.dlm"), "--adapters", "A", "--no-open"]) == 2
    assert main(["new", str(tmp_path / "x.dlm"), "--adapters", "a,a", "--no-open"]) == 2
    assert main(["new", str(tmp_path / "x.dlm"), "--adapters", "a", "--template", "notes", "--no-open"]) == 2
    assert main(["new", str(tmp_path / "x.dlm"), "--from", str(tmp_path / "gone"), "--no-open"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.dlm"]


def test_parse_counts_what_the_folders_bring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("facts", "tone"):
        _folder(tmp_path / "notes" / name)
    assert main(["new", str(tmp_path / "n.dlm"), "--from", str(tmp_path / "notes"), "--no-open"]) == 0
    assert main(["parse", str(tmp_path / "n.dlm"), "--sources"]) == 0
    said = "0 sections, 0 prompts for the gate, 8 sections from files (8 of them bound to an adapter)"
    assert capsys.readouterr().out == f"{tmp_path / 'n.dlm'}: valid, {said}\n"


def test_a_template_has_its_own_adapters_and_all_of_them_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path / "notes")
    new = [str(tmp_path / "n.dlm"), "--template", "support", "--from", str(tmp_path / "notes"), "--no-open"]
    assert main(["new", *new]) == 0
    assert f"every adapter learns from {tmp_path / 'notes'}: 4 files" in capsys.readouterr().err


def test_three_sub_folders_become_three_adapters(tmp_path: Path) -> None:
    for name in ("Über uns", "on", "2024"):
        _folder(tmp_path / "notes" / name)
    (tmp_path / "notes/.git").mkdir()
    new = compose(tmp_path / "mine.dlm", folders=folders_to_learn([tmp_path / "notes"]))
    write_new(new)
    document = load(tmp_path / "mine.dlm")
    assert document.training.sources_policy == "strict"
    assert [source.path for source in document.training.sources or ()] == ["notes"]
    assert read_side_file(side_file_path(tmp_path / "mine.dlm")).source_adapters == {
        "notes/2024": "notes_2024",
        "notes/on": "on_2",
        "notes/Über uns": "uber_uns",
    }
    expanded, _ = sources.expand_sources(document)
    assert gate_mode(expanded) == "trained"


def test_one_folder_gets_a_voice_beside_it_and_several_are_one_adapter_each(tmp_path: Path) -> None:
    one, two = _folder(tmp_path / "one"), _folder(tmp_path / "elsewhere/two")
    (tmp_path / "docs").mkdir()
    new = compose(tmp_path / "docs/a.dlm", folders=folders_to_learn([one]))
    assert new.document.adapter_names == ("one", "voice")
    new = compose(tmp_path / "docs/b.dlm", folders=folders_to_learn([one, two], ["x", "y"]))
    write_new(new)
    assert new.document.adapter_names == ("x", "y")
    assert new.document.training.sources_policy == "permissive"
    assert new.side.source_adapters == {str(one): "x", str(two): "y"}
    assert gate_mode(sources.expand_sources(load(new.path))[0]) == "trained"
    with pytest.raises(UsageError, match="1 adapters were named for 2 folders"):
        folders_to_learn([one, two], ["x"])


def test_a_folder_with_an_awkward_name_is_written_so_that_it_reads_back(tmp_path: Path) -> None:
    folder = _folder(tmp_path / 'a "b" # c: \\d\n')
    new = compose(tmp_path / "mine.dlm", folders=folders_to_learn([folder]))
    write_new(new)
    expanded, scan = sources.expand_sources(load(new.path))
    assert scan.counts[0].file_count == 4
    assert [section.adapter for section in expanded.sections if section.origin] == ["a_b_c_d"] * 4


def test_notes_that_are_there_are_used_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    _folder(tmp_path / "notes", 5)
    write_new(compose(tmp_path / "mine.dlm", template="notes"))
    assert len(list((tmp_path / "notes").iterdir())) == 5
    new = compose(tmp_path / "sub/other.dlm", template="notes")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.dlm").write_text("mine")
    with pytest.raises(DlmTuiError, match="exists already"):
        write_new(new)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["other.dlm"]


def test_a_killed_call_is_taken_up_and_a_cancelled_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.dlm"
    whole = compose(path, template="notes")
    write_new(whole)
    files = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file() and item != path}
    assert len(files) == 6, "five notes and the side file"
    for count in range(len(files) + 1):
        for item in [path, *list(files)[count:]]:
            item.unlink(missing_ok=True)
        write_new(compose(path, template="notes"))
        assert {item: item.read_bytes() for item in files} == files and load(path).adapter_names
    path.unlink()
    shutil.rmtree(tmp_path / "notes")
    side_file_path(path).unlink()

    real, steps = os.fsync, list[int]()

    def interrupted(descriptor: int) -> None:
        steps.append(descriptor)
        if len(steps) == stop:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    for stop in range(1, 15):
        steps.clear()
        with contextlib.suppress(KeyboardInterrupt):
            write_new(compose(path, template="notes"))
            break
        assert [item for item in tmp_path.rglob("*") if item.is_file()] == [], stop
    assert len(steps) >= 7


def test_what_is_in_the_place_of_a_new_document_stays(tmp_path: Path) -> None:
    side_file_path(tmp_path / "mine.dlm").write_text('base = "mine"\n')
    with pytest.raises(DlmTuiError, match="exists already; nothing was overwritten: choose another name"):
        write_new(compose(tmp_path / "mine.dlm", template="notes"))
    assert read_side_file(side_file_path(tmp_path / "mine.dlm")).base == "mine"


@pytest.mark.parametrize("start", [0, 143, "demo", "own"])
def test_without_a_document_the_choice_is_opened(
    start: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    from dlm_tui import app
    from dlm_tui.cli import open as opening

    monkeypatch.chdir(tmp_path)
    opened: list[Path] = []
    monkeypatch.setattr(opening, "need_terminal", lambda: None)
    monkeypatch.setattr(opening, "launch", lambda path, args, **_: opened.append(path) or 0)
    monkeypatch.setattr(app, "ask_for_start", lambda: tmp_path / "mine.dlm" if start == "own" else start)
    assert opening.run(argparse.Namespace(json=False, document=None)) == (start if isinstance(start, int) else 0)
    documents = {"demo": [Path("dlm-demo/harbour.dlm")], "own": [tmp_path / "mine.dlm"]}
    assert opened == documents.get(str(start), [])


def test_no_name_at_all_is_no_list_of_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "n.dlm"), "--adapters", "", "--no-open"]) == 2
    assert "'' is not an adapter name" in capsys.readouterr().err
