"""What an answer writes into a document, and how a change is taken back after a restart."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dlm_tui.document import append_section, delete_section, instruction_pairs, load, preference_triples
from dlm_tui.document.change_log import ChangeLog, DocumentChange, NothingToUndo
from dlm_tui.document.errors import FileChanged
from dlm_tui.document.lesson import Lesson, better_answer, kept_answer, preview_lesson
from dlm_tui.errors import DlmTuiError
from tests.tui.document import write_document

AT = datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC)


def append(path: Path, lesson: Lesson) -> DocumentChange:
    result = append_section(
        path, "", type=lesson.type, adapter=lesson.adapter, content=lesson.content, marker=lesson.marker
    )
    return DocumentChange.of_append("lesson", result)


def test_a_kept_answer_reads_back_with_its_source(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    lesson = kept_answer(" Why?\n", "Because.\r\nSo.", "tone", 'keep/a "view"\x1b')
    added = preview_lesson(path.read_bytes(), lesson)
    assert added == (
        '::instruction#tone::\n<!-- dlm-auto-harvest: source="dlm-tui/keep/a view" -->\n'
        "### Q\nWhy?\n### A\nBecause.\nSo.\n"
    )
    append(path, lesson)
    section = load(path).sections[-1]
    assert path.read_text().endswith(added)
    assert section.adapter == "tone" and section.auto_harvest and section.harvest_source == "dlm-tui/keep/a view"
    assert instruction_pairs(section) == [("Why?", "Because.\nSo.")]


def test_a_better_answer_is_a_preference_that_a_person_mined(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    append(path, better_answer("Why?", "Because.", "No.", "tone", "better/tone", AT, 7))
    section = load(path).sections[-1]
    assert preference_triples(section) == [("Why?", "Because.", "No.")]
    assert section.auto_mined and not section.auto_harvest
    assert (section.judge_name, section.judge_score_chosen, section.judge_score_rejected) == (
        "dlm-tui person",
        1.0,
        0.0,
    )
    assert (section.mined_at, section.mined_run_id) == ("2026-11-29T01:02:03Z", 7)


def test_before_the_first_training_a_preference_is_taken_over(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    append(path, better_answer("Why?", "Because.", "No.", None, "better/base", AT, None))
    section = load(path).sections[-1]
    assert section.adapter is None and section.auto_harvest and section.harvest_source == "dlm-tui/better/base"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("One\n### A\nTwo", "header"),
        ("One\n### Q\nTwo\n### A\nThree", "header"),
        ("One\n::prose::\nTwo", "read as several"),
        ("```\nopen", "code block"),
        (" \n", "empty"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(tmp_path: Path, answer: str, words: str) -> None:
    document = write_document(tmp_path).read_bytes()
    with pytest.raises(DlmTuiError, match=words):
        preview_lesson(document, kept_answer("Why?", answer, "tone", "keep/tone"))


@pytest.mark.parametrize(("chosen", "rejected"), [("a", " a\n"), ("", "a"), ("a", "\n")])
def test_two_equal_answers_and_empty_ones_teach_nothing(chosen: str, rejected: str) -> None:
    with pytest.raises(DlmTuiError):
        better_answer("Why?", chosen, rejected, "tone", "better/tone", AT, 1)


def test_changes_are_taken_back_newest_first_by_another_process(tmp_path: Path) -> None:
    path, log = write_document(tmp_path), tmp_path / "log.json"
    original = path.read_bytes()
    ChangeLog(log).add(append(path, kept_answer("Why?", "So.", "tone", "keep/tone")))
    grown = path.read_bytes()
    edit = delete_section(path, load(path).sha256, 1)
    ChangeLog(log).add(DocumentChange.of_edit("section", edit))
    assert ChangeLog(log).undo(path).kind == "section" and path.read_bytes() == grown
    assert ChangeLog(log).undo(path).kind == "lesson" and path.read_bytes() == original
    with pytest.raises(NothingToUndo, match="nothing in the document was changed"):
        ChangeLog(log).undo(path)


def test_somebody_elses_save_is_never_undone(tmp_path: Path) -> None:
    path, log = write_document(tmp_path), ChangeLog(tmp_path / "log.json")
    log.add(append(path, kept_answer("Why?", "So.", "tone", "keep/tone")))
    saved = path.read_bytes() + b"More.\n"
    path.write_bytes(saved)
    with pytest.raises(NothingToUndo, match="nothing was undone"):
        log.undo(path)
    assert path.read_bytes() == saved
    path.write_bytes(saved.removesuffix(b"More.\n"))
    assert log.undo(path).kind == "lesson", "the file is what the change made of it again"


def test_a_change_whose_record_is_not_whole_is_not_undone(tmp_path: Path) -> None:
    path, log = write_document(tmp_path), ChangeLog(tmp_path / "log.json")
    log.add(DocumentChange.of_edit("section", delete_section(path, load(path).sha256, 1)))
    now, kept = path.read_bytes(), json.loads((tmp_path / "log.json").read_bytes())
    removed = kept[0]["removed"]
    kept[0]["removed"] = ("A" if removed[0] != "A" else "B") + removed[1:]
    (tmp_path / "log.json").write_text(json.dumps(kept))
    with pytest.raises(FileChanged, match="nothing was undone"):
        log.undo(path)
    assert path.read_bytes() == now


def test_a_damaged_log_is_set_aside_and_a_long_one_is_bounded(tmp_path: Path) -> None:
    path, file = write_document(tmp_path), tmp_path / "log.json"
    file.write_bytes(b"[{")
    change = append(path, kept_answer("Why?", "So.", "tone", "keep/tone"))
    ChangeLog(file).add(change)
    assert len(json.loads(file.read_bytes())) == 1 and (tmp_path / "log.damaged.json").read_bytes() == b"[{"
    for _ in range(205):
        ChangeLog(file).add(change)
    assert len(json.loads(file.read_bytes())) == 200
