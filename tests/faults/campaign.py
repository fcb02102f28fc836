"""Kills, processes at once, damaged files and full disks on small stores, counted.

    python -m tests.faults.campaign                        # 1,000 kills, 200 rounds, 2,000 damaged, 50 full disks
    python -m tests.faults.campaign --scale 0.02 --seed 7  # a fiftieth of it

Every case starts from a good store, does to it what may happen, and asks what must hold: nothing that was acknowledged
is lost, nothing that belongs together is of different trainings, no damaged file is taken for a good one, every refusal
is a sentence of the program, nothing takes more than five seconds, and the next training works and leaves no litter.
No torch: `tests/faults/small_store.py` changes a store by the same functions as the program. Exit 1 when anything is
counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.faults.damage import damage, in_force
from tests.faults.small_store import NAMES, SmallStore, Told
from tests.faults.stepping import KILLED, Child, Ended, run_child

HANG_SECONDS = 5.0
KINDS = ("lost", "mixed", "silent", "raw", "hangs", "litter")
# Errors of the program, each one sentence; everything else that reaches the top is a raw one.
_SENTENCES = ("dlm_tui.",)
Operation = Callable[[SmallStore, str, Told, random.Random], None]
OPERATIONS: dict[str, Operation] = {
    "train": lambda small, token, told, chance: small.train(token, told, chance),
    "gate": lambda small, token, told, _: small.gate(token, told),
    "label": lambda small, token, told, _: small.label(token, told),
    "use": lambda small, _, told, __: small.use(told),
    "export": lambda small, token, told, _: small.export(token, told),
}


@dataclass
class Tally:
    """Cases by what was done, and findings by kind; every finding is one line."""

    cases: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    refused: int = 0
    slowest: float = 0.0

    def add(self, kind: str, case: str, text: str) -> None:
        self.found[kind].append(f"{case}: {text}")

    def ended(self, case: str, ended: Ended, *, full: bool = False) -> None:
        """Judge how a child ended; a full disk may be told as the system's error that names it."""
        self.slowest = max(self.slowest, ended.seconds)
        if ended.seconds > HANG_SECONDS:
            self.add("hangs", case, f"{ended.seconds:.1f} s")
        if ended.code == 1:
            self.refused += 1
            sentence = ended.error.startswith(_SENTENCES) or (full and "no space" in ended.error.lower())
            if not sentence:
                self.add("raw", case, ended.error)


