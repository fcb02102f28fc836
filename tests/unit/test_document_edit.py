"""One section changes, every other byte stays, and every change can be taken back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_tui.cli.main import main
from dlm_tui.document import (
    BodyError,
    FileChanged,
    append_section,
    delete_section,
    edit_section,
    load,
    parse_bytes,
    retag_section,
    undo_edit,
)
from dlm_tui.errors import UsageError

_HEAD = "---\ndlm_id: 01J8ZQ5M3V0000000000000001\nbase_model: b\ntraining: {adapters: {tone: {}, facts: {}}}\n---\n"
_BODY = """
Opening words.

::instruction#tone::
<!-- dlm-auto-harvest: source="x" -->
### Q
q?

### A
a.

::prose::

::preference::
### Prompt
p
### Chosen
c
### Rejected
r
::image path="x.png"::
::prose#facts::
The end."""


def _write(folder: Path, body: str = _BODY, line_end: str = "\n", bom: bool = False) -> tuple[Path, str]:
    path = folder / "doc.dlm"
    data = (b"\xef\xbb\xbf" if bom else b"") + (_HEAD + body).replace("\n", line_end).encode()
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("final", ["", "\n", "\n\n"])
def test_editing_changes_the_text_and_nothing_else(tmp_path: Path, line_end: str, bom: bool, final: str) -> None:
    path, digest = _write(tmp_path, _BODY + final, line_end, bom)
    before = path.read_bytes()
    edit = edit_section(path, digest, 1, "### Q\nwhere?\n### A\nhere\n")
    after = load(path).sections[1]
    assert after.content == "### Q\nwhere?\n### A\nhere\n"
    assert after.auto_harvest
    assert edit.section_id == after.section_id
    assert edit.line == after.start_line
    data = path.read_bytes()
    assert data == before[: edit.offset] + edit.added + before[edit.offset + len(edit.removed) :]
    assert before[: edit.offset].endswith(b'source="x" -->' + line_end.encode())
    assert undo_edit(path, edit) == digest
    assert path.read_bytes() == before
    edit = edit_section(path, digest, 4, "Other words")
    assert load(path).sections[4].content == "Other words" + final[1:]
    assert path.read_bytes().endswith(f"::{line_end}Other words{final.replace(chr(10), line_end)}".encode())
    undo_edit(path, edit)
    assert path.read_bytes() == before


def test_the_opening_prose_can_be_edited_tagged_and_deleted(tmp_path: Path) -> None:
    path, digest = _write(tmp_path)
    before = path.read_bytes()
    undo_edit(path, edit_section(path, digest, 0, "Better words."))
    edit = retag_section(path, digest, 0, "facts")
    assert (load(path).sections[0].adapter, load(path).sections[0].content) == ("facts", "Opening words.\n")
    assert edit.added == b"::prose#facts::\n"
    assert edit.removed == b""
    undo_edit(path, edit)
    edit = delete_section(path, digest, 0)
    assert load(path).sections[0].type == "instruction"
    assert edit.section_id is None
    undo_edit(path, edit)
    assert path.read_bytes() == before


def test_retagging_changes_the_fence_line_alone(tmp_path: Path) -> None:
    path, digest = _write(tmp_path, line_end="\r\n")
    edit = retag_section(path, digest, 1, "facts")
    assert (edit.removed, edit.added) == (b"::instruction#tone::", b"::instruction#facts::")
    assert load(path).sections[1].adapter == "facts"
    edit = retag_section(path, edit.sha256, 4, None)
    assert load(path).sections[4].adapter is None
    with pytest.raises(UsageError, match="no adapter 'nobody'"):
        retag_section(path, edit.sha256, 1, "nobody")


def test_a_section_that_gives_no_rows_yet_can_be_given_away(tmp_path: Path) -> None:
    path, _ = _write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"### Q", b"### Question"))
    digest = load(path).sha256
    retag_section(path, digest, 1, "facts")
    assert load(path).sections[1].adapter == "facts"


def test_a_byte_order_mark_is_no_part_of_a_given_text(tmp_path: Path) -> None:
    path, digest = _write(tmp_path)
    edit = edit_section(path, digest, 0, "\ufeffOther words.")
    assert load(path).sections[0].content.startswith("Other words.")
    append_section(path, edit.sha256, type="prose", adapter=None, content="\ufeffAdded.")
    assert load(path).sections[-1].content.strip() == "Added."


@pytest.mark.parametrize("index", range(5))
def test_deleting_leaves_the_others_as_they_are(tmp_path: Path, index: int) -> None:
    path, digest = _write(tmp_path)
    before = load(path).sections
    edit = delete_section(path, digest, index)
    left = [section.section_id for section in load(path).sections]
    assert left == [section.section_id for position, section in enumerate(before) if position != index]
    if index == 1:
        assert b"::prose::\n\n" in path.read_bytes()
    undo_edit(path, edit)
    assert load(path).sections == before


@pytest.mark.parametrize(
    ("index", "content", "words"),
    [
        (1, "### Q\nq\n", "### A"),
        (0, "::prose::\nmore", "fence line"),
        (0, "```\nopen", "break the document"),
        (0, " \n ", "empty"),
        (3, "x", "not changed"),
        (1, '<!-- dlm-auto-harvest: source="y" -->\n### Q\nq\n### A\na', "marker or fence line"),
        (9, "x", "no section 9"),
        (0, "\udcff", "UTF-8"),
    ],
)
def test_what_would_not_read_back_is_not_written(tmp_path: Path, index: int, content: str, words: str) -> None:
    path, digest = _write(tmp_path)
    before = path.read_bytes()
    with pytest.raises((UsageError, BodyError), match=words):
        edit_section(path, digest, index, content)
    assert path.read_bytes() == before


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path, digest = _write(tmp_path)
    edit = delete_section(path, digest, 1)
    with pytest.raises(FileChanged):
        delete_section(path, digest, 1)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(FileChanged):
        undo_edit(path, edit)


_lines = st.lists(
    st.sampled_from(["", "a", "::prose::", "::prose#tone::", "::instruction::", "```", "b c", " "]), max_size=9
)


@given(_lines, st.integers(0, 4), st.text("ab\n:#`", max_size=8))
def test_any_change_is_exact_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], index: int, new: str
) -> None:
    data = (_HEAD + "\n".join(lines)).encode()
    try:
        sections = parse_bytes(data).sections
    except Exception:
        return
    if index >= len(sections):
        return
    path = tmp_path_factory.mktemp("x") / "doc.dlm"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    for change in (
        lambda: delete_section(path, digest, index),
        lambda: retag_section(path, digest, index, "facts"),
        lambda: edit_section(path, digest, index, new),
    ):
        try:
            edit = change()
        except (UsageError, BodyError):
            assert path.read_bytes() == data
            continue
        assert undo_edit(path, edit) == digest
        assert path.read_bytes() == data


def test_the_section_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = _write(tmp_path)
    document = str(path)
    before = path.read_bytes()
    assert main(["section", document, "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["type"] for row in listed] == ["prose", "instruction", "preference", "image", "prose"]
    assert main(["section", document, "add", "--adapter", "facts", "--text", "### Q\nx\n### A\ny", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert main(["section", document, "edit", added["section_id"], "--text", "### Q\nx\n### A\nz"]) == 0
    assert main(["section", document, "retag", str(added["line"] + 2), "--adapter", "tone"]) == 0
    assert (load(path).sections[-1].content, load(path).sections[-1].adapter) == ("### Q\nx\n### A\nz", "tone")
    for verb in (["delete", "9999"], ["retag", "100000", "--adapter", "tone"]):
        assert main(["section", document, *verb]) == 2
    assert main(["section", document, "delete", str(added["line"])]) == 0
    assert path.read_bytes() == before + b"\n"
    assert main(["section", document, "delete", "1"]) == 2
    assert main(["section", document, "delete"]) == 2
    assert main(["section", document, "edit", "no-such-id", "--text", "x"]) == 2


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_section_right_below_the_frontmatter_is_changed_like_any_other(tmp_path: Path, line_end: str) -> None:
    question = "### Q\nq?\n### A\na.\n"
    path, digest = _write(tmp_path, f"::instruction#tone::\n{question}::prose::\nThe end.\n", line_end)
    before = path.read_bytes()
    edit = edit_section(path, digest, 0, "### Q\nx?\n### A\ny.")
    assert [section.content for section in load(path).sections] == ["### Q\nx?\n### A\ny.", "The end."]
    assert undo_edit(path, edit) == digest
    edit = retag_section(path, digest, 0, "facts")
    assert path.read_bytes() == before.replace(b"#tone::", b"#facts::")
    assert undo_edit(path, edit) == digest
    delete_section(path, digest, 0)
    assert [section.content for section in load(path).sections] == ["The end."]
