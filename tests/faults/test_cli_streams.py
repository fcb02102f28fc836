"""Standard streams that are closed, full, gone or not UTF-8; control characters on the way to a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlm_tui.cli.interrupt import interruptible
from dlm_tui.cli.launch import need_terminal
from dlm_tui.document import load
from dlm_tui.errors import UsageError
from dlm_tui.input import checked_text, read_prompt, read_prompts
from dlm_tui.store import MetricsWriter, Store, commit_version, new_version
from tests.training_samples import write_document

PROGRAM = [sys.executable, "-m", "dlm_tui"]


def shell(script: str, *arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which `$d` is the program and $1 … are the arguments."""
    script = f'd() {{ "{sys.executable}" -m dlm_tui "$@"; }}; {script}'
    return subprocess.run(["bash", "-c", script, "x", *arguments], input=stdin, capture_output=True, timeout=300)


def clean(errors: bytes) -> bool:
    return b"Traceback" not in errors and b"Error" not in errors and b"\x1b" not in errors


@pytest.mark.parametrize("arguments", ["--help", "--version", "route --help"])
def test_a_reader_that_is_gone(arguments: str) -> None:
    done = shell(f"d {arguments} | true; echo ${{PIPESTATUS[0]}}")
    assert clean(done.stderr)
    assert done.stdout in (b"0\n", b"1\n")


def test_closed_streams(tmp_path: Path) -> None:
    done = shell("d --version >&-")
    assert done.returncode == 2
    assert b"standard output is closed" in done.stderr and clean(done.stderr)
    assert shell("d --version 2>&-").stdout.startswith(b"dlm-tui ")
    done = shell("d <&-")
    assert done.returncode == 2 and b"needs a terminal" in done.stderr
    done = shell("d prompt nothing.dlm <&-")
    assert done.returncode == 2 and b"the prompt is empty" in done.stderr
    # a file opened while stderr is closed must not get its number, or narration lands in it
    (tmp_path / "a.dlm").write_bytes(b"---\ndlm_id: bad\n---\n")
    before = (tmp_path / "a.dlm").read_bytes()
    assert shell(f"d parse {tmp_path}/a.dlm 2>&-").returncode == 3
    assert (tmp_path / "a.dlm").read_bytes() == before


def test_the_screen_wants_a_name_it_can_send(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.dlm"
    try:
        Path(os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    done = shell('d open "$1"', name)
    assert done.returncode == 1 and b"path that is UTF-8 text" in done.stderr and b"rename it" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_stdout_is_a_sentence(tmp_path: Path) -> None:
    document = write_document(tmp_path)
    sets = {"s": [f"{number} " + "x" * 999 for number in range(99)]}
    document.with_suffix(".prompts.json").write_text(json.dumps(sets))
    for command in ("--help", f"sets {document} export --set s"):  # less than a buffer, and more
        done = shell(f"d {command} > /dev/full")
        assert done.returncode == 1
        assert done.stderr == b"dlm-tui: standard output: no space is left on its disk; free some and do it again\n"


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ("PYTHONIOENCODING=ascii", "ascii"),
        ("PYTHONIOENCODING=latin-1", "latin-1"),
        ("LC_ALL=POSIX PYTHONUTF8=0", "ascii"),
    ],
)
def test_an_encoding_without_a_character_loses_no_output(tmp_path: Path, environment: str, encoding: str) -> None:
    done = shell(f"{environment} d export --help")
    assert done.returncode == 0 and clean(done.stderr)
    assert b"--target" in done.stdout and "Q,Q,…".encode(encoding, "backslashreplace") in done.stdout
    document = write_document(tmp_path)
    document.with_suffix(".prompts.json").write_text('{"s": ["Gr\u00fc\u00dfe – \u2192"]}', encoding="utf-8")
    done = shell(f'{environment} d sets "$1" export --set s', str(document))
    assert done.returncode == 0 and clean(done.stderr)
    assert "Grüße – →".encode(encoding, "backslashreplace") in done.stdout


def test_a_path_that_is_not_utf8_goes_out_as_it_came_in(tmp_path: Path) -> None:
    script = "from dlm_tui.output import put, streams_are_there; streams_are_there(); put('caf\\udce9 \\u2192 \\ud800')"
    for encoding, arrow in (("utf-8", "→".encode()), ("ascii", b"\\u2192"), ("latin-1", b"\\u2192")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment)
        assert done.stdout == b"caf\xe9 " + arrow + b" \\ud800\n", encoding


