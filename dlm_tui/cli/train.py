"""`dlm-tui train DOC`: train the adapters and the gate here and now."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.cli.path_option import given_path
from dlm_tui.counting import counted
from dlm_tui.document.counts import checked_checkpoint_steps
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, say
from dlm_tui.plain_numbers import number_option, whole_option
from dlm_tui.refused_field import place_of, refusal
from dlm_tui.store.adapter_kind import PARAMETERIZATIONS, SELECTIONS, AdapterKind, KindChoices

if TYPE_CHECKING:
    from dlm_tui.document import Document, TrainerSettings
    from dlm_tui.model import Base
    from dlm_tui.store import Store
    from dlm_tui.store.checkpoints import Asked
    from dlm_tui.training.cluster import Cluster


_ADDRESS = re.compile(r"auto|(ray://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train."""
    parser.add_argument("--gate-only", action="store_true", help="leave the adapters as they are")
    parser.add_argument("--adapter", metavar="NAME", action="append", help="only this adapter (may be repeated)")
    parser.add_argument(
        "--parameterization",
        metavar="[NAME=]KIND",
        action="append",
        default=[],
        help="lora or pissa, for every adapter trained or for NAME (default: as trained before, else lora)",
    )
    parser.add_argument(
        "--selection",
        metavar="[NAME=]SCORE",
        action="append",
        default=[],
        help="how pissa chooses singular directions: s_only (default), wanda, act_only, cho_rej_min_std",
    )
    parser.add_argument(
        "--rank",
        metavar="[NAME=]R",
        action="append",
        default=[],
        help="(default: as trained before, else the document's lora_r)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=given_path,
        help="prompt sets that wanda and act_only look at instead of the sections",
    )
    parser.add_argument(
        "--signed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="preference pairs at both signs: chosen at +C, rejected at −C",
    )
    parser.add_argument("--coefficient", metavar="[NAME=]C", action="append", default=[], help="the C of --signed (1)")
    parser.add_argument("--resume", action="store_true", help="go on with the training that was interrupted, exactly")
    parser.add_argument(
        "--checkpoint-steps", type=int, metavar="N", help="a checkpoint every N optimiser steps of an adapter"
    )
    parser.add_argument("--checkpoint-minutes", type=float, metavar="M", help="and at least every M minutes (10)")
    cluster_flag(parser)
    trainer_flags(parser)


def cluster_flag(parser: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    parser.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        type=_address,
        metavar="ADDRESS",
        help="on the nodes of a Ray cluster: ray://HOST:PORT, or auto for the one that this machine belongs to",
    )


def _address(text: str) -> str:
    """Ray would look for what is no address for a quarter of a minute."""
    if not _ADDRESS.fullmatch(text):
        raise argparse.ArgumentTypeError(f"it is auto, HOST:PORT or ray://HOST:PORT, not {text!r}")
    return text


def joined_cluster(args: argparse.Namespace, base: Base) -> AbstractContextManager[Cluster | None]:
    """The cluster of `--cluster` while the block runs, None without that flag. Raises UsageError, ClusterError."""
    if args.cluster is None:
        return nullcontext()
    from dlm_tui.training.cluster import Cluster

    return Cluster.connect(args.cluster, base)


def trainer_flags(parser: argparse.ArgumentParser) -> None:
    """What the side file's `[training]` table says, said here for once."""
    switch = argparse.BooleanOptionalAction
    group = parser.add_argument_group("trainer settings (default: the [training] table of DOC.tui.toml)")
    group.add_argument("--packing", action=switch, help="rows end to end instead of padded (on)")
    group.add_argument("--length-buckets", action=switch, help="rows of like length in one batch (off)")
    group.add_argument(
        "--activation-checkpointing", action=switch, help="compute activations again instead of keeping them (off)"
    )
    group.add_argument("--neftune-alpha", type=float, metavar="A", help="noise on embedded tokens (none)")
    group.add_argument(
        "--early-answers", action=switch, help="held-out loss and a few answers, before and now, while it trains (on)"
    )
    group.add_argument("--rslora", action=switch, help="scale by alpha/√rank instead of alpha/rank (off)")
    group.add_argument("--loraplus-ratio", type=float, metavar="R", help="lora_B learns R times as fast as lora_A (1)")


def trainer_settings(args: argparse.Namespace, document: Document) -> TrainerSettings:
    """The document's settings with what was given on the command line. Raises UsageError, SideFileError."""
    import msgspec

    from dlm_tui.document import TrainerSettings, document_side_file

    beside = msgspec.structs.asdict(document_side_file(document).training)
    given = {name: getattr(args, name) for name in beside if getattr(args, name) is not None}
    try:
        return msgspec.convert({**beside, **given}, TrainerSettings)
    except msgspec.ValidationError as error:
        option = place_of(error).replace("_", "-")
        raise UsageError(f"--{option}: {refusal(error, TrainerSettings)}") from None


