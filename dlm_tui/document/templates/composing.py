"""A new document: a template filled in, or adapters of one's own, with the folders it learns from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlm_tui.document.document import Document, parse_bytes
from dlm_tui.document.names import ADAPTER_NAME_RULE, fresh_dlm_id, is_adapter_name
from dlm_tui.document.side_file import SideFile, read_side_file, side_file_path, write_side_file
from dlm_tui.document.templates.folders import LearnedFolder
from dlm_tui.document.templates.texts import NOTES, VOICE, sample_notes, template_text
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.files import write_new as write_new_file
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

EMBEDDED = "pocket"
# The embedded base is small: it learns with a higher rate than bases from the hub, and in more passes.
_EMBEDDED_RATE, _RATE = "0.002", "0.0002"
_EMBEDDED_EPOCHS, _EPOCHS = 12, 3
# About as many rows are seen in all, however many files there are.
_ROWS_SEEN = 400
_plain = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)?").fullmatch

_HEAD = """---
# Your document: training text for a small model, in one file. A section runs to the next line between double colons;
# its name behind the # says which adapter it trains, and text without a name trains all. Edit, save, and train.
dlm_id: {{dlm_id}}
dlm_version: 15
base_model: {{base_model}}
training:
  sequence_len: 256           # tokens of one row; longer ones are cut
  num_epochs: {{epochs}}              # times every row is seen
  adapters:
{{adapters}}{{gate}}{{sources}}---
"""
_GATE = """  gate:
    enabled: true             # decides per prompt how much of each adapter to use
    cold_start_floor: 4       # sections or files per adapter that it needs; until then all weigh the same
"""
_EXAMPLE = """::instruction#{name}::
### Q
A question that {name} should answer?
### A
The answer as it should be given.
"""


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What will be written: the document, its side file, and files of a folder that comes with it."""

    path: Path
    data: bytes
    document: Document
    side: SideFile
    folders: tuple[LearnedFolder, ...] = ()
    samples: dict[Path, bytes] = field(default_factory=dict)


def compose(
    path: Path,
    *,
    base_model: str = EMBEDDED,
    base: Path | None = None,
    template: str | None = None,
    adapters: Sequence[str] = (),
    folders: Sequence[LearnedFolder] = (),
) -> NewDocument:
    """The document for `path`, with an id of its own; nothing is written.

    `base` is a model folder or GGUF file to use instead of `base_model`, which the side file remembers.

    Folders bring their adapters with them; a single one gets the voice of the template for notes as its counterpart, so
    that there is something for a gate to decide. Raises UsageError for names that cannot be adapters and for a template
    together with adapters.
    """
    if template is not None and adapters:
        raise UsageError("a template has adapters of its own: give either --template or --adapters")
    for name in adapters:
        if not is_adapter_name(name):
            raise UsageError(f"{name!r} is not an adapter name: {ADAPTER_NAME_RULE}")
    if len(set(adapters)) != len(adapters):
        raise UsageError("an adapter is named twice")
    samples: dict[Path, bytes] = {}
    if template == NOTES and not folders:
        folders, samples = _notes_folder(path)
    if template in (None, NOTES) and len(folders) == 1 and not adapters:
        text = _rename(template_text(NOTES), folders[0].adapter)
    elif template is None and (folders or adapters):
        text = _blank([folder.adapter for folder in folders] or list(adapters), examples=not folders)
    elif template == NOTES:
        raise UsageError("the template for notes takes one folder that is not divided; without a template take several")
    else:
        text = template_text(template or "assistant")
    inside = [_relative(folder.source, path) for folder in folders]
    side = SideFile(
        base=str(base) if base is not None else None,
        source_adapters={}
        if template not in (None, NOTES)
        else {_relative(folder.folder, path): folder.adapter for folder in folders},
    )
    text = _fill(text, base_model, folders, dict.fromkeys(inside))
    data = text.encode()
    return NewDocument(path, data, parse_bytes(data, path), side, tuple(folders), samples)


