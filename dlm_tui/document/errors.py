"""What can be wrong with a document: one class per stage of reading, each with its place in the file."""

from __future__ import annotations

from pathlib import Path

from dlm_tui.errors import DlmTuiError, InvalidDocument, UsageError

MAX_MESSAGE_CHARS = 8000


def shortened(text: str, limit: int = 80) -> str:
    """`text` cut to what a message can carry."""
    return text if len(text) <= limit else text[:limit] + "…"


def printable(text: str) -> str:
    """`text` with lone surrogates spelled out, so that it can always be encoded as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class DocumentError(InvalidDocument):
    """A document that does not parse.

    `line` and `col` count from 1, columns in code points; 0 is unknown. `text` is the sentence without the
    place.
    """

    def __init__(self, text: str, *, path: Path | None = None, line: int = 0, col: int = 0) -> None:
        self.text = printable(shortened(text, MAX_MESSAGE_CHARS))
        self.path = path
        self.line = line
        self.col = col
        place = printable(str(path)) if path is not None else "document"
        if line:
            place += f":{line}:{col}" if col else f":{line}"
        super().__init__(f"{place}: {self.text}")


class DlmEncodingError(DocumentError):
    """The bytes are not UTF-8; `byte_offset` is the zero-based offset of the first bad byte."""

    def __init__(self, text: str, *, byte_offset: int, path: Path | None = None) -> None:
        super().__init__(text, path=path)
        self.byte_offset = byte_offset


class FrontmatterError(DocumentError):
    """The frame of three dashes is broken, or the YAML between them is."""


class SchemaValidationError(DocumentError):
    """The frontmatter is YAML but not what the schema allows; `fields` are dotted paths of all problems."""

    def __init__(self, text: str, *, fields: tuple[str, ...] = (), path: Path | None = None) -> None:
        super().__init__(text, path=path, line=2)
        self.fields = fields


class DlmVersionError(DocumentError):
    """`dlm_version` is newer than this program knows."""


class UnsupportedMigrationError(DlmVersionError):
    """`dlm_version` is below 1."""


class FenceError(DocumentError):
    """A fence, a provenance marker or a code block of the body is malformed."""


class BodyError(InvalidDocument):
    """An instruction or preference body that gives no rows.

    `section_line` counts from 1 at the first line of the section's content, after fence and markers, at every
    Unicode line boundary.
    """

    def __init__(self, text: str, *, section_id: str, section_line: int) -> None:
        super().__init__(f"section {section_id}, line {section_line}: {text}")
        self.text = text
        self.section_id = section_id
        self.section_line = section_line


class InstructionParseError(BodyError):
    """A question-and-answer body does not follow the grammar."""


class PreferenceParseError(BodyError):
    """A prompt-chosen-rejected body does not follow the grammar."""


class UnknownAdapterError(InvalidDocument):
    """A section is tagged for an adapter that the document does not declare."""

    def __init__(self, text: str, *, adapter: str, line: int) -> None:
        super().__init__(text)
        self.adapter = adapter
        self.line = line


class MediaTrainingError(InvalidDocument):
    """Image and audio sections are read and shown, but this program does not train on them."""

    def __init__(self, text: str, *, line: int) -> None:
        super().__init__(text)
        self.line = line


class DirectiveError(DlmTuiError):
    """`training.sources` names something that cannot be taken in."""


class DirectivePathError(DirectiveError):
    """A source's path is missing or means nothing; `source_path` is what it resolves to, as far as it does."""

    def __init__(self, source_path: str, reason: str) -> None:
        self.source_path = printable(source_path)
        self.reason = printable(reason)
        super().__init__(f"the source {self.source_path}: {self.reason}")


class DirectivePolicyError(DirectiveError):
    """The policy is strict and a source resolves to a place outside the document's folder."""

    def __init__(self, resolved: str, root: str) -> None:
        self.resolved = printable(resolved)
        self.root = printable(root)
        super().__init__(
            f"the source {self.resolved} lies outside {self.root}, which the strict policy does not allow; "
            "move it there, or set training.sources_policy to permissive"
        )


class InvalidMixSpecError(UsageError):
    """A mix string like `tone:0.7,facts:0.3` that cannot be read."""


class FileChanged(DlmTuiError):
    """The file on disk is not the one that was read, so nothing was written."""