def run(args: argparse.Namespace) -> int:
    """Progress on stderr; with --json the outcome on stdout. 1 when a gate was to be trained and is not."""
    from dlm_tui.model.memory import refuse_narrow_limits

    refuse_narrow_limits()
    import torch

    from dlm_tui.cli.adapter import effect_words
    from dlm_tui.cli.narration import Narration
    from dlm_tui.document import TrainerSettings, load, sources
    from dlm_tui.model import base_of, load_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.store import Store, resolve_home
    from dlm_tui.store.adapter_kind import tail_lines
    from dlm_tui.training import TrainRequest, refuse_before_base, train_document
    from dlm_tui.training.report import train_report
    from dlm_tui.training.request import calibration_prompts

    if args.gate_only and args.adapter:
        raise UsageError("--gate-only leaves the adapters alone: it takes no --adapter")
    choices = kind_choices(args)
    if args.gate_only and args.resume:
        raise UsageError("--gate-only leaves the adapters alone: there is no training of theirs to resume")
    if args.gate_only and (choices != KindChoices() or args.calibration):
        raise UsageError("--gate-only leaves the adapters alone: it takes no kind of training")
    if args.gate_only and any(getattr(args, name) is not None for name in TrainerSettings.__struct_fields__):
        raise UsageError("--gate-only leaves the adapters alone: it takes no trainer settings")
    checkpoints = [name for name in ("steps", "minutes") if getattr(args, f"checkpoint_{name}") is not None]
    if args.gate_only and checkpoints:
        raise UsageError("--gate-only leaves the adapters alone: it writes no checkpoints")
    if args.cluster is not None and checkpoints:
        raise UsageError(
            f"--checkpoint-{checkpoints[0]} is for a training here: on a cluster an adapter that is lost begins again"
        )
    checked_checkpoint_steps(args.checkpoint_steps)
    if args.checkpoint_minutes is not None and not args.checkpoint_minutes > 0:
        raise UsageError("--checkpoint-minutes must be more than 0")
    narration = Narration()
    document, scan = sources.expand_sources(load(Path(args.document)))
    store = Store(resolve_home(args.home), document.dlm_id)
    asked = _asked(args, choices, document, store)
    torch.set_num_threads(asked.threads)
    calibration = calibration_prompts(Path(asked.calibration)) if asked.calibration else None
    refuse_before_base(document, store, asked.adapters, asked.choices, gate_only=args.gate_only)
    base = run_to_end(load_base(base_of(document, asked.base)), narration)
    with joined_cluster(args, base) as elsewhere:
        request = TrainRequest(
            document=document,
            store=store,
            base=base,
            adapters=asked.adapters,
            gate_only=args.gate_only,
            choices=asked.choices,
            calibration=calibration,
            scan=scan,
            base_folder=asked.base,
            resume=args.resume,
            checkpoint_steps=asked.checkpoint_steps,
            trainer=asked.trainer,
            checkpoint_seconds=asked.checkpoint_seconds,
            elsewhere=elsewhere,
        )
        outcome = train_document(request, narration)
    for name, item in outcome.adapters.items():
        losses = "".join(f", {loss.words}" for loss in item.train_losses)
        effect = f", {effect_words(item.effect)}" if item.effect is not None else ""
        say(f"{name}: version {item.version}, {item.kind}, {counted(item.steps, 'step')}{losses}{effect}")
        if item.tail_depth:
            say("\n".join(f"  {line}" for line in tail_lines(item.tail_depth)))
    if outcome.gate is not None:
        trained = f": {outcome.gate.reason}" if outcome.gate.mode == "trained" else ""
        say(f"gate: {outcome.gate.mode}{trained}")
    if args.json:
        emit(train_report(document, outcome).as_json())
    return 1 if outcome.gate_failed else 0


def _asked(args: argparse.Namespace, choices: KindChoices, document: Document, store: Store) -> Asked:
    """What the flags say, with --resume what the interrupted training was asked for. Raises UsageError."""
    import torch

    from dlm_tui.cli.train_resume import resumed, whole_path
    from dlm_tui.store.checkpoints import Asked, interrupted
    from dlm_tui.store.owed import owed_by_training

    left = interrupted(store) or owed_by_training(store)
    if args.resume and left is not None and left.asked is not None:
        return resumed(args, choices, left.asked)
    minutes = 10.0 if args.checkpoint_minutes is None else args.checkpoint_minutes
    return Asked(
        threads=torch.get_num_threads(),
        trainer=trainer_settings(args, document),
        adapters=args.adapter,
        choices=choices,
        calibration=whole_path(args.calibration),
        base=whole_path(args.base),
        checkpoint_steps=args.checkpoint_steps,
        checkpoint_seconds=minutes * 60.0,
    )


def kind_choices(args: argparse.Namespace) -> KindChoices:
    """What the flags say of how adapters are trained. Raises UsageError naming the flag."""
    fields: dict[str | None, dict[str, Any]] = {None: {} if args.signed is None else {"signed": args.signed}}
    for field, texts, read in (
        ("parameterization", args.parameterization, _one_of("--parameterization", PARAMETERIZATIONS)),
        ("selection", args.selection, _one_of("--selection", SELECTIONS)),
        ("rank", args.rank, _number("--rank", int)),
        ("coefficient", args.coefficient, _number("--coefficient", float)),
    ):
        for text in texts:
            name, found, value = text.rpartition("=")
            fields.setdefault(name if found else None, {})[field] = read(value)
    every = AdapterKind(**fields.pop(None))
    return KindChoices(every=every, by_name={str(name): AdapterKind(**given) for name, given in fields.items()})


def _one_of(flag: str, known: Sequence[str]) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in known:
            raise UsageError(f"{flag} must be one of {', '.join(known)}, not {value!r}")
        return value

    return read


def _number(flag: str, kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(value: str) -> float:
        try:
            return whole_option(value) if kind is int else number_option(value)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{flag}: {error}") from None

    return read