def write_new(new: NewDocument) -> None:
    """Write all of it, each file only where there is none; what a killed call left of the same is taken up.

    Raises DlmTuiError if another file is in the place of one, or the disk refuses.
    """
    side_path = side_file_path(new.path)
    has_side = new.side != SideFile() and not (side_path.is_file() and read_side_file(side_path) == new.side)
    for target in (new.path, side_path) if has_side else (new.path,):
        if os.path.lexists(target):
            raise DlmTuiError(f"{target} exists already; nothing was overwritten: choose another name, or move it away")
    written: list[Path] = []
    try:
        new.path.parent.mkdir(parents=True, exist_ok=True)
        for target, data in new.samples.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            written.append(target)
            write_new_file(target, data)
        if has_side:
            written.append(side_path)
            write_side_file(side_path, new.side)
        # Last, so that a document that is there is complete.
        written.append(new.path)
        write_new_file(new.path, new.data)
    except BaseException as error:
        if isinstance(error, FileExistsError):
            written.pop()  # somebody else's, since a moment ago
        for target in written:
            target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DlmTuiError(f"{new.path} cannot be written: {cause(error)}") from error
        raise


def _notes_folder(path: Path) -> tuple[list[LearnedFolder], dict[Path, bytes]]:
    """The folder `notes` beside the document: as it is, or with the notes of the template in it, also where a killed
    call has written some of them."""
    folder = path.parent / NOTES
    samples = {folder / name: data for name, data in sample_notes().items()}
    there = list(folder.iterdir()) if folder.is_dir() else []
    if any(entry not in samples or read_file(entry) != samples[entry] for entry in there):
        count = sum(entry.is_file() for entry in there)
        return [LearnedFolder(folder, folder, NOTES, count)], {}
    missing = {target: data for target, data in samples.items() if target not in there}
    return [LearnedFolder(folder, folder, NOTES, len(samples))], missing


def _rename(text: str, adapter: str) -> str:
    """The template for notes with its folder's adapter under another name."""
    if adapter == VOICE:
        raise UsageError(f"the folder's adapter cannot be called {VOICE}: name it with --adapters")
    line = "    notes:                    #"
    renamed = f"    {_yaml(adapter)}:".ljust(len(line) - 1) + "#"
    return text.replace(line, renamed).replace("`notes`", f"`{adapter}`")


def _blank(adapters: Sequence[str], *, examples: bool) -> str:
    lines = [f"    {_yaml(name)}: {{lora_r: 8, learning_rate: {{{{rate}}}}}}\n" for name in adapters]
    text = _HEAD.replace("{{adapters}}", "".join(lines)).replace("{{gate}}", _GATE if len(adapters) > 1 else "")
    return text + "\n".join(_EXAMPLE.format(name=name) for name in adapters) if examples else text


def _fill(text: str, base_model: str, folders: Sequence[LearnedFolder], inside: dict[str, None]) -> str:
    embedded = base_model == EMBEDDED
    epochs = _EMBEDDED_EPOCHS if embedded else _EPOCHS
    files = sum(folder.file_count for folder in folders)
    if files:
        epochs = max(1, min(epochs, math.ceil(_ROWS_SEEN / files)))
    block = ""
    if inside:
        strict = all(not os.path.isabs(path) and not path.startswith("..") for path in inside)  # noqa: PTH117
        policy = "strict " if strict else "permissive"
        block = f"  sources_policy: {policy}     # strict: nothing outside this document's folder is read\n  sources:\n"
        block += "".join(f"    - path: {_yaml(path)}\n" for path in inside)
    # All digits would be read as a number.
    dlm_id = fresh_dlm_id()
    dlm_id = f'"{dlm_id}"' if dlm_id.isdigit() else dlm_id
    for place, value in (
        ("{{dlm_id}}", dlm_id),
        ("{{base_model}}", _yaml(base_model)),
        ("{{epochs}}", str(epochs)),
        ("{{rate}}", _EMBEDDED_RATE if embedded else _RATE),
        ("{{sources}}", block),
    ):
        text = text.replace(place, value)
    return text


def _relative(folder: Path, document: Path) -> str:
    """The folder as the document names it: relative while it lies in the document's folder, else absolute."""
    here, there = document.absolute().parent.resolve(), folder.resolve()
    return there.relative_to(here).as_posix() if there.is_relative_to(here) else str(there)


def _yaml(text: str) -> str:
    """A YAML scalar that is read back as this text."""
    reserved = text.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if _plain(text) and not reserved else json.dumps(text, ensure_ascii=False)
