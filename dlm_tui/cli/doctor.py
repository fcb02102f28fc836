"""`dlm-tui doctor [DOC]`: what is installed and missing; with a document, its whole store is looked through."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui import __version__
from dlm_tui.cli.copyable import copyable
from dlm_tui.counting import counted
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, shown
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.model.kept_rounds import KeptRounds
    from dlm_tui.store import Store
    from dlm_tui.store.examine import Finding

_OPTIONAL = {
    "xllamacpp": "checks exports on a real llama.cpp: pip install 'dlm-tui[llama]'",
    "starlette": "answers OpenAI clients: pip install 'dlm-tui[serve]'",
    "textual_serve": "shows the workbench in a browser: pip install 'dlm-tui[web]'",
    "ray": "trains on the nodes of a cluster (--cluster): pip install 'dlm-tui[cluster]'",
    "bitsandbytes": "keeps a base in 4 or 8 bits (--quantize): pip install 'dlm-tui[quant]'; 8-bit optimisers on a GPU",
    "torchao": "keeps a base in 8 bits (--quantize torchao-int8): pip install torchao",
}
_PROGRAMS = {"ollama": "serves an exported model", "llama-server": "serves an exported model"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Optionally a document, and whether to mend what is found."""
    parser.add_argument("document", metavar="DOC", nargs="?", help="look through the store of this document instead")
    parser.add_argument("--repair", action="store_true", help="mend what can be mended in the store of DOC")


def run(args: argparse.Namespace) -> int:
    """Print the report; exit 1 when something the program needs is missing, or the store of DOC is damaged."""
    if args.document:
        return _run_on_store(args)
    if args.repair:
        raise UsageError("--repair mends the store of a document: dlm-tui doctor DOC --repair")
    from dlm_tui.model.memory import refuse_narrow_limits

    refuse_narrow_limits()
    report = examine(args.home)
    if args.json:
        emit(report)
    else:
        for line in _lines(report):
            sys.stdout.write(shown(line) + "\n")
    return 0 if report["ok"] else 1


def _run_on_store(args: argparse.Namespace) -> int:
    from dlm_tui.document import load
    from dlm_tui.model.kept_rounds import kept_rounds
    from dlm_tui.store import Store, resolve_home
    from dlm_tui.store.examine import examine as examine_store
    from dlm_tui.store.layout import FLAT

    document = load(Path(args.document))
    store = Store(resolve_home(args.home), document.dlm_id)
    mended = [*_repair(store, document), *_mend(_beside(args))] if args.repair else []
    findings = [
        *_cut_change(args),
        *_beside(args),
        *_owner(store, document),
        *examine_store(store, document.adapter_names, document.base_model),
    ]
    findings += _queue(store)
    rounds = kept_rounds(store, document.adapter_names or (FLAT,))
    damaged = any(one.severity == "damage" for one in findings) or any(one.damaged for one in rounds)
    if args.json:
        listed = [{"severity": one.severity, "text": one.text, "mendable": one.mend is not None} for one in findings]
        targets, _ = _suitability(args, document)
        forward, _ = _forward(args, document)
        composed = [{"adapter": one.adapter, "text": one.text, **_figures(one)} for one in rounds]
        report = {"ok": not damaged, "store": str(store.root), "mended": mended, "findings": listed}
        emit({**report, "rounds": composed, "exports": targets, "forward": forward})
        return 1 if damaged else 0
    lines = [f"mended      {text}" for text in mended]
    lines += [f"{one.severity:<11} {one.text}{_hint(one, args.repair)}" for one in findings]
    lines += [f"{'damage' if one.damaged else 'rounds':<11} {one.text}" for one in rounds]
    if not store.root.is_dir():
        lines.append(f"nothing     {store.root} does not exist: nothing was trained")
    elif not damaged:
        lines.append(f"sound       {store.root}")
    lines.append(f"exports     {_suitability(args, document)[1]}")
    lines.append(f"forward     {_forward(args, document)[1]}")
    sys.stdout.write("".join(shown(copyable(line, args.document, args.home)) + "\n" for line in lines))
    return 1 if damaged else 0


def _repair(store: Store, document: Document) -> list[str]:
    """What was mended in a store that is not another document's: what this one does not declare would be called left
    over. A manifest that cannot be read says nothing of that, and the new one names the document it was mended for."""
    from dlm_tui.store import ManifestError, adopt, refuse_other_document
    from dlm_tui.store.examine import repair

    with contextlib.suppress(ManifestError):
        refuse_other_document(store, document)
    mended = repair(store, document.adapter_names, document.base_model)
    mended += _mend(_queue(store))
    if mended:
        with contextlib.suppress(ManifestError):  # it could not be mended, which is said
            adopt(store, document)
    return mended


def _mend(findings: Sequence[Finding]) -> list[str]:
    """Mend what can be, and tell it."""
    mended = []
    for finding in findings:
        if finding.mend is not None:
            finding.mend()
            mended.append(finding.text)
    return mended


def _figures(one: KeptRounds) -> dict[str, Any]:
    """What was measured of an adapter's kept versions; nothing where they could not be composed."""
    if one.found is None:
        return {"exact": None}
    found = one.found
    figures = {"largest_difference": found.difference, "largest_addition": found.addition}
    return {"exact": found.exact, "versions": found.rounds, "layers": found.layers, **figures}


def _cut_change(args: argparse.Namespace) -> list[Finding]:
    """Whether a change of the document was cut, and somebody has to look what is left of it."""
    from dlm_tui.document.in_place import finish_cut_change
    from dlm_tui.store.examine import Finding

    left = finish_cut_change(Path(args.document))
    return [Finding(severity="damage", text=left)] if left is not None else []


