"""A pipe in the place of a small file that a person or another program may have put there: nobody waits at it."""

from __future__ import annotations

import ast
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from dlm_tui.app.config import load_config
from dlm_tui.app.state import State, StateFile, recent_documents
from dlm_tui.cli.main import main
from dlm_tui.document.change_log import ChangeLog
from dlm_tui.document.named_mixes import NamedMixes, NamedMixesError
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.errors import UsageError
from dlm_tui.input import read_text_file
from dlm_tui.store import store_lock
from dlm_tui.store.errors import StoreError
from tests.faults.small_store import SmallStore

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
_SECONDS = 20
_PROGRAM = Path(__file__).resolve().parents[2] / "dlm_tui"
_STORE_FILES = (
    "manifest.json",
    "dlm.lock",
    "metrics.sqlite",
    ".lock",
    ".journal.tui",
    "queue/queue.json",
    "adapter/tui_history.json",
    "adapter/_gate/gate_config.json",
    "adapter/_gate/gate.safetensors",
    "adapter/_gate/tui_gate.json",
    "adapter/tone/current.txt",
    "adapter/tone/versions/v0002/adapter_model.safetensors",
    "adapter/tone/versions/v0002/adapter_config.json",
    "adapter/tone/versions/v0002/tui_version.json",
)
_COMMANDS = ("show DOC", "doctor DOC", "metrics DOC", "adapter list DOC", "queue DOC list", "sets DOC list")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return SmallStore(tmp_path_factory.mktemp("whole")).make()


@pytest.fixture
def small(whole: SmallStore, tmp_path: Path) -> SmallStore:
    shutil.copytree(whole.root, tmp_path / "small")
    return SmallStore(tmp_path / "small")


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A wait at a pipe ends as an error of the test."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"still waiting after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def run(small: SmallStore, words: str) -> int:
    return main([str(small.document) if word == "DOC" else word for word in words.split()])


@pytest.mark.parametrize("name", _STORE_FILES)
def test_no_file_of_the_store_is_waited_for(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("DLM_HOME", str(small.store.home))
    there = small.store.root / name
    pipe(there)
    for words in _COMMANDS:
        assert run(small, words) in (0, 1), words
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".dlm", "show DOC"),
        (".dlm.tui.toml", "show DOC"),
        (".dlm.tui.toml", "doctor DOC"),
        (".prompts.json", "sets DOC list"),
    ],
)
def test_no_file_beside_a_document_is_waited_for(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suffix: str, words: str
) -> None:
    monkeypatch.setenv("DLM_HOME", str(small.store.home))
    there = pipe(small.document.with_name(f"{small.document.stem}{suffix}"))
    assert run(small, words) in (0, 1)
    said = capsys.readouterr()
    assert there.name in said.err + said.out
    assert "it is a pipe" in said.err + said.out


def test_a_pipe_that_nobody_writes_to_is_no_set_of_prompts(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DLM_HOME", str(small.store.home))
    there = pipe(small.root / "given.jsonl")
    assert run(small, f"sets DOC import {there} --set a") == 2
    assert "nothing is written into that pipe" in capsys.readouterr().err


def test_a_pipe_that_somebody_writes_to_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\xef\xbb\xbfWhere is the key?")
    os.close(writing)
    assert read_text_file(f"/dev/fd/{reading}") == "Where is the key?"
    os.close(reading)


def test_what_the_screen_remembers_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config.toml cannot be read: it is a pipe"):
        load_config(pipe(tmp_path / "config.toml"))
    state = StateFile(tmp_path / "a.dlm", tmp_path)
    pipe(state.path)
    assert state.load() == State()
    pipe(tmp_path / "recent.json")
    assert recent_documents(tmp_path) == []
    assert ChangeLog(pipe(tmp_path / "changes.json")).read() == []
    with pytest.raises(NamedMixesError, match="it is a pipe"):
        NamedMixes(pipe(tmp_path / "a.mixes.json").with_name("a.dlm")).load()


def test_a_pipe_as_manifest_is_mended(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DLM_HOME", str(small.store.home))
    pipe(small.store.manifest_path)
    assert run(small, "doctor DOC --repair") == 0
    assert "manifest.json cannot be read: it is a pipe, not a file.\n" in capsys.readouterr().out
    assert run(small, "show DOC") == 0


def test_a_pipe_as_lock_is_left_to_a_person(small: SmallStore) -> None:
    pipe(small.store.lock_path)
    with pytest.raises(StoreError, match="nobody can hold the store"), store_lock(small.store, 0.1):
        pass


def test_a_pipe_as_line_of_jobs_is_damage(small: SmallStore) -> None:
    pipe(QueueFile(small.store).path)
    assert QueueFile(small.store).is_damaged() and QueueFile(small.store).read().entries == []


_OWN_FILES = {
    # Read where nobody else writes (the system's own files, the program's, what was just written), or behind a look
    # at what it is.
    "dlm_tui/cli/demo.py",
    "dlm_tui/cli/doctor.py",
    "dlm_tui/document/replacing.py",
    "dlm_tui/document/templates/texts.py",
    "dlm_tui/engine/handlers.py",
    "dlm_tui/export/live.py",
    "dlm_tui/export/live_check.py",
    "dlm_tui/export/reader_check.py",
    "dlm_tui/export/script_trial.py",
    "dlm_tui/files.py",
    "dlm_tui/model/identity.py",
    "dlm_tui/model/memory.py",
    "dlm_tui/model/pages.py",
    "dlm_tui/model/tensor_facts.py",
    "dlm_tui/platform.py",
    "dlm_tui/process_limits.py",
    "dlm_tui/store/journal.py",
    "dlm_tui/store/packs/writing.py",
    "dlm_tui/training/checkpoints.py",
}


def test_every_other_file_is_read_through_one_door() -> None:
    found = set()
    for path in _PROGRAM.rglob("*.py"):
        if any(map(_reads, ast.walk(ast.parse(path.read_bytes())))):
            found.add(path.relative_to(_PROGRAM.parent).as_posix())
    assert found == _OWN_FILES


def _reads(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr in ("read_bytes", "read_text"):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "open"
        and any(isinstance(given, ast.Constant) and given.value in ("r", "rb") for given in node.args)
    )