@pytest.mark.parametrize("module", ["dlm_tui.cli.main", "dlm_tui.cli.route"])
def test_an_interrupt_while_the_program_is_loaded_is_one_line(module: str) -> None:
    """It comes where a module is looked for; `python -m` and the installed command go through the same function."""
    script = f"""
import runpy, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
sys.argv = ["dlm-tui", "route", "x.dlm"]
runpy.run_module("dlm_tui", run_name="__main__", alter_sys=False)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (130, b"dlm-tui: cancelled\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("then", ["raise ImportError('no torch here')", "pass"], ids=["another error", "nothing"])
def test_an_interrupt_that_a_library_takes_for_something_else(tmp_path: Path, number: int, then: str) -> None:
    """As libraries do while they look what is installed beside them."""
    library = f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    {then}\n"
    (tmp_path / "torch.py").write_text(library)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*PROGRAM, "route", str(write_document(tmp_path)), "hello", "--home", str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (130, b"dlm-tui: cancelled\n")


def test_interrupts_are_as_before_behind_a_command() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interrupt_that_the_shell_had_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_of_the_screen_are_those_that_asyncio_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with interruptible():
        need_terminal()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_argparse_repeats_no_control_characters() -> None:
    done = shell('d route "$1" "$2" "$3"', b"--z\x1b[31m\xe2\x80\xae", b"b\xc2\x9b", b"c\x1b]0;x\x07")
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr and b"\xe2\x80\xae" not in done.stderr and b"\xc2\x9b" not in done.stderr
    assert b"\\x1b[31m\\u202e" in done.stderr


def test_prompts_are_utf8_whoever_reads_them() -> None:
    for command in ("prompt", "route", "score"):
        done = shell(f'd {command} nothing.dlm "$1"', b"Gr\xfc\xdfe")
        assert done.returncode == 2, command
        assert b"the prompt is not UTF-8 text (byte 0xfc at character 3)" in done.stderr
    done = shell('d label nothing.dlm "$1" --adapter a', b"Gr\xfc\xdfe")
    assert done.returncode == 2 and b"the prompt is not UTF-8" in done.stderr


class _Stdin:
    def __init__(self, lines: Sequence[bytes]) -> None:
        self.buffer = lines


def test_standard_input_is_read_as_utf8_without_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"\xef\xbb\xbfWhere?\r\n", "Grüße\n".encode(), b"\n", b"end"]
    monkeypatch.setattr(sys, "stdin", _Stdin(lines))
    assert list(read_prompts(None)) == ["Where?", "Grüße", "", "end"]
    assert read_prompt(None) == "Where?\nGrüße\n\nend"
    monkeypatch.setattr(sys, "stdin", _Stdin([b"good\n", b"caf\xe9\n"]))
    taken = read_prompts(None)
    assert next(taken) == "good"
    with pytest.raises(UsageError, match=r"line 2 of standard input is not UTF-8 text \(byte 0xe9 at 4\); convert it"):
        next(taken)
    monkeypatch.setattr(sys, "stdin", _Stdin([b"\xef\xbb\xbf \n"]))
    with pytest.raises(UsageError, match="the prompt is empty"):
        read_prompt(None)
    assert checked_text("naïve 🙂", "the prompt") == "naïve 🙂"


def test_data_on_a_terminal_holds_no_control_characters() -> None:
    script = "from dlm_tui.output import put; put('a\\x1b[31m\\u202eb\\tc\\nd')"
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stdout=follower, check=True)
    os.close(follower)
    assert os.read(leader, 1000).replace(b"\r\n", b"\n") == b"a\\x1b[31m\\u202eb\tc\nd\n"
    os.close(leader)
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert piped == "a\x1b[31m\u202eb\tc\nd\n".encode()


def test_facts_from_files_of_a_store_are_shown_not_sent(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    store = Store(tmp_path / "home", load(path).dlm_id)
    version = new_version(store, "facts")
    (version.path / "adapter_config.json").write_text('{"r": 4, "dlm_parameterization": "lora\\u001b[31m\\u202e"}')
    commit_version(store, version)
    done = shell('d adapter list "$1" --home "$2"', str(path), str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout and "\u202e".encode() not in done.stdout
    assert b"lora\\x1b[31m\\u202e" in done.stdout
    with MetricsWriter(store) as metrics:
        metrics.begin_run("sft\x1b[31m", 1)
    done = shell('d metrics "$1" --csv --home "$2"', str(path), str(tmp_path / "home"))
    assert b"sft\\x1b[31m" in done.stdout and b"\x1b" not in done.stdout
