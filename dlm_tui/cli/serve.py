"""`dlm-tui serve DOC`: an OpenAI-compatible server that routes every request through the gate."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.child import module_words
from dlm_tui.cli.belonging import belong
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.files import sha256_file
from dlm_tui.output import say
from dlm_tui.serving import command
from dlm_tui.serving.llama import options

if TYPE_CHECKING:
    from dlm_tui.serving.backend import Backend
    from dlm_tui.serving.traffic import TrafficLog
    from dlm_tui.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, who may ask, and what answers."""
    from dlm_tui.export.choices import QUANTS

    parser.epilog = "The workbench in a browser, which had this name before, is `dlm-tui web`."
    command.add_arguments(parser, rows=8)
    parser.add_argument("--backend", choices=("native", "llama.cpp"), default="native", help="what decodes the answers")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what native answers read the weights as, where the base can be read so; gates stay in float32",
    )
    parser.add_argument(
        "--quant", default="f32", metavar="Q", help=f"llama.cpp: one of {', '.join(QUANTS)} (default f32)"
    )
    options.add_arguments(parser)
    parser.add_argument(
        "--keep-prompts",
        type=int,
        default=0,
        metavar="N",
        help="keep the text of the last N requests for `dlm-tui traffic` (default 0: of none)",
    )
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    owners = {**dict.fromkeys(("quant", "grid", "threads"), "llama.cpp"), "dtype": "native"}
    belong(parser, lambda args: str(args.backend), owners, "--backend {}".format)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises DlmTuiError when an extra is missing or the address is taken."""
    from dlm_tui.cli.own_store import own_store
    from dlm_tui.export.requests import known_quant

    path = Path(args.document)
    if args.keep_prompts < 0:
        raise UsageError("--keep-prompts is at least 0")
    args.quant = known_quant(args.quant)
    if args.until_eof:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    _, store = own_store(args)
    open_backend = _native if args.backend == "native" else _llama
    command.run(
        args,
        path.name,
        lambda: open_backend(args),
        lambda: _traffic(store, args.keep_prompts),
        NamedMixes(path).load,
    )
    return 0


def _end_with_stdin() -> None:
    """Whoever started this process has ended, or wants it to end.

    The descriptor is read, not `sys.stdin`: whose lock, held here, would abort an interpreter that ends by itself.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _traffic(store: Store, keep_prompts: int) -> TrafficLog:
    from dlm_tui.serving.traffic import TrafficLog

    return TrafficLog(store, keep_prompts)


def _native(args: argparse.Namespace) -> Backend:
    from dlm_tui.model.memory import refuse_narrow_limits

    refuse_narrow_limits()
    import torch

    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.engine.warmup import warm_up
    from dlm_tui.model import threads_for
    from dlm_tui.progress import run_to_end
    from dlm_tui.serving.native.backend import NativeBackend

    session = open_session(args)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(session.model.generation, rows=args.rows))
    run_to_end(warm_up(session, choose_threads=False), Narration(quiet=True))
    return NativeBackend(session, rows=args.rows, queue=args.queue, context_length=args.context)


def _llama(args: argparse.Namespace) -> Backend:
    """The exported folder, written first by a process of its own where there is none of what is trained now."""
    try:
        from dlm_tui.serving.llama.standalone import open_backend
    except ModuleNotFoundError as error:
        raise command.missing(error, "llama") from None
    from dlm_tui.serving.llama.folder import LiveFolder

    folder = _live_folder(args)
    return open_backend(args, LiveFolder(folder))


def _live_folder(args: argparse.Namespace) -> Path:
    from dlm_tui.cli.own_store import own_store
    from dlm_tui.serving.llama.folder import read_settings
    from dlm_tui.store import adapter_versions

    document, store = own_store(args)
    folder = store.exports_dir / f"llama-server-live-{args.quant}"
    versions = {name: item.version for name, item in adapter_versions(store, document.routing_names).items()}
    gate = store.gate_dir / "gate.safetensors"
    try:
        settings = read_settings(folder)
        known = settings.document_sha256, settings.versions, sha256_file(folder / "gate.safetensors")
        if known == (document.sha256, versions, sha256_file(gate)):
            return folder
    except (DlmTuiError, OSError):
        pass
    say(f"exporting what is trained now to {folder} …")
    words = module_words(
        "dlm_tui", "export", args.document, "--home", str(store.home), "--target", "llama-server",
        "--gate", "live", "--quant", args.quant, "--out", str(folder), "--no-drift", "--no-verify", "--json",
    )  # fmt: skip
    if args.base:
        words += ["--base", args.base]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("dlm-tui: ")
        raise DlmTuiError(f"the export failed: {last}")
    return folder
