"""The file beside a document for what the `.dlm` schema has no key for; the `dlm` tool ignores it.

Beside `notes.dlm` it is `notes.dlm.tui.toml`:

base = "models/mine"          # a model folder or a GGUF file to use instead of the document's base, from its folder
quantize = "nf4"              # keep the base's linear layers in 4 (nf4, fp4) or 8 bits (int8, torchao-int8)
offload = "/var/tmp/base"      # where a base that has no room in memory may lie on the disk, from the document's folder
allow_other_dtype = true      # use a gate that was trained on the same weights in another type, too

[source_adapters]             # the adapter that the files below a folder train, instead of all of them;
"notes/facts" = "facts"       # folders as in training.sources, the deepest one decides

[training]                    # what trainers offer beside the keys of the schema, see TrainerSettings
activation_checkpointing = true
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec

from dlm_tui.document.document import Document
from dlm_tui.document.errors import printable
from dlm_tui.document.replacing import beside_lock
from dlm_tui.document.toml_file import TomlFileError, parse_toml, read_toml, read_toml_text
from dlm_tui.document.trainer_settings import TrainerSettings
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_through_links
from dlm_tui.refused_field import place_of, refusal
from dlm_tui.system_errors import cause

Quantisation = Literal["nf4", "fp4", "int8", "torchao-int8"]
SUFFIX = ".tui.toml"


class SideFileError(DlmTuiError):
    """The side file cannot be used; the sentence names the file and the key."""


class SideFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Everything in the file; every key has a default."""

    source_adapters: dict[str, str] = {}
    training: TrainerSettings = TrainerSettings()
    base: str | None = None
    quantize: Quantisation | None = None
    offload: str | None = None
    allow_other_dtype: bool = False


def side_file_path(document: Path) -> Path:
    """Where the side file of a document is, whether it exists or not."""
    return document.with_name(document.name + SUFFIX)


def read_side_file(path: Path) -> SideFile:
    """The checked file; a missing one gives the defaults. Raises SideFileError."""
    try:
        return msgspec.convert(read_toml(path), SideFile)
    except (FileNotFoundError, NotADirectoryError):
        return SideFile()
    except TomlFileError as error:
        raise SideFileError(str(error)) from None
    except msgspec.ValidationError as error:
        text = f"{place_of(error) or 'the file'}: {refusal(error, SideFile)}"
    raise SideFileError(f"{printable(str(path))}: {printable(text)}")


def document_side_file(document: Document) -> SideFile:
    """The side file of a parsed document; the defaults for one without a path. Raises SideFileError."""
    return SideFile() if document.path is None else read_side_file(side_file_path(document.path))


def source_bindings(document: Document) -> dict[str, str]:
    """Folder -> adapter of the side file. Raises SideFileError, also for an adapter that the document lacks."""
    bindings = document_side_file(document).source_adapters
    for folder, adapter in bindings.items():
        if adapter not in document.routing_names:
            known = ", ".join(document.routing_names)
            raise SideFileError(
                f"{printable(str(side_file_path(document.path or Path())))}: source_adapters: {folder!r} is bound to "
                f"{adapter!r}, but the document has {known}"
            )
    return bindings


def write_side_file(path: Path, content: SideFile) -> None:
    """Write a new side file. An existing one would lose its comments. OSError if the disk refuses."""
    lines = ["# What dlm-tui knows about the document beside this file; the dlm tool ignores it.", ""]
    if content.base is not None:
        lines += [
            "# The model folder or GGUF file to use instead of the document's base.",
            f"base = {_quoted(content.base)}",
        ]
    if content.quantize is not None:
        lines += ["# The base's linear layers are kept in so many bits.", f"quantize = {_quoted(content.quantize)}"]
    if content.offload is not None:
        lines += ["# Where a base that has no room in memory may lie.", f"offload = {_quoted(content.offload)}"]
    if content.allow_other_dtype:
        lines += ["# A gate trained on the same weights in another type is used, too.", "allow_other_dtype = true"]
    if content.source_adapters:
        lines += ["# The adapter that the files below a folder train, instead of all of them.", "[source_adapters]"]
        lines += [f"{_quoted(folder)} = {_quoted(name)}" for folder, name in content.source_adapters.items()]
    if changed := content.training.changed():
        lines += ["# How adapters are trained, beside the keys of the document.", "[training]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in changed.items()]
    write_through_links(path, ("\n".join(lines) + "\n").encode())


def set_side_value(path: Path, key: str, value: str | None) -> None:
    """Write one of the file's own keys, or take it out, and leave every other line as it is.

    Raises SideFileError for a file that cannot be used, or where the key cannot be written by its line alone, and
    DocumentBusy.
    """
    if getattr(read_side_file(path), key) == value:
        return
    try:
        with beside_lock(path):  # another process may set another key
            _set_value(path, key, value)
    except (TomlFileError, msgspec.ValidationError) as error:
        raise SideFileError(f"{printable(str(path))}: {key} cannot be changed here: {printable(str(error))}") from None
    except OSError as error:
        raise SideFileError(f"cannot write {printable(str(path))}: {cause(error)}") from None


def remove_empty_side_file(path: Path) -> None:
    """Remove a side file in which no line says anything any more. Raises SideFileError, DocumentBusy."""
    try:
        with beside_lock(path):
            if not read_toml_text(path).strip():
                path.unlink()
    except FileNotFoundError:
        return
    except TomlFileError as error:
        raise SideFileError(str(error)) from None
    except OSError as error:
        raise SideFileError(f"cannot remove {printable(str(path))}: {cause(error)}") from None


def _set_value(path: Path, key: str, value: str | None) -> None:
    before = read_side_file(path)
    lines = read_toml_text(path).splitlines() if path.exists() else []
    tables = next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    while tables and (not lines[tables - 1].strip() or lines[tables - 1].lstrip().startswith("#")):
        tables -= 1  # what stands before a table belongs to it
    own = [at for at, line in enumerate(lines[:tables]) if line.partition("=")[0].strip() == key]
    new = [] if value is None else [f"{key} = {_quoted(value)}"]
    start, stop = (own[0], own[0] + 1) if own else (tables, tables)
    text = "\n".join([*lines[:start], *new, *lines[stop:]]) + "\n"
    wanted = msgspec.structs.replace(before, **{key: value})
    if msgspec.convert(parse_toml(text, path), SideFile) != wanted:
        raise SideFileError(f"{printable(str(path))}: {key} cannot be changed here; write {new} into it yourself")
    write_through_links(path, text.encode())


def _quoted(text: str) -> str:
    """A TOML basic string."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
