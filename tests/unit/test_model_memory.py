"""How much memory there is: what groups of processes and the shell's limits leave, and what is said without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from dlm_tui import process_limits, system_errors
from dlm_tui.model import load_base, memory, weights_plan
from dlm_tui.model.memory import at_least, at_most, gigabytes, limits_room, refuse_narrow_limits
from dlm_tui.model.registry import BaseUnavailable, resolve_base
from dlm_tui.process_limits import MemoryLimit
from dlm_tui.progress import run_to_end
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
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    limits = [MemoryLimit(5 * least, least, "ulimit -v"), MemoryLimit(3 * least, least, "ulimit -d")]
    monkeypatch.setattr(memory, "memory_limits", lambda: limits)
    refuse_narrow_limits(least, 2 * least)
    assert limits_room(2 * least) == least and limits_room(9 * least) == 0
    with pytest.raises(BaseUnavailable, match=r"for this base: .*2\.2 GB \(ulimit -v\).* at least 2\.7 GB, take less$"):
        refuse_narrow_limits(least, 3 * least, "take less")
    with pytest.raises(BaseUnavailable, match=r"1\.3 GB \(ulimit -d\).* at least 1\.8 GB, take less$"):
        refuse_narrow_limits(2 * least, 0, "take less")
    monkeypatch.setattr(memory, "memory_limits", list)
    refuse_narrow_limits(FREE, FREE)
    assert limits_room(FREE) > FREE


def test_torch_counts_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [MemoryLimit(1_000_000_000, 50_000_000, "ulimit -v")]
    monkeypatch.setattr(memory, "memory_limits", lambda: limits)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    refuse_narrow_limits()
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(
        BaseUnavailable, match=r"any base: .* raise that limit to 1\.2 GB and what the base itself takes$"
    ):
        refuse_narrow_limits()


@pytest.mark.parametrize("there", [1_900_000_256, 1_949_999_999, 999_999_999, 94_900_000, 1_049, 7])
def test_what_is_needed_is_never_called_what_is_there(there: int) -> None:
    """Each is rounded away from the other, and what is raised to the figure suffices."""
    needed = there + 1
    assert at_least(needed) != at_most(there)
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1}
    for text, side in ((at_least(needed), 1), (at_most(there), -1)):
        number, unit = text.split()
        assert side * float(number) * units[unit] >= side * (needed if side == 1 else there)
    assert gigabytes(1_949_999_999) == "1.9 GB" and gigabytes(1_950_000_001) == "2.0 GB"


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
from dlm_tui.model import base_loading, weights_plan
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
weights_plan.stored_elements = lambda files: 1 << 30
try:
    run_to_end(base_loading.load_base(resolve_base("hf:a/b", Path(sys.argv[1])), device="cpu"))
except base_loading.BaseUnavailable as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced on Linux only")
@pytest.mark.parametrize(
    ("kind", "room", "text"),
    [
        ("RLIMIT_AS", 1500, "not enough memory for this base: the process may take "),
        ("RLIMIT_DATA", 1500, "not enough memory for this base: the process may take "),
        ("RLIMIT_AS", 200, "not enough memory for this base: the process may take "),
    ],
)
def test_a_base_is_refused_with_figures_under_a_real_limit(tmp_path: Path, kind: str, room: int, text: str) -> None:
    command = [sys.executable, "-c", _LIMITED, str(write_tiny_base(tmp_path / "base")), kind, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert text in done.stdout and len(done.stdout.splitlines()) == 1
    assert (", keep it in 4 bits" in done.stdout) == (room == 1500)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced on Linux only")
@pytest.mark.parametrize("limit", [850_000, 500_000])  # the libraries themselves find no room in the smaller one
def test_a_command_under_ulimit_ends_in_one_sentence(tmp_path: Path, limit: int) -> None:
    document = tmp_path / "a.dlm"
    document.write_text("---\ndlm_id: 01JEXPXRTTESTSEXPXRTTESTSE\nbase_model: pocket\ntraining: {}\n---\n")
    command = f"ulimit -v {limit}; exec {sys.executable} -m dlm_tui prompt {document} Hello --home {tmp_path / 'home'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "·" not in line] == [
        line for line in done.stderr.splitlines() if line.startswith("dlm-tui: there is not enough memory")
    ]
    assert f"may take {at_most(limit * 1024)} (ulimit -v) and has" in done.stderr
    assert process_limits.narrow_limit() is None


_CHILDREN = """
import asyncio, sys
from dlm_tui.engine.job_client import ChildJob
from dlm_tui.engine.process import ChildProcess, EngineGone
from dlm_tui.engine.protocol import TrainJob

async def main():
    try:
        await ChildProcess("dlm_tui.engine.server").start()
    except EngineGone as error:
        print(error)
    job = ChildJob(TrainJob(document=sys.argv[1], home=sys.argv[2]))
    await job.start()
    async for event in job.events():
        print(event.text)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced on Linux only")
def test_children_under_ulimit_say_so_before_they_load_libraries(tmp_path: Path) -> None:
    document = tmp_path / "a.dlm"
    document.write_text("---\ndlm_id: 01JEXPXRTTESTSEXPXRTTESTSE\nbase_model: pocket\ntraining: {}\n---\n")
    words = [sys.executable, "-c", _CHILDREN, str(document), str(tmp_path / "home")]
    command = ["bash", "-c", 'ulimit -v 500000; exec "$@"', "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    engine, job = done.stdout.splitlines()
    said = "there is not enough memory for any base: the process may take 0.5 GB (ulimit -v) and has"
    assert engine.startswith(f"the engine did not start: {said}")
    assert job.startswith(said)


def test_a_base_without_room_under_a_limit_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its weights have no room beside what loading takes, though as much is free; the figure that is said is of
    what will be done."""
    folder = write_tiny_base(tmp_path / "base")
    file = folder / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    size = file.stat().st_size
    source = msgspec.structs.replace(resolve_base("hf:a/b", folder), offload=tmp_path / "disk")

    def opened(room: int) -> bool:
        limit = MemoryLimit(memory._LEAST + room, 0, "ulimit -v")
        monkeypatch.setattr(memory, "memory_limits", lambda: [limit])
        return run_to_end(load_base(source, device="cpu")).is_offloaded

    assert not opened(4 * size)
    assert opened(3 * size)
    with pytest.raises(BaseUnavailable, match=re.escape(f"to at least {memory.at_least(memory._LEAST + 2 * size)}")):
        opened(2 * size - 1)


def test_a_limit_is_looked_at_before_the_library_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes would count twice, and the figure would be another one at each try."""
    folder = write_tiny_base(tmp_path / "base")
    file = folder / "model.safetensors"
    save_file({name: weight.bfloat16() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    least = memory._LEAST + 2 * file.stat().st_size
    monkeypatch.setattr(memory, "memory_limits", lambda: [MemoryLimit(least - 1, 0, "ulimit -v")])
    monkeypatch.setattr(weights_plan, "bytes_beside", None)
    with pytest.raises(BaseUnavailable, match=re.escape(f"to at least {memory.at_least(least)}")):
        run_to_end(load_base(resolve_base("hf:a/b", folder), device="cpu", as_stored=True))
