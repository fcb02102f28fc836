"""`dlm-tui queue DOC [ACTION]`: the document's line of jobs, to see and to drive without the screen."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.copyable import copyable
from dlm_tui.cli.path_option import given_path
from dlm_tui.errors import UsageError
from dlm_tui.input import is_utf8
from dlm_tui.output import emit, say, shown

if TYPE_CHECKING:
    from dlm_tui.engine.protocol import Event, JobRequest
    from dlm_tui.engine.queue_file import Entry, QueueFile

ACTIONS = {
    "list": "queue DOC [list]: what runs, what waits, what is over with its result",
    "pause": "queue DOC pause: stop what runs, to go on later; nothing starts",
    "resume": "queue DOC resume: go on, in a process of its own",
    "cancel": "queue DOC cancel N: take job N out of the line, or stop it (`train --resume` goes on with a training)",
    "move": "queue DOC move N M: let job N be the M-th of those that wait",
    "run": "queue DOC run: work the line off here; Ctrl+C stops it, to go on later",
    "add": "queue DOC add train|gate|eval|export|sweep [options]: put a job at the end of the line",
}
JOBS = ("train", "gate", "eval", "export", "sweep")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action, and of `add` what the job is."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(ACTIONS.values())
    parser.add_argument("action", metavar="ACTION", nargs="?", default="list", choices=tuple(ACTIONS))
    parser.add_argument("words", metavar="N M | JOB", nargs="*", help="numbers of jobs, or what to add")
    group = parser.add_argument_group("of add")
    group.add_argument("--adapter", metavar="NAME", action="append", help="train: only this adapter (may be repeated)")
    group.add_argument("--checkpoint-steps", type=int, metavar="N", help="train: a checkpoint every N steps")
    group.add_argument("--folds", type=int, default=5, metavar="K", help="eval, sweep: parts held out in turn (5)")
    group.add_argument("--target", default="peft", metavar="T", help="export: what for (peft)")
    group.add_argument("--quant", metavar="Q", help="export: the number format")
    group.add_argument("--mix", metavar="SPEC", help="export: the mix (the gate's static mean)")
    group.add_argument("--out", metavar="DIR", type=given_path, help="export: where to (the store's exports folder)")
    group.add_argument("--set", dest="settings", metavar="PATH=V,V", action="append", default=[], help="sweep: to try")
    group.add_argument("--write-best", action="store_true", help="sweep: put the best settings into the document")
    owners = {"adapter": "train", "checkpoint_steps": "train", "folds": "eval sweep", "settings": "sweep"}
    owners |= {"write_best": "sweep", **dict.fromkeys(("target", "quant", "mix", "out"), "export")}
    belong(parser, lambda args: args.words[0] if args.action == "add" and args.words else args.action, owners)


def run(args: argparse.Namespace) -> int:
    """Do the action; the line on stdout. `run` exits 1 when a job failed, 130 when it was interrupted."""
    from dlm_tui.cli.own_store import own_store
    from dlm_tui.engine.queue_file import QueueFile

    if args.words and args.action not in ("add", "cancel", "move"):
        raise UsageError(f"usage: dlm-tui {ACTIONS[args.action].partition(':')[0]}")
    _, store = own_store(args)
    queue = QueueFile(store)
    match args.action:
        case "run":
            return _run(args, queue)
        case "pause":
            queue.pause(True)
        case "resume":
            _list(args, queue, begun=_resume(queue))
            return 0
        case "cancel":
            (number,) = _numbers(args, 1)
            queue.cancel(number)
        case "move":
            number, place = _numbers(args, 2)
            queue.move(number, place)
        case "add":
            _add(args, queue)
    _list(args, queue)
    return 0


def _numbers(args: argparse.Namespace, count: int) -> list[int]:
    try:
        numbers = [int(word) for word in args.words]
    except ValueError:
        numbers = []
    if len(numbers) != count or min(numbers) < 1:
        raise UsageError(f"usage: dlm-tui {ACTIONS[args.action].partition(':')[0]}")
    return numbers


# ---- see -----------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, queue: QueueFile, *, begun: bool = False) -> None:
    """`begun`: a process that works it off was started and may not be there yet."""
    line, lives = queue.read(), begun or queue.is_worked_off()
    entries = line.entries if lives else [_as_left(entry) for entry in line.entries]
    if args.json:
        emit({"paused": line.paused, "worked_off": lives, "jobs": [msgspec.to_builtins(e) for e in entries]})
        return
    for entry in entries:
        sys.stdout.write(shown(entry_line(entry), keep="") + "\n")
    if not entries:
        sys.stdout.write("nothing is in line\n")
    elif line.paused:
        _tell(args, "paused; `dlm-tui queue DOC resume` goes on")
    elif line.ahead and not lives:
        _tell(args, "nobody works it off now; `dlm-tui queue DOC run` does")


def _as_left(entry: Entry) -> Entry:
    """A job that says it runs while nobody works the line off was killed: the next runner takes it first."""
    return msgspec.structs.replace(entry, state="waiting") if entry.state == "running" else entry


def _tell(args: argparse.Namespace, text: str) -> None:
    sys.stdout.write(shown(copyable(text, args.document, args.home)) + "\n")


def entry_line(entry: Entry) -> str:
    """A job in one line: number, state, title, and how it stands."""
    state = "interrupted" if entry.interrupted else entry.state
    at = entry.ended or entry.began or entry.added
    return f"{entry.number:>4}  {state:<11}  {entry.title}  {at}  {entry.summary or result_words(entry)}".rstrip()


def result_words(entry: Entry) -> str:
    """What came of a job that is done, in a few words."""
    from dlm_tui.engine.queue_results import result_words

    return result_words(entry.result)


# ---- drive ---------------------------------------------------------------------------------------------------------


def _add(args: argparse.Namespace, queue: QueueFile) -> None:
    if len(args.words) != 1 or args.words[0] not in JOBS:
        raise UsageError(f"usage: dlm-tui {ACTIONS['add'].partition(':')[0]}")
    for given in (args.document, args.base, args.out):
        if given and not is_utf8(str(Path(given).absolute())):
            raise UsageError(f"a job in line needs paths that are UTF-8 text, which {given} is not: rename it")
    request, title = _job(args, args.words[0], queue)
    entry = queue.add(request, title)
    say(f"job {entry.number}: {title}")


def _job(args: argparse.Namespace, what: str, queue: QueueFile) -> tuple[JobRequest, str]:
    from dlm_tui.document import load, parse_bytes, read_document_bytes
    from dlm_tui.document.counts import checked_checkpoint_steps, checked_folds
    from dlm_tui.document.probes import NO_GATE, NOTHING_BETWEEN
    from dlm_tui.engine.protocol import EvaluateJob, ExportJob, SweepJob, TrainJob
    from dlm_tui.export.mix import written_mix
    from dlm_tui.export.requests import ExportRequest
    from dlm_tui.training.plan import refuse_undeclared
    from dlm_tui.training.sweep_grid import parse_grid, trials_of

    document, home = str(Path(args.document).resolve()), str(queue.store.home)
    base = str(Path(args.base).resolve()) if args.base else None
    match what:
        case "train":
            loaded = load(Path(args.document))
            refuse_undeclared(loaded, args.adapter)
            checked_checkpoint_steps(args.checkpoint_steps)
            title = "train " + (", ".join(args.adapter) if args.adapter else loaded.training_words)
            return TrainJob(
                document=document, home=home, base=base, adapters=args.adapter, checkpoint_steps=args.checkpoint_steps
            ), title
        case "gate":
            if not load(Path(args.document)).gate_enabled:
                raise UsageError(NO_GATE)
            return TrainJob(document=document, home=home, base=base, gate_only=True), "train the gate"
        case "eval":
            if len(load(Path(args.document)).adapter_names) < 2:
                raise UsageError(NOTHING_BETWEEN)
            checked_folds(args.folds)
            return EvaluateJob(document=document, home=home, base=base, folds=args.folds), "judge the gate"
        case "sweep":
            path, grid = Path(args.document), parse_grid(args.settings)
            checked_folds(args.folds)
            data = read_document_bytes(path)
            trials_of(parse_bytes(data, path), data, grid)
            wanted = SweepJob(
                document=document, home=home, base=base, settings=args.settings, folds=args.folds, write=args.write_best
            )
            return wanted, f"sweep {' '.join(args.settings)}"
    out = str(Path(args.out).resolve()) if args.out else None
    signed = bool(args.mix and "-" in args.mix)
    request = ExportRequest(target=args.target, quant=args.quant, mix=args.mix, signed=signed).checked()
    written_mix(request, load(Path(args.document)))
    wanted_export = ExportJob(
        document=document,
        home=home,
        base=base,
        target=args.target,
        quant=args.quant,
        mix=args.mix,
        signed=signed,
        out=out,
    )
    return wanted_export, f"export {args.target}"


def _resume(queue: QueueFile) -> bool:
    """Whether a process was started that works it off."""
    from dlm_tui.engine.queue_client import start_runner

    queue.pause(False)
    if queue.read().ahead and not queue.is_worked_off():
        start_runner(queue, stays=True)
        say("it is worked off in a process of its own")
        return True
    return False


def _run(args: argparse.Namespace, queue: QueueFile) -> int:
    """Work the line off in this process; the jobs are its children."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.engine.protocol import Log, Looked, Progress
    from dlm_tui.engine.queue_runner import QueueRunner
    from dlm_tui.progress import Progress as Step

    queue.pause(False)
    narration = Narration()
    begun: list[int] = []

    def tell(entry: Entry, event: Event) -> None:
        if entry.number not in begun:
            begun.append(entry.number)
            say(f"job {entry.number}: {entry.title}")
        if isinstance(event, Progress):
            narration(
                Step(
                    event.stage,
                    event.done,
                    event.total,
                    event.text,
                    scope=event.scope,
                    loss=event.loss,
                    loss_kind=event.loss_kind,
                )
            )
        elif isinstance(event, Looked):
            narration(Step("look", scope=event.scope, look=event.look))
        elif isinstance(event, Log):
            say(event.text)

    runner = QueueRunner(queue, on_event=tell)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, runner.leave)
        await runner.run()

    asyncio.run(work())
    _list(args, queue)
    line = queue.read()
    if line.ahead:
        return 130
    return 1 if any(line.find(number).state == "failed" for number in begun) else 0
