"""`dlm-tui adapter ACTION DOC …`: the versions of a document's adapters, and adapters from and for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dlm_tui.cli.belonging import belong
from dlm_tui.cli.path_option import given_path
from dlm_tui.counting import counted
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.errors import UsageError
from dlm_tui.losses import SFT, UNITS
from dlm_tui.output import emit, put, say, shown

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.store import OwnEffect, Store
    from dlm_tui.store.adapter_history import VersionFacts

ACTIONS = {
    "list": "adapter list DOC [NAME]: versions with date, run, kind, rank, losses, effect, size; and the gates",
    "compare": "adapter compare DOC A B: what moved from tone@1 to tone@2 (or tone), from gate@3 to gate@5 (or gate)",
    "use": "adapter use DOC NAME --version N: put that version in force",
    "back": "adapter back DOC: to the versions before the last training",
    "keep": "adapter keep DOC NAME --version N [--no]: prune leaves it (or takes the mark away)",
    "drop": "adapter drop DOC NAME --version N: delete a version that nothing needs",
    "prune": "adapter prune DOC [--dry-run]: drop every version that nothing needs, and all former gates but the last",
    "import": "adapter import DOC NAME PATH|hf:org/name [--replace]: one trained elsewhere",
    "export": "adapter export DOC NAME --form peft|gguf|modulated --out PATH [--version N]",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action, the document, and what the action takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(ACTIONS.values())
    parser.add_argument("action", metavar="ACTION", choices=tuple(ACTIONS), help=", ".join(ACTIONS))
    parser.add_argument("document", metavar="DOC", help="path of a .dlm document")
    parser.add_argument("rest", metavar="NAME PATH", nargs="*", help="the adapter; for import where it is; or two")
    parser.add_argument("--version", type=int, metavar="N", help="which version")
    parser.add_argument("--no", action="store_true", help="of keep: take the mark away")
    parser.add_argument("--dry-run", action="store_true", help="of prune: only say what would go")
    parser.add_argument("--replace", action="store_true", help="of import: as a new version of an adapter that exists")
    parser.add_argument("--form", choices=("peft", "gguf", "modulated"), default="peft", help="of export (peft)")
    parser.add_argument("--out", metavar="PATH", type=given_path, help="of export: the folder or file to write")
    owners = {"version": "use keep drop export", "no": "keep", "dry_run": "prune", "replace": "import"}
    belong(parser, lambda args: str(args.action), {**owners, "form": "export", "out": "export"})


def run(args: argparse.Namespace) -> int:
    """Do the action; facts on stdout, narration on stderr."""
    from dlm_tui.cli.own_store import own_store

    document, store = own_store(args)
    table: dict[str, Callable[[argparse.Namespace, Document, Store], int]] = {
        "list": _list,
        "compare": _compare,
        "use": _use,
        "back": _back,
        "keep": _keep,
        "drop": _drop,
        "prune": _prune,
        "import": _import,
        "export": _export,
    }
    return table[args.action](args, document, store)


def _list(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import version_history
    from dlm_tui.store.former_gates import gate_history

    names = _names(args, document, at_most=1) or list(document.routing_names)
    found = version_history(store, names)
    gates = gate_history(store) if not args.rest and document.gate_enabled else []
    if args.json:
        listed = {name: [_as_json(facts) for facts in versions] for name, versions in found.items()}
        emit({**listed, "_gate": [asdict(facts) for facts in gates]} if gates else listed)
        return 0
    for name, versions in found.items():
        if not versions:
            print(f"{name}  no version yet")
        for facts in versions:
            print(shown(_line(facts)))
    for gate in gates:
        mark = "*" if gate.in_force else " "
        training = f"training {gate.training}  " if gate.training else ""
        print(shown(f"gate@{gate.run}  {mark}  {gate.when or ''}  {training}{gate.mode}  {', '.join(gate.names)}"))
    return 0


def _compare(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.cli.narration import Narration
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.progress import run_to_end

    if len(args.rest) != 2:
        raise UsageError(f"write: {ACTIONS['compare']}")
    session = open_session(args)
    found = run_to_end(session.compare(*args.rest), Narration(quiet=True))
    if args.json:
        emit({**msgspec.to_builtins(found), "summary": found.summary})
        return 0
    for moved in sorted(found.moved, key=lambda one: -one.distance):
        weights = "  ".join(f"{name} {moved.before.get(name, 0):.2f} → {w:.2f}" for name, w in moved.after.items())
        print(shown(f"{'!' if moved.top_changed else ' '} {weights}  {moved.text}"))
    for answer in found.answers:
        gains = ""
        if answer.before_gain is not None and answer.after_gain is not None:
            gains = f"  answer {answer.before_gain:+.2f} → {answer.after_gain:+.2f}"
        print(shown(f"effect {answer.before:.3f} → {answer.after:.3f}{gains}  {answer.text}"))
    say(shown(found.summary))
    return 0


def _use(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import use_versions

    name = _one_name(args, document)
    return _say_changes(args, use_versions(store, {name: _version(args)}, document=document))


def _back(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import before_last_training, use_versions

    _names(args, document, at_most=0)
    wanted = before_last_training(store, document.routing_names)
    if not wanted:
        raise UsageError("there are no earlier versions to go back to")
    return _say_changes(args, use_versions(store, wanted, "back"))


def _say_changes(args: argparse.Namespace, changed: dict[str, tuple[int | None, int]]) -> int:
    if args.json:
        emit({name: {"before": before, "after": after} for name, (before, after) in changed.items()})
        return 0
    for name, (before, after) in changed.items():
        print(f"{name}  {f'@{before}' if before else '(none)'} → @{after}")
    if not changed:
        say("that is in force already; nothing changed")
    return 0


def _keep(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import keep_version

    name, number = _one_name(args, document), _version(args)
    keep_version(store, name, number, not args.no)
    if args.json:
        emit({"name": name, "version": number, "kept": not args.no})
        return 0
    say(f"{name}@{number} is {'no longer kept' if args.no else 'kept'}")
    return 0


def _drop(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import drop_version

    name, number = _one_name(args, document), _version(args)
    freed = drop_version(store, name, number)
    if args.json:
        emit({"name": name, "version": number, "bytes": freed})
        return 0
    say(f"{name}@{number} is deleted, {freed / 1e6:.1f} MB")
    return 0


def _prune(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.store.adapter_history import drop_version, prunable
    from dlm_tui.store.former_gates import prunable_gates, prune_gates
    from dlm_tui.store.shared_files import freed_bytes

    _names(args, document, at_most=0)
    found = prunable(store, document.routing_names)
    freed = freed_bytes(facts.path for facts in found) / 1e6
    if not args.dry_run:
        for facts in found:
            drop_version(store, facts.name, facts.version)
    gates = prunable_gates(store) if args.dry_run else prune_gates(store)
    if args.json:
        versions = [{"name": facts.name, "version": facts.version, "bytes": facts.size} for facts in found]
        emit({"versions": versions, "gates": list(gates), "dry_run": args.dry_run})
        return 0
    for facts in found:
        print(f"{facts.name}@{facts.version}  {facts.size / 1e6:.1f} MB")
    for run in gates:
        print(f"gate@{run}")
    say(f"versions that {'would go' if args.dry_run else 'are deleted'}: {len(found)}, {freed:.1f} MB")
    return 0


def _import(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.cli.open_session import load_document_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.training.import_adapter import import_adapter

    if len(args.rest) != 2:
        raise UsageError("write: dlm-tui adapter import DOC NAME PATH|hf:org/name")
    name, source = args.rest
    base = load_document_base(args, document)
    work = import_adapter(source, name, Path(args.document), store.home, base, replace=args.replace)
    done = run_to_end(work, lambda step: say(step.text) if step.text else None)
    for note in done.notes:
        say(note)
    if done.declared:
        say(f"{args.document} declares {name} now: one line was added to training.adapters")
    if args.json:
        emit(
            {
                "name": name,
                "version": done.version,
                "rank": done.candidate.adapter.rank,
                "modules": len(done.candidate.adapter.modules),
                "difference": done.candidate.difference,
                "declared": done.declared,
            }
        )
    else:
        print(f"{name}@{done.version} is in force: rank {done.candidate.adapter.rank}")
    return 0


def _export(args: argparse.Namespace, document: Document, store: Store) -> int:
    from dlm_tui.cli.open_session import load_document_base
    from dlm_tui.export.one_adapter import export_adapter

    name = _one_name(args, document)
    if not args.out:
        raise UsageError("adapter export needs --out PATH")
    base = load_document_base(args, document)
    written = export_adapter(store, name, args.version, base, args.form, Path(args.out))
    if args.json:
        emit({"name": name, "form": args.form, "out": str(written)})
    else:
        put(str(written))
    return 0


def _names(args: argparse.Namespace, document: Document, *, at_most: int) -> list[str]:
    rest: Sequence[str] = args.rest
    if len(rest) > at_most:
        raise UsageError(f"too many arguments; {ACTIONS[args.action]}")
    for name in rest:
        refuse_unknown_adapter(name, document.routing_names)
    return list(rest)


def _one_name(args: argparse.Namespace, document: Document) -> str:
    names = _names(args, document, at_most=1)
    if not names:
        raise UsageError(f"which adapter? {ACTIONS[args.action]}")
    return names[0]


def _version(args: argparse.Namespace) -> int:
    if args.version is None or args.version < 1:
        raise UsageError(f"which version? {ACTIONS[args.action]}")
    return int(args.version)


def _as_json(facts: VersionFacts) -> dict[str, Any]:
    measured = msgspec.to_builtins(facts.effect) if facts.effect is not None else None
    effect = facts.effect.kl if facts.effect is not None else None
    last = facts.last_loss
    losses = {
        "train_loss": facts.train_loss,
        "train_loss_kind": last.kind if last else None,
        "train_loss_unit": last.unit if last else None,
        "train_losses": msgspec.to_builtins(facts.train_losses),
        "val_loss_unit": UNITS[SFT],
    }
    return {**asdict(facts), **losses, "path": str(facts.path), "effect": effect, "effect_measured": measured}


def effect_words(effect: OwnEffect) -> str:
    """The effect on the adapter's own sections, and whether it is one."""
    return f"effect {effect.kl:.3g} nats a token{' (next to nothing)' if effect.nothing else ''}"


def _line(facts: VersionFacts) -> str:
    marks = ("*" if facts.in_force else " ") + ("k" if facts.kept else " ")
    run = f"training {facts.training} (run {facts.run_id})" if facts.training else facts.origin
    parts = [
        f"{facts.name}@{facts.version}",
        marks,
        facts.when or "",
        run,
        facts.kind,
        *facts.loss_words,
        effect_words(facts.effect) if facts.effect is not None else "",
        f"{facts.size / 1e6:.1f} MB",
        f"in {counted(len(facts.exports), 'export')}" if facts.exports else "",
    ]
    return "  ".join(part for part in parts if part)
