"""Children are started in one way, and take no code from the folder that they are started in."""

from __future__ import annotations

import ast
import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlm_tui
from dlm_tui.app.server_process import ServerProcess, server_words
from dlm_tui.app.web import child_command
from dlm_tui.child import forget_working_folder, module_words, python_words
from dlm_tui.engine.process import ChildProcess
from dlm_tui.engine.queue_client import start_runner
from dlm_tui.engine.queue_file import QueueFile
from dlm_tui.errors import DlmTuiError
from dlm_tui.export.parity import ParityJob, runtime_answers
from dlm_tui.export.requests import ExportRefused
from dlm_tui.model.chat import TemplateWorker
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(dlm_tui.__file__).parent
HOME = PACKAGE / "child.py"
FOREIGN = ("jinja2", "msgspec", "numpy", "platform", "prompt_toolkit", "random", "textual", "torch", "transformers")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files that are called as libraries are; `ran` is there once one of them ran."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in FOREIGN:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nraise SystemExit('foreign')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(ROOT), str(ROOT / "widgets"), ""]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def names_python(tree: ast.AST) -> bool:
    """Whether it takes the path of Python from `sys`."""
    return any(
        (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.executable", "sys._base_executable"))
        or (isinstance(node, ast.ImportFrom) and node.module == "sys" and node.names[0].name == "executable")
        for node in ast.walk(tree)
    )


def test_one_file_says_how_a_python_is_started() -> None:
    found = [path for path in sorted(PACKAGE.rglob("*.py")) if names_python(ast.parse(path.read_bytes()))]
    assert found == [HOME]
    assert python_words("-c", "pass") == [sys.executable, "-P", "-c", "pass"]
    assert module_words("dlm_tui", "serve") == python_words(str(HOME), "dlm_tui", "serve")


def test_the_folder_would_be_dangerous(hostile: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import msgspec"], capture_output=True, text=True)
    assert done.stderr == "foreign\n" and (hostile / "ran").exists()


async def speaks(module: str) -> None:
    child = ChildProcess(module)
    await child.start()
    await child.close()


def runner_ends() -> None:
    queue = QueueFile(Store(Path.cwd().parent / "home", "01" + "0" * 24))
    queue.path.parent.mkdir(parents=True)
    runner = start_runner(queue)
    assert runner.stdin is not None
    runner.stdin.close()
    assert runner.wait() == 0, queue.path.with_name("runner.log").read_text()


def server_says() -> None:
    words = server_words(Path("no-such.dlm"), Path("home"), None, 0, 0)
    with pytest.raises(DlmTuiError, match=r"no-such\.dlm"):
        asyncio.run(ServerProcess.start(words))


def screen_says() -> None:
    command = shlex.split(child_command(Path("no-such.dlm"), Path("home"), None))
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: dlm-tui" in done.stdout, done.stderr


def runtime_says() -> None:
    job = ParityJob(runtime="transformers", model=Path("no-such"), prompts=[[1]], dtype="f32", vocab=8)
    with pytest.raises(ExportRefused, match="the runtime cannot use the export"):
        run_to_end(runtime_answers(job))


def template_is_rendered() -> None:
    forget_working_folder()  # as the program does when it begins: the worker is a plain file
    worker = TemplateWorker()
    try:
        assert worker.render("{{ 1 + 1 }}", [], generate=True, variables={}) == "2"
    finally:
        worker.close()


STARTS: dict[str, Callable[[], Any]] = {
    "engine": lambda: asyncio.run(speaks("dlm_tui.engine.server")),
    "job": lambda: asyncio.run(speaks("dlm_tui.engine.job_worker")),
    "runner": runner_ends,
    "server": server_says,
    "screen in a browser": screen_says,
    "runtime": runtime_says,
    "chat templates": template_is_rendered,
}


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_child_runs_no_code_from_its_working_folder(hostile: Path, start: Callable[[], Any]) -> None:
    start()
    assert not (hostile / "ran").exists()


@pytest.mark.slow
def test_the_command_itself_runs_none_either(hostile: Path) -> None:
    """`python -m` has the folder on its path before anything of this program runs."""
    done = subprocess.run([sys.executable, "-m", "dlm_tui", "check", "no-such.dlm"], capture_output=True, text=True)
    assert "no-such.dlm" in done.stderr and not (hostile / "ran").exists()


def test_a_checkout_that_is_on_no_path_starts_itself(tmp_path: Path) -> None:
    """As `python -m dlm_tui` in it: its children are of the same copy, wherever they are started."""
    copy = tmp_path / "dlm_tui"
    copy.mkdir()
    for name, text in {"__init__.py": "", "child.py": HOME.read_text(), "said.py": "print(__file__)"}.items():
        (copy / name).write_text(text)
    words = [sys.executable, "-P", str(copy / "child.py"), "dlm_tui.said"]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == f"{copy / 'said.py'}\n"


def test_what_pythonpath_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ["", str(tmp_path), "/elsewhere"]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}.")
    forget_working_folder()
    assert sys.path == path
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}")
    forget_working_folder()
    assert sys.path == ["/elsewhere"]


def test_a_folder_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    forget_working_folder()
