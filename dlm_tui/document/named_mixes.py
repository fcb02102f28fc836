"""The mixes that a person gave names to, kept beside `notes.dlm` in `notes.mixes.json`.

A name never reads as a mix (`tone:0.7`), as an adapter of the document or as a view, so that `--mix NAME` means one
thing only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from dlm_tui.document.document import Document
from dlm_tui.document.errors import InvalidMixSpecError, printable
from dlm_tui.document.json_file import decode_whole
from dlm_tui.document.mix import format_mix, parse_mix
from dlm_tui.document.replacing import update_beside
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_through_links
from dlm_tui.meant import meant
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_TAKEN = frozenset({"base", "gated", "uniform", "static", "static_mean", "best", "custom", "null", "default"})


class NamedMixesError(DlmTuiError):
    """The file cannot be used, or a name cannot be given; the sentence says which and why."""


class NamedMixes:
    """The file: one JSON object, name → mix string."""

    def __init__(self, document: Path) -> None:
        self._document, self.path = document, document.with_name(f"{document.stem}.mixes.json")

    def load(self) -> dict[str, dict[str, float]]:
        """Name → mix, in order; a missing file has none. Raises NamedMixesError."""
        shown = printable(str(self.path))
        try:
            data = read_file(self.path, _MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise NamedMixesError(f"{shown} cannot be read: {cause(error)}.") from None
        try:
            specs = decode_whole(data, dict[str, str])
            return {name: dict(parse_mix(spec, signed=True, versions=True)) for name, spec in specs.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidMixSpecError) as error:
            raise NamedMixesError(f"{shown} does not hold named mixes: {printable(str(error))}.") from None

    def update(
        self,
        change: Callable[[dict[str, dict[str, float]]], object],
        tell_aside: Callable[[Path], object] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Change the mixes as they are in the file now; returns them. With `tell_aside` a file that cannot be read is
        set aside (`update_beside`). Raises NamedMixesError, NotSetAside, DocumentBusy, OSError."""
        return update_beside(self._document, self.path, self.load, change, self.save, tell_aside)

    def save(self, mixes: Mapping[str, Mapping[str, float]]) -> None:
        """Write all mixes. Raises OSError, NamedMixesError for one that is empty, with which no mix could be read."""
        specs = {name: format_mix(mix) for name, mix in mixes.items()}
        if empty := [name for name, spec in specs.items() if not spec]:
            raise NamedMixesError(f"{empty[0]} holds no adapter; move a fader first.")
        write_through_links(self.path, msgspec.json.format(msgspec.json.encode(specs), indent=2) + b"\n")


def check_mix_name(name: str, adapters: Sequence[str]) -> None:
    """Raises NamedMixesError for a name that a mix cannot have in a document with these adapters."""
    if not _NAME.fullmatch(name):
        raise NamedMixesError("The name of a mix is 1 to 32 of a-z, 0-9, _ and -, and begins with a letter or digit.")
    if name in _TAKEN:
        raise NamedMixesError(f"{name} is a view of every document; a mix needs another name.")
    if name in adapters:
        raise NamedMixesError(f"{name} is an adapter of the document; a mix needs another name.")


def is_mix_name(text: str) -> bool:
    """Whether `--mix` was given a name rather than weights."""
    return ":" not in text and _NAME.fullmatch(text.strip()) is not None


def named_mix(document: Document, name: str) -> dict[str, float]:
    """The mix saved under `name` beside a document. Raises InvalidMixSpecError, NamedMixesError."""
    saved = NamedMixes(document.path).load() if document.path is not None else {}
    found = saved.get(name.strip())
    if found is None:
        there = f"saved are {', '.join(map(printable, saved))}" if saved else "none is saved"
        there += f"), and weights are written name:weight{meant(name, saved)}"
        raise InvalidMixSpecError(f"no mix is called {name.strip()!r} ({there}")
    unknown = [part for part in found if part.partition("@")[0] not in document.routing_names]
    if unknown:
        strange = ", ".join(unknown)
        raise InvalidMixSpecError(f"the mix {name.strip()!r} names {strange}, which the document does not declare")
    return found


def mix_of_argument(
    document: Document, text: str, declared: Sequence[str], *, signed: bool = False, versions: bool = False
) -> dict[str, float]:
    """What `--mix` means: the mix saved under that name, else the weights as `parse_mix` reads them, which see; all
    finite, too, for nothing can be answered or written with others. Raises InvalidMixSpecError, NamedMixesError."""
    if is_mix_name(text):
        return named_mix(document, text)
    mix = dict(parse_mix(text, declared, signed, versions))
    if strange := [name for name, weight in mix.items() if not math.isfinite(weight)]:
        raise InvalidMixSpecError(f"the weight of {strange[0]!r} in the mix is not a finite number")
    return mix
