"""Kills a process at every file-system step of changing adapter versions, and looks at what is left.

`python -m tests.faults.version_kills FOLDER` prints a JSON object: operation → kills. Raises AssertionError at the
first store that is neither as before nor as after. Processes are forked, so that a hundred kills take seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from dlm_tui.store import Store, current_version, new_version, read_manifest, seal_version, store_lock
from dlm_tui.store.adapter_history import drop_version, keep_version, use_versions, version_history
from dlm_tui.store.litter import clear_dead_versions
from dlm_tui.store.shared_files import write_shared
from dlm_tui.store.version_record import begin_record, damage, verify_version
from dlm_tui.store.versions import all_versions
from tests.adapter_versions import finished_training

NAMES = ("tone", "facts")
WORDS = "tokenizer.json"
STEPS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"})
KILLED = 77


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a fork that dies before its file-system step number `step`; False when it ended before that."""

    def until_then() -> None:
        die_at(step)
        work()

    return died(until_then)


def died(work: Callable[[], object]) -> bool:
    """Run `work` in a fork; whether it was killed on the way (`die_at`)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # a fork must not go on with the tests
            print(f"the work failed by itself: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED), f"exit code {status}"
    return status == KILLED


def die_at(step: int) -> None:
    """From here on, this process ends before its file-system step number `step`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in STEPS or (event == "open" and not _writes(arguments)):
            return
        seen += 1
        if seen == step:
            os._exit(KILLED)

    sys.addaudithook(hook)


def _writes(arguments: tuple[object, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return bool(isinstance(mode, str) and set(mode) & set("wxa+")) or bool(
        isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )


def every_kill(template: Path, folder: Path, work: Callable[[Store], object], check: Callable[[Store], None]) -> int:
    """Kill `work` at each of its steps, every time on a fresh copy of the store; how many kills that were."""
    step = 0
    while True:
        step += 1
        home = folder / f"home-{step}"
        shutil.copytree(template, home)
        store = Store(home, "01JEXPXRTTESTSEXPXRTTESTSE")
        killed = killed_at(step, lambda store=store: work(store))
        with store_lock(store, 5.0):
            pass  # the next who opens the store finishes or takes back what was begun
        check(store)
        shutil.rmtree(home)
        if not killed:
            return step - 1


def in_force(store: Store) -> dict[str, int]:
    """The versions in force, which must be whole and those that the manifest names."""
    found = {name: current_version(store, name) for name in NAMES}
    for version in found.values():
        assert version is not None
        verify_version(store, version)
    numbers = {name: version.version for name, version in found.items() if version is not None}
    manifest = read_manifest(store)
    assert manifest is not None and manifest.adapter_versions == numbers, (manifest, numbers)
    return numbers


def main(folder: Path) -> dict[str, int]:
    """All operations; the kills of each."""
    template = folder / "template"
    store = Store(template, "01JEXPXRTTESTSEXPXRTTESTSE").create()
    for run in (1, 3, 5):
        finished_training(store, *NAMES, run=run)

    def used(store: Store) -> None:
        assert in_force(store) in ({"tone": 3, "facts": 3}, {"tone": 1, "facts": 1})

    def dropped(store: Store) -> None:
        assert in_force(store) == {"tone": 3, "facts": 3}
        assert [one.version for one in version_history(store, NAMES)["tone"]] in ([1, 2, 3], [1, 3])

    def kept(store: Store) -> None:
        assert in_force(store) == {"tone": 3, "facts": 3}
        assert [one.version for one in version_history(store, NAMES)["tone"]] == [1, 2, 3]

    def shared(store: Store) -> None:
        """No file of the version that had the words is touched, and what was begun beside it is litter."""
        assert in_force(store) == {"tone": 3, "facts": 3}
        clear_dead_versions(store)
        begun = [version for version in all_versions(store, "facts") if any(version.path.iterdir())]
        assert not any(damage(version, all_files=True) for version in begun)
        assert (all_versions(store, "facts")[2].path / WORDS).read_bytes() == b"words"
        assert not list(store.adapters_dir.rglob("*.tmp.*"))

    (store.adapter_dir("facts") / "versions" / "v0003" / WORDS).write_bytes(b"words")
    begin_record(all_versions(store, "facts")[2])
    seal_version(all_versions(store, "facts")[2])
    return {
        "share": every_kill(template, folder, sharing, shared),
        "use": every_kill(template, folder, lambda store: use_versions(store, {"tone": 1, "facts": 1}), used),
        "drop": every_kill(template, folder, lambda store: drop_version(store, "tone", 2), dropped),
        "keep": every_kill(template, folder, lambda store: keep_version(store, "tone", 2), kept),
        "train": every_kill(template, folder, lambda store: finished_training(store, *NAMES, run=7), trained),
    }


def sharing(store: Store) -> None:
    """A version that has a file as another has it."""
    version = new_version(store, "facts")
    write_shared(store, version, lambda folder: (folder / WORDS).write_bytes(b"words"))
    assert (version.path / WORDS).stat().st_nlink == 2
    seal_version(version)


def trained(store: Store) -> None:
    """A training puts its versions in force one by one here; each must be whole, old or new."""
    for name in NAMES:
        version = current_version(store, name)
        assert version is not None and version.version in (3, 4)
        verify_version(store, version)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
