"""How much memory there is: what groups of processes and the shell's limits leave, and what is said without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlm_tui import process_limits, system_errors
from dlm_tui.model import memory
from dlm_tui.model.memory import address_room, refuse_narrow_limits
from dlm_tui.model.registry import BaseUnavailable
from dlm_tui.process_limits import MemoryLimit
from dlm_tui.system_errors import system_sentence, unforeseen_sentence
from tests.tiny_models import write_tiny_base

FREE = 50 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of groups, on a machine with `FREE` bytes and a shell without limits."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setattr(memory, "memory_limits", list)
    return tmp_path


def second(folder: Path, limit: str, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\n")


def first(folder: Path, limit: int, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def test_without_groups_it_is_what_the_system_says(groups: Path) -> None:
    assert memory.available_memory() == FREE
    (groups / "own").write_text("0::/user.slice\n")
    assert memory.available_memory() == FREE
    second(groups / "user.slice", "max", 5)
    assert memory.available_memory() == FREE


@pytest.mark.parametrize("narrow", ["a", "a/b", "a/b/c", ""])
def test_every_group_above_the_own_one_counts(groups: Path, narrow: str) -> None:
    (groups / "own").write_text("0::/a/b/c\n")
    for place in ("", "a", "a/b", "a/b/c"):
        second(groups / place, "max" if place != narrow else "9000", 1000, 300)
    assert memory.available_memory() == 9000 - 1000 + 300
    second(groups / narrow, "500", 1000)
    assert memory.available_memory() == 0


@pytest.mark.parametrize("narrow", ["jobs/mine", "jobs", ""])
def test_groups_of_the_first_kind_count(groups: Path, narrow: str) -> None:
    (groups / "own").write_text("9:name=systemd:/x\n4:cpu,memory:/jobs/mine\n1:cpu:/y\n0::/\n")
    for place in ("", "jobs", "jobs/mine"):
        first(groups / "memory" / place, 1 << 63 if place != narrow else 9000, 1000, 300)
    assert memory.available_memory() == 9000 - 1000 + 300
    second(groups / "unified", "700", 100)  # beside them there may be one of the second
    assert memory.available_memory() == 600


def test_a_container_shows_its_own_group_as_the_topmost(groups: Path) -> None:
    (groups / "own").write_text("0::/../../elsewhere/pod\n")
    second(groups, "9000", 1000)
    assert memory.available_memory() == 8000


def test_limits_of_the_shell_count(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [MemoryLimit(9000, 2000, "ulimit -v"), MemoryLimit(9000, 4000, "ulimit -d")]
    monkeypatch.setattr(memory, "memory_limits", lambda: limits)
    assert memory.available_memory() == 5000


def test_files_that_are_mapped_are_memory_to_one_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    least = memory._LEAST
    limits = [MemoryLimit(5 * least, least, "ulimit -v"), MemoryLimit(3 * least, least, "ulimit -d")]
    monkeypatch.setattr(memory, "memory_limits", lambda: limits)
    refuse_narrow_limits(least, 2 * least)
    assert address_room(2 * least) == least and address_room(9 * least) == 0
    with pytest.raises(BaseUnavailable, match=r"for this base: .*1\.8 GB \(ulimit -v\).* at least 2\.1 GB"):
        refuse_narrow_limits(least, 3 * least)
    with pytest.raises(BaseUnavailable, match=r"1\.1 GB \(ulimit -d\).* at least 1\.4 GB"):
        refuse_narrow_limits(2 * least)
    monkeypatch.setattr(memory, "memory_limits", list)
    refuse_narrow_limits(FREE, FREE)
    assert address_room(FREE) > FREE


def test_an_error_under_a_narrow_limit_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    primitive = RuntimeError("could not create a primitive")
    monkeypatch.setattr(system_errors, "narrow_limit", lambda: None)
    assert system_sentence(primitive) == (
        "there is not enough memory for this; close other programs or use a smaller base"
    )
    assert unforeseen_sentence(ImportError("no X")) == "ImportError: no X (--debug shows more)"
    monkeypatch.setattr(system_errors, "narrow_limit", lambda: MemoryLimit(2 << 30, 3 << 29, "ulimit -v"))
    assert (
        system_sentence(primitive)
        == system_sentence(MemoryError())
        == (
            "there is not enough memory for this: the process may take 2.1 GB (ulimit -v) and has 1.6 GB; raise"
            " that limit, or use a smaller base"
        )
    )
    assert "ImportError: no X; it may be the limit of 2.1 GB" in unforeseen_sentence(ImportError("no X"))
    assert system_sentence(RuntimeError("could not create a primitive descriptor for a convolution")) is None


_LIMITED = """
import resource, sys
from pathlib import Path
import dlm_tui.model.base as bases
from dlm_tui.model.registry import resolve_base
from dlm_tui.process_limits import memory_limits
from dlm_tui.progress import run_to_end
assert memory_limits() == []
pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
taken = pages[{"RLIMIT_AS": 0, "RLIMIT_DATA": 5}[sys.argv[2]]] * resource.getpagesize()
limit = taken + (int(sys.argv[3]) << 20)
resource.setrlimit(getattr(resource, sys.argv[2]), (limit, limit))
(found,) = memory_limits()
assert found.limit == limit and abs(found.taken - taken) < 16 << 20, (found, taken)
bases.stored_elements = lambda files: 1 << 30
try:
    run_to_end(bases.load_base(resolve_base("hf:a/b", Path(sys.argv[1])), device="cpu"))
except bases.BaseUnavailable as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced on Linux only")
@pytest.mark.parametrize(
    ("kind", "room", "text"),
    [
        ("RLIMIT_AS", 1500, "takes 4.3 GB of memory, and 1."),
        ("RLIMIT_DATA", 1500, "takes 4.3 GB of memory, and 1."),
        ("RLIMIT_AS", 200, "not enough memory for any base: the process may take "),
    ],
)
def test_a_base_is_refused_with_figures_under_a_real_limit(tmp_path: Path, kind: str, room: int, text: str) -> None:
    command = [sys.executable, "-c", _LIMITED, str(write_tiny_base(tmp_path / "base")), kind, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert text in done.stdout and len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced on Linux only")
def test_a_command_under_ulimit_ends_in_one_sentence(tmp_path: Path) -> None:
    document = tmp_path / "a.dlm"
    document.write_text("---\ndlm_id: 01JEXPXRTTESTSEXPXRTTESTSE\nbase_model: pocket\ntraining: {}\n---\n")
    command = f"ulimit -v 850000; exec {sys.executable} -m dlm_tui prompt {document} Hello --home {tmp_path / 'home'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "·" not in line] == [
        line for line in done.stderr.splitlines() if line.startswith("dlm-tui: there is not enough memory")
    ]
    assert "may take 0.9 GB (ulimit -v) and has" in done.stderr
    assert process_limits.narrow_limit() is None
