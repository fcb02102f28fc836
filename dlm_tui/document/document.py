"""A parsed document, and how it is read from bytes or a file."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.counting import counted
from dlm_tui.document.body import read_body
from dlm_tui.document.in_place import finish_cut_change
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.document.sections import Section
from dlm_tui.document.text import decode, split_frame
from dlm_tui.errors import DlmTuiError
from dlm_tui.meant import nearest
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document.schema import AdapterSettings, Frontmatter, Training

MAX_FILE_BYTES = 1 << 28
DEFAULT_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Document:
    """Frontmatter and sections of one file; `sha256` is the hex hash of the raw bytes."""

    path: Path | None
    frontmatter: Frontmatter
    sections: tuple[Section, ...]
    sha256: str

    @property
    def dlm_id(self) -> str:
        """The id that names the document's store."""
        return self.frontmatter.dlm_id

    @property
    def base_model(self) -> str:
        """Key of the base, as written."""
        return self.frontmatter.base_model

    @property
    def system_prompt(self) -> str | None:
        """The system turn as it is said, in asking and exporting alike: trimmed; None without one or where it is blank.

        A block (`system_prompt: |`) ends in a line feed, which is none of its text; `frontmatter` has it as written.
        """
        return (self.frontmatter.system_prompt or "").strip() or None

    @property
    def training(self) -> Training:
        """The training block."""
        return self.frontmatter.training

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Declared adapters in their order; empty if the document declares none."""
        return tuple(self.training.adapters or ())

    @property
    def routing_names(self) -> tuple[str, ...]:
        """The adapters that sections can train: the declared ones, or the single `default`."""
        return self.adapter_names or (DEFAULT_ADAPTER,)

    @property
    def gate_enabled(self) -> bool:
        """Whether the document asks for a gate."""
        return self.training.gate.enabled

    @property
    def training_words(self) -> str:
        """What a training of everything trains: "3 adapters and the gate", or "the adapter"."""
        count = len(self.routing_names)
        what = counted(count, "adapter") if count > 1 else "the adapter"
        return f"{what} and the gate" if self.gate_enabled else what

    def adapter_settings(self, name: str) -> AdapterSettings:
        """How adapter `name` is trained; the flat settings for `default` if no adapter is declared.

        Raises UsageError for a name that the document does not declare.
        """
        from dlm_tui.document.schema import AdapterSettings

        refuse_unknown_adapter(name, self.routing_names)
        if self.training.adapters:
            return self.training.adapters[name]
        flat = {field: getattr(self.training, field) for field in AdapterSettings.model_fields}
        return AdapterSettings.model_construct(**flat)


def parse_bytes(data: bytes, path: Path | None = None) -> Document:
    """The document that `data` is; `path` only names it in errors.

    Stages in order, the first failing one ends the parse: DlmEncodingError, FrontmatterError,
    SchemaValidationError, DlmVersionError or UnsupportedMigrationError, FenceError. Malformed instruction and
    preference bodies still parse.
    """
    # pydantic and YAML take a tenth of a second to load; only the first parse pays for it.
    from dlm_tui.document.migrate import migrate
    from dlm_tui.document.schema import validate
    from dlm_tui.document.yaml_profile import read_mapping

    frame = split_frame(decode(data, path), path)
    frontmatter = validate(migrate(read_mapping(frame.frontmatter, path), path), path, frame.frontmatter)
    sections = read_body(frame.body_lines, frame.body_start, path)
    return Document(path, frontmatter, sections, hashlib.sha256(data).hexdigest())


def read_document_bytes(path: Path) -> bytes:
    """The raw bytes of a document file, in which a change that was cut is completed first.

    DlmTuiError for anything but a readable regular file, CutChange for a change that cannot be completed.
    """
    try:
        finish_cut_change(path)
        return read_file(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise DlmTuiError(f"cannot read {path}: {error.strerror}{meant_document(path)}") from None
    except (OSError, ValueError) as error:
        raise DlmTuiError(f"cannot read {path}: {cause(error)}") from None


def meant_document(path: Path) -> str:
    """The end of a sentence about a document that does not exist: the one beside it with the nearest name."""
    with contextlib.suppress(OSError):
        near = nearest(path.name, [beside.name for beside in path.parent.glob("*.dlm") if beside.name.isprintable()])
        return f": did you mean {path.with_name(near)}?" if near is not None else ""
    return ""


def load(path: Path) -> Document:
    """The document in a file. Raises DlmTuiError if it cannot be read, DocumentError if it does not parse."""
    return parse_bytes(read_document_bytes(path), path)
