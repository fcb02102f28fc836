"""What `train --resume` goes on with: the settings of the interrupted training, which its flags may not contradict."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dlm_tui.errors import UsageError
from dlm_tui.store.adapter_kind import AdapterKind, KindChoices

if TYPE_CHECKING:
    from dlm_tui.store.checkpoints import Asked


def resumed(args: argparse.Namespace, choices: KindChoices, was: Asked) -> Asked:
    """As it was asked for; how often a checkpoint is written may be changed. Raises UsageError for a contradiction."""
    for flag, given, before in (*_own(args, was), *_kinds(choices, was.choices), *_trainer(args, was)):
        if given is not None and given != before:
            raise UsageError(
                f"{flag}: the interrupted training has {_words(before)}, not {_words(given)}; leave the flag out, "
                "or train anew without --resume"
            )
    steps, minutes = args.checkpoint_steps, args.checkpoint_minutes
    return msgspec.structs.replace(
        was,
        checkpoint_steps=was.checkpoint_steps if steps is None else steps,
        checkpoint_seconds=was.checkpoint_seconds if minutes is None else minutes * 60.0,
    )


def whole_path(text: str | None) -> str | None:
    """A path that means the same from every folder."""
    return None if text is None else str(Path(text).absolute())


def _own(args: argparse.Namespace, was: Asked) -> Iterator[tuple[str, Any, Any]]:
    """Flag, what was given (None for nothing), and what the interrupted training has."""
    yield "--adapter", sorted(set(args.adapter)) if args.adapter else None, was.adapters and sorted(set(was.adapters))
    yield "--calibration", whole_path(args.calibration), was.calibration
    yield "--base", whole_path(args.base), was.base


def _kinds(given: KindChoices, was: KindChoices) -> Iterator[tuple[str, Any, Any]]:
    for field in AdapterKind.__struct_fields__:
        yield f"--{field}", getattr(given.every, field), getattr(was.every, field)
        for name, kind in given.by_name.items():
            yield f"--{field} {name}", getattr(kind, field), getattr(was.of(name), field)


def _trainer(args: argparse.Namespace, was: Asked) -> Iterator[tuple[str, Any, Any]]:
    for field, before in msgspec.structs.asdict(was.trainer).items():
        yield f"--{field.replace('_', '-')}", getattr(args, field), before


def _words(value: Any) -> str:
    if value is None:
        return "the default"
    if isinstance(value, bool):
        return "it on" if value else "it off"
    return ", ".join(value) if isinstance(value, list) else str(value)