def _beside(args: argparse.Namespace) -> list[Finding]:
    """What killed processes were writing beside the document: sets, exported prompts, conversations."""
    from dlm_tui.files import left_scratch, remove
    from dlm_tui.store.examine import Finding

    given = Path(args.document).absolute()
    found: list[Finding] = []
    for folder in sorted({given.parent, given.resolve().parent}):
        with contextlib.suppress(OSError):  # one that lets nobody see what is in it
            for path in left_scratch(folder):
                text = f"{path} is left of a process that ended."
                found.append(Finding(severity="litter", text=text, mend=functools.partial(remove, path)))
    return found


def _owner(store: Store, document: Document) -> list[Finding]:
    """Whether the store is another document's; a manifest that cannot be read is found elsewhere."""
    from dlm_tui.store import ManifestError, OwnedElsewhere, refuse_other_document
    from dlm_tui.store.examine import Finding

    try:
        refuse_other_document(store, document)
    except OwnedElsewhere as error:
        return [Finding(severity="damage", text=str(error))]
    except ManifestError:
        pass
    return []


def _queue(store: Store) -> list[Finding]:
    """Whether the line of jobs can be read; begun anew, what was in it is set aside."""
    from dlm_tui.engine.queue_file import QueueFile
    from dlm_tui.store.examine import Finding

    queue = QueueFile(store)

    def begin_anew() -> None:
        queue.read()

    try:
        if queue.is_damaged():
            return [Finding(severity="damage", text=f"{queue.path} is no line of jobs.", mend=begin_anew)]
    except OSError as error:
        return [Finding(severity="damage", text=f"{queue.path} cannot be read: {cause(error)}.")]
    return []


def _suitability(args: argparse.Namespace, document: Document) -> tuple[list[str], str]:
    """What the document's base can be exported to."""
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.export.suitability import suitability
    from dlm_tui.model import base_of

    try:
        return suitability(base_of(document, args.base))
    except DlmTuiError as error:
        return [], f"not known: {error}"


def _forward(args: argparse.Namespace, document: Document) -> tuple[str | None, str]:
    """Which forward the document's base will get."""
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.model import base_of
    from dlm_tui.model.foreseen import foreseen_forward

    try:
        return foreseen_forward(base_of(document, args.base))
    except DlmTuiError as error:
        return None, f"not known: {error}"


def _hint(finding: Finding, repaired: bool) -> str:
    return " [--repair mends it]" if finding.mend is not None and not repaired else ""


def examine(home: str | None) -> dict[str, Any]:
    """Versions, device, folders, the embedded base, optional parts. Never raises for what is merely missing."""
    import torch

    from dlm_tui.assets import asset
    from dlm_tui.engine.stdio_transport import package_versions
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.store import resolve_home, why_not_written

    problems = []
    try:
        base = asset("base")
        weights = base / "model.safetensors"
        size = weights.stat().st_size if weights.exists() else None
        if size is None:
            problems.append("the embedded base has no weights")
    except DlmTuiError as error:
        size = None
        problems.append(str(error))
    folder = resolve_home(home)
    if (why := why_not_written(folder / "store")) is not None:
        problems.append(f"the home {folder} cannot be used: {why}; choose another (--home, DLM_HOME)")
    return {
        "ok": not problems,
        "problems": problems,
        "version": __version__,
        "versions": package_versions(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "bfloat16": _has_bfloat16(),
        "home": str(folder),
        "stores": len(list((folder / "store").glob("*"))) if (folder / "store").is_dir() else 0,
        "embedded_base_bytes": size,
        "model_cache": str(_model_cache()),
        "unpacked": _unpacked(),
        "optional": {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL},
        "programs": {name: shutil.which(name) for name in _PROGRAMS},
    }


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def _model_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _unpacked() -> dict[str, Any]:
    """What GGUF bases were unpacked to, and its size in bytes."""
    from dlm_tui.model.registry import unpacked_bases

    folder = unpacked_bases()
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # one that is being moved into its place
            size += path.stat().st_size if path.is_file() else 0
    return {"folder": str(folder), "bases": sum(path.is_dir() for path in folder.glob("*")), "bytes": size}


def _lines(report: dict[str, Any]) -> list[str]:
    from dlm_tui.model.memory import gigabytes

    lines = [f"dlm-tui     {report['version']}  ({'ready' if report['ok'] else 'not ready'})"]
    lines += [f"problem     {text}" for text in report["problems"]]
    versions = "  ".join(f"{name} {value}" for name, value in report["versions"].items() if name != "dlm-tui")
    lines.append(f"packages    {versions}")
    lines.append(f"device      {report['device']}, {report['cores']} cores, {report['threads']} threads")
    lines.append(f"home        {report['home']}  ({counted(report['stores'], 'store')})")
    lines.append(f"models      {report['model_cache']}")
    if unpacked := report["unpacked"]["bases"]:
        size = gigabytes(report["unpacked"]["bytes"])
        lines.append(f"unpacked    {report['unpacked']['folder']}  ({unpacked} of GGUF files, {size}; may be deleted)")
    lines.append(f"base        {report['embedded_base_bytes'] or 0:,} bytes embedded")
    for name, present in report["optional"].items():
        lines.append(f"{name:<11} {'present' if present else 'missing: ' + _OPTIONAL[name]}")
    for name, path in report["programs"].items():
        lines.append(f"{name:<11} {path or 'not on the PATH: ' + _PROGRAMS[name]}")
    return lines
