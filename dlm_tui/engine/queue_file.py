"""The line of jobs of one document: `queue/queue.json` in its store, ours alone. No torch here.

Jobs wait in it, one of them runs, and those that are over stay with their results. Whoever changes it holds its lock; a
runner (`queue_runner`) works it off and writes the events of each try beside it, so that a screen that comes back can
read what it missed. What was running when everything was killed still says so: the next runner takes it first.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from dlm_tui.engine.protocol import (
    Evaluated,
    Exported,
    ExportJob,
    Imported,
    ImportJob,
    JobRequest,
    SweepJob,
    Swept,
    Trained,
    TrainJob,
)
from dlm_tui.errors import UsageError
from dlm_tui.files import clear_scratch_of, remove, set_aside, write_atomic
from dlm_tui.small_files import is_no_file, read_file, read_head
from dlm_tui.store import Store, utc_seconds
from dlm_tui.store.locks import is_locked, named_lock

_LOCK_SECONDS = 10.0
_KEEP = 30
_RUNNER = "queue-runner"
_NUMBER = re.compile(rb'"(number|next)"\s*:\s*([0-9]{1,6})\b')
_JOB = re.compile(r"job-([0-9]{4,6})[-.].*")
_MOST_READ = 4 << 20
_log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
TAKEN_OUT = "taken out of the line"
"""How a job ended that was cancelled while it waited."""
OVER: tuple[State, ...] = ("done", "failed", "cancelled")


class Entry(msgspec.Struct, kw_only=True):
    """A job in line. Times are naive UTC seconds; `tries` counts how often it was started, `deaths` how often
    in a row its process was ended by somebody else.

    `stop` asks the runner to end it for good. `seen` says that a person was told how it ended.
    """

    number: int
    title: str
    request: JobRequest
    state: State = "waiting"
    added: str = ""
    began: str = ""
    ended: str = ""
    tries: int = 0
    deaths: int = 0
    stop: bool = False
    seen: bool = False
    summary: str = ""
    result: Trained | Evaluated | Exported | Swept | Imported | None = None

    @property
    def interrupted(self) -> bool:
        """Waits to go on: it was started before."""
        return self.state == "waiting" and self.tries > 0

    @property
    def goes_on(self) -> bool:
        """Whether another try goes on where the one before it was cut; other jobs begin again."""
        return isinstance(self.request, SweepJob) or (isinstance(self.request, TrainJob) and not self.request.gate_only)


class Line(msgspec.Struct, kw_only=True):
    """The file. `entries` are in the order in which they run; those that are over stand before the others.

    `paused` starts nothing and stops what runs, to go on later. `halt` asks the runner to leave for now. `stays` lets
    it go on when the screen that started it has gone.
    """

    format: int = 1
    next: int = 1
    paused: bool = False
    halt: bool = False
    stays: bool = False
    entries: list[Entry] = []

    @property
    def ahead(self) -> list[Entry]:
        """What is not over: the running one first, then the line."""
        return [entry for entry in self.entries if entry.state not in OVER]

    def find(self, number: int) -> Entry:
        """The job of that number. Raises UsageError, naming those there are."""
        for entry in self.entries:
            if entry.number == number:
                return entry
        known = ", ".join(str(entry.number) for entry in self.entries) or "none"
        raise UsageError(f"there is no job {number} in line; there are: {known}")


@dataclass(frozen=True)
class QueueFile:
    """Reads and changes the line of a store. Making this object touches nothing on disk."""

    store: Store

    @property
    def path(self) -> Path:
        """The file."""
        return self.store.queue_dir / "queue.json"

    def events(self, number: int, tries: int) -> Path:
        """What the job said in that try: wire events, a line each."""
        return self.path.with_name(f"job-{number:04d}-{tries}.jsonl")

    def receipt(self, number: int) -> str:
        """The file that a training leaves when its adapters are in force, relative to the store."""
        return (self.store.queue_dir / f"job-{number:04d}.receipt").relative_to(self.store.root).as_posix()

    def read(self, tell: Callable[[str], None] = _log.warning) -> Line:
        """The line as it is now; one that cannot be read is set aside, `tell` hears so, and it is begun anew.

        Raises OSError.
        """
        line = self._decoded()
        if line is None:
            aside = set_aside(self.path)
            kept = f"is kept as {aside.name}" if aside is not None else "cannot be given another name"
            tell(
                f"{self.path} is no line of jobs: it {kept}, and a new one begins; put what waited in it in line again"
            )
        return line or Line(next=self._unused())

    def is_damaged(self) -> bool:
        """Whether there is a line that cannot be read. Raises OSError."""
        return self._decoded() is None

    def _decoded(self) -> Line | None:
        """None for a file that is no line; an empty one where there is none."""
        try:
            return msgspec.json.decode(read_file(self.path), type=Line)
        except (FileNotFoundError, NotADirectoryError):
            return Line(next=self._unused())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        except OSError as error:
            if is_no_file(error):
                return None
            raise

    def _unused(self) -> int:
        """The first number that no job had whose words are still beside the line, or which a damaged line names."""
        numbers = [0]
        with contextlib.suppress(OSError):
            for path in self.path.parent.iterdir():
                if match := _JOB.fullmatch(path.name):
                    numbers.append(int(match[1]))
                elif path.name.startswith(f"{self.path.stem}.damaged") and path.is_file():
                    found = _NUMBER.findall(read_head(path, _MOST_READ))
                    numbers += [int(number) - (key == b"next") for key, number in found]
        return max(numbers) + 1

    @contextlib.contextmanager
    def change(self) -> Iterator[Line]:
        """The line to change; it is written when the block ends well. Raises LockHeld, StoreError, OSError."""
        with named_lock(self.store, "queue", _LOCK_SECONDS):
            clear_scratch_of(self.path)
            line = self.read()
            yield line
            self._forget_old(line)
            write_atomic(self.path, msgspec.json.format(msgspec.json.encode(line), indent=1))

    @contextlib.contextmanager
    def working(self, seconds: float = 0.0) -> Iterator[None]:
        """Be the one who works the line off. Raises LockHeld when somebody else does."""
        with named_lock(self.store, _RUNNER, seconds, lambda store: f"the line of {store.root} is worked off"):
            yield

    def is_worked_off(self) -> bool:
        """Whether a runner lives; asks without writing anything. Raises StoreError."""
        return self.path.exists() and is_locked(self.store, _RUNNER)

    # ---- what a person does with it ----

    def add(self, request: JobRequest, title: str) -> Entry:
        """Put a job at the end of the line; the entry with its number."""
        with self.change() as line:
            if isinstance(request, TrainJob):
                request = msgspec.structs.replace(request, receipt=self.receipt(line.next))
            entry = Entry(number=line.next, title=title, request=request, added=utc_seconds())
            line.next += 1
            line.entries.append(entry)
        return entry

    def cancel(self, number: int) -> Entry:
        """Take a waiting job out of the line for good, or have the running one stopped. Raises UsageError."""
        with self.change() as line:
            entry = line.find(number)
            if entry.state in OVER:
                raise UsageError(f"job {number} is over: {entry.state}")
            entry.stop = True
            if entry.state == "waiting":
                entry.state, entry.ended, entry.seen = "cancelled", utc_seconds(), True
                entry.summary = TAKEN_OUT
            return entry

    def move(self, number: int, to: int) -> None:
        """Give a waiting job another place among those that wait, counted from 1. Raises UsageError."""
        with self.change() as line:
            _place(line, number, lambda place: to - 1)

    def shift(self, number: int, by: int) -> None:
        """Let a waiting job wait for so many more, or fewer, than it does at this moment. Raises UsageError."""
        with self.change() as line:
            _place(line, number, lambda place: place + by)

    def pause(self, paused: bool) -> None:
        """Hold the line, or let it go on; the runner sees it."""
        with self.change() as line:
            line.paused = paused

    def leave(self, *, stays: bool) -> None:
        """A screen leaves: the runner goes on without it, or stops what runs so that it can go on another time."""
        with self.change() as line:
            line.stays, line.halt = stays, not stays

    def mark_seen(self) -> None:
        """A person was told how the jobs ended."""
        if any(entry.state in OVER and not entry.seen for entry in self.read().entries):
            with self.change() as line:
                for entry in line.entries:
                    entry.seen = entry.seen or entry.state in OVER

    def _forget_old(self, line: Line) -> None:
        over = [entry for entry in line.entries if entry.state in OVER]
        for entry in over[:-_KEEP] if len(over) > _KEEP else []:
            line.entries.remove(entry)
            for path in self.path.parent.glob(f"job-{entry.number:04d}*"):
                remove(path)


def _place(line: Line, number: int, to: Callable[[int], int]) -> None:
    """Put a waiting job where `to` says for the place it has among those that wait, from 0. Raises UsageError."""
    entry = line.find(number)
    waiting = [other for other in line.entries if other.state == "waiting"]
    if entry not in waiting:
        raise UsageError(f"job {number} does not wait: {entry.state}")
    place = to(waiting.index(entry))
    waiting.remove(entry)
    waiting.insert(max(0, min(place, len(waiting))), entry)
    line.entries = [other for other in line.entries if other.state != "waiting"] + waiting


def kind_of(request: JobRequest) -> Literal["train", "evaluate", "export", "sweep", "import"]:
    """Which kind of job a request is for."""
    match request:
        case TrainJob():
            return "train"
        case ExportJob():
            return "export"
        case SweepJob():
            return "sweep"
        case ImportJob():
            return "import"
        case _:
            return "evaluate"