class Campaign:
    """One run of it, with its own folder and its own chance."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance, self.tally = folder, random.Random(seed), Tally()
        self._number = 0
        self.template = SmallStore(folder / "template").make()
        # Children are forks: what they need is imported here once.
        _work_on(self.fresh(), str, self.chance)

    def fresh(self, folder: Path | None = None) -> SmallStore:
        """A copy of the good store."""
        self._number += 1
        root = (folder or self.folder) / f"case{self._number}"
        shutil.copytree(self.template.root, root, copy_function=shutil.copyfile)
        return SmallStore(root)

    # ---- kills -----------------------------------------------------------------------------------------------------

    def kills(self, count: int) -> None:
        """At every step of every operation in turn, and at random moments, until there were `count`."""
        done = 0
        while done < count:
            for name in OPERATIONS:
                small = self.fresh()
                steps = self._operate(small, name, "probe").steps
                self._forget(small)
                for step in range(1, steps + 1):
                    if done < count:
                        done += self._kill(name, step=step)
            for _ in range(count // 4):
                if done < count:  # some are done before they are killed, and do not count
                    done += self._kill(self.chance.choice(list(OPERATIONS)), after=self.chance.random() * 0.05)

    def _kill(self, name: str, *, step: int | None = None, after: float | None = None) -> int:
        small = self.fresh()
        case = f"kill {name} at {'step ' + str(step) if step else f'{(after or 0) * 1000:.1f} ms'}"
        ended = self._operate(small, name, "killed", kill_at=step, kill_after=after)
        self.tally.ended(case, ended)
        self.judge(case, small, ended.acknowledged)
        self._forget(small)
        self.tally.cases["kills"] += ended.code == KILLED
        return int(ended.code == KILLED)

    # ---- processes at once -----------------------------------------------------------------------------------------

    def mixed(self, rounds: int) -> None:
        """Four processes on one store, each doing two things; in every third round one of them is killed."""
        names = [*OPERATIONS, "look"]
        small = self.fresh()
        acknowledged: list[str] = []
        for number in range(rounds):
            if number % 20 == 0:
                self._forget(small)
                small, acknowledged = self.fresh(), []
            plan = [[self.chance.choice(names) for _ in range(2)] for _ in range(4)]
            children = [
                Child(partial(self._several, small, operations, f"r{number}p{place}"))
                for place, operations in enumerate(plan)
            ]
            if number % 3 == 0:
                time.sleep(self.chance.random() * 0.1)
                children[0].kill()
            ends = [child.wait(60.0) for child in children]
            case = f"round {number} {plan}"
            for ended in ends:
                # Two things in turn, each of which may wait for the three others.
                self.tally.ended(case, Ended(ended.code, [], ended.error, 0, ended.seconds / 2))
                acknowledged += ended.acknowledged
            self.judge(case, small, acknowledged)
            self.tally.cases["rounds"] += 1
        self._forget(small)

    def _several(self, small: SmallStore, names: list[str], token: str, told: Told) -> None:
        from dlm_tui.store import LockHeld

        for place, name in enumerate(names):
            if name == "look":
                small.look(told)
                continue
            try:
                OPERATIONS[name](small, f"{token}n{place}", told, random.Random(token))
            except LockHeld as error:
                if "another run is training" not in str(error):  # the right answer to a second training
                    raise

    # ---- damaged files ---------------------------------------------------------------------------------------------

    def damaged(self, count: int) -> None:
        """One file of a good store changed; what is then in force is what was, or it is refused."""
        for _ in range(count):
            small = self.fresh()
            good = in_force(small)
            case = f"damaged {damage(small, self.chance)}"
            ended = run_child(partial(_compare, small, good))
            self.tally.ended(case, ended)
            for line in ended.acknowledged:
                self.tally.add("silent", case, line)
            after = run_child(lambda told, small=small: _work_on(small, told, self.chance))
            self.tally.ended(f"{case}, then work", after)
            self.tally.cases["damaged"] += 1
            self._forget(small)

    # ---- full disks ------------------------------------------------------------------------------------------------

    def full(self, count: int) -> None:
        """No space from some step on, or a disk with a few kB left; with space again all works and nothing is lost."""
        small_disk = _tiny_disk(self.folder / "disk")
        if small_disk is None:
            print("full: no small disk can be mounted here; the steps alone say that it is full", file=sys.stderr)
        for number in range(count):
            name = list(OPERATIONS)[number % len(OPERATIONS)]
            real = small_disk is not None and number % 2 == 1
            small = self.fresh(small_disk if real else None)
            case = f"full disk in {name}" + (" (a small disk)" if real else "")
            if real and small_disk is not None:
                filler = small_disk / "filler"
                _fill(filler, leave=self.chance.randrange(0, 96 << 10))
                ended = self._operate(small, name, "full")
                filler.unlink()
            else:
                ended = self._operate(small, name, "full", full_at=self.chance.randint(1, 40))
            self.tally.ended(case, ended, full=True)
            self.judge(case, small, ended.acknowledged)
            self.tally.cases["full disks"] += 1
            self._forget(small)
        if small_disk is not None:
            subprocess.run(["umount", str(small_disk)], check=False)

    # ---- what must hold --------------------------------------------------------------------------------------------

    def judge(self, case: str, small: SmallStore, acknowledged: list[str]) -> None:
        """Ask the store, as the next process that opens it would; then train once more, and look for litter."""

        def ask(told: Told) -> None:
            for text in small.mixed():
                told(f"mixed {text}")
            for text in small.lost(acknowledged):
                told(f"lost {text}")

        def go_on(told: Told) -> None:
            small.train("after", told, random.Random(0))
            small.label("after", told)
            small.gate("after", told)
            small.export("after", told)
            for text in [*small.mixed(), *small.lost(acknowledged)]:
                told(f"lost afterwards {text}")
            for text in small.litter():
                told(f"litter {text}")

        for work in (ask, go_on):
            ended = run_child(work)
            self.tally.ended(f"{case}, then {work.__name__}", ended)
            if ended.code == 1:
                self.tally.add("lost", case, f"the store is of no use: {ended.error}")
            for line in ended.acknowledged:
                kind, _, text = line.partition(" ")
                if kind in KINDS:
                    self.tally.add(kind, case, text)

    def _operate(self, small: SmallStore, name: str, token: str, **how: float | int | None) -> Ended:
        operation, seed = OPERATIONS[name], self.chance.random()
        return run_child(lambda told: operation(small, token, told, random.Random(seed)), **how)  # type: ignore[arg-type]

    def _forget(self, small: SmallStore) -> None:
        shutil.rmtree(small.root, ignore_errors=True)


def _tiny_disk(folder: Path) -> Path | None:
    """A file system of 8 MiB mounted at `folder`, or None where this user may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return None
    return folder if done.returncode == 0 else None


def _fill(path: Path, leave: int) -> None:
    """Take all space but `leave` bytes."""
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(b"\0" * 4096)
    with path.open("r+b") as handle:
        handle.truncate(max(0, path.stat().st_size - leave))


def _compare(small: SmallStore, good: dict[str, str], told: Told) -> None:
    """What a session takes for good: anything other than before is a silent change."""
    for name, value in in_force(small).items():
        if good.get(name) != value:
            told(f"{name} is taken for good")


def _work_on(small: SmallStore, told: Told, chance: random.Random) -> None:
    """Reports, a training and a gate on a store with one damaged file."""
    from dlm_tui.cli.show_report import show_report
    from dlm_tui.document import load
    from dlm_tui.store.examine import examine

    document = load(small.document)
    examine(small.store, NAMES)
    show_report(small.store.home, document)
    small.gate("again", told)
    small.train("again", told, chance)


def run(folder: Path, seed: int, scale: float) -> Tally:
    """All four parts, each `scale` times its full size."""
    campaign = Campaign(folder, seed)
    for part, size in ((campaign.kills, 1000), (campaign.mixed, 200), (campaign.damaged, 2000), (campaign.full, 50)):
        began = time.monotonic()
        part(max(1, round(size * scale)))
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return campaign.tally


def main() -> int:
    """Print the figures; 1 when anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # flushes cost nothing there
    with tempfile.TemporaryDirectory(prefix="dlm-tui-campaign-", dir=memory) as folder:
        tally = run(Path(folder), args.seed, args.scale)
    figures = {
        **tally.cases,
        "refused with a sentence": tally.refused,
        "slowest, seconds": round(tally.slowest, 2),
        **{kind: len(lines) for kind, lines in tally.found.items()},
    }
    print(json.dumps(figures) if args.json else "\n".join(f"{name:<26}{value}" for name, value in figures.items()))
    for kind, lines in tally.found.items():
        for line, times in Counter(lines).most_common(40):
            print(f"{kind}: {line}" + (f"  ({times} times)" if times > 1 else ""), file=sys.stderr)
    return 1 if any(tally.found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
