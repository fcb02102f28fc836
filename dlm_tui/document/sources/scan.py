"""One pass over a document's `training.sources`: from files to sections (formats-2.md section 1.7)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from dlm_tui.document.document import MAX_FILE_BYTES, Document, load
from dlm_tui.document.errors import DirectiveError, DirectivePathError, DlmEncodingError, printable
from dlm_tui.document.probes import PROSE_PROBE_CHARS
from dlm_tui.document.sections import Origin, Section, section_id
from dlm_tui.document.side_file import SideFileError, source_bindings
from dlm_tui.document.sources.defaults import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from dlm_tui.document.sources.folder_config import FolderConfig, merged_weights
from dlm_tui.document.sources.reading import Fingerprint, Unreadable, read_regular
from dlm_tui.document.sources.roots import Root, base_folder, resolve_below, resolve_source
from dlm_tui.document.sources.verdict import Verdict, tags_of
from dlm_tui.document.sources.walk import Candidate, FolderWalk
from dlm_tui.document.text import decode

Outcome = Literal[
    "ingested",
    "by_descent",
    "over_size",
    "image_no_store",
    "audio_no_store",
    "audio_no_transcript",
    "binary",
    "encoding",
    "unreadable",
    "outside",
    "name",
]
_BINARY_WINDOW = 1024
_MAX_WARNINGS = 100


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What a text file is without its text: the section's id, the hash and byte count of its content, and its file's
    size in bytes.
    """

    section_id: str
    content_sha256: str
    content_bytes: int
    raw_bytes: int


class ScanMemory(Protocol):
    """What earlier scans knew of files, so that unchanged ones need not be read again."""

    def recall(self, path: str, label: str, fingerprint: Fingerprint) -> TextFacts | Outcome | None:
        """What the file was found to be, None unless it is unchanged."""

    def keep(self, path: str, label: str, fingerprint: Fingerprint, found: TextFacts | Outcome) -> None:
        """Remember what a file was found to be."""


@dataclass(frozen=True, slots=True)
class SourceSection:
    """A section taken from a file; `content` is None when only its facts were asked for."""

    type: Literal["prose", "image", "audio"]
    adapter: str | None
    facts: TextFacts
    origin: Origin
    path: str
    content: str | None = None
    media_alt: str | None = None
    media_transcript: str | None = None
    media_blob_sha: str | None = None

    def as_section(self, characters: int | None = None) -> Section:
        """The section as training sees it, or with no more than the first `characters` of its text."""
        media_path = None if self.type == "prose" else self.origin.label
        return Section(
            type=self.type,
            content=(self.content or "")[:characters],
            start_line=0,
            content_line=0,
            section_id=self.facts.section_id,
            adapter=self.adapter,
            media_path=media_path,
            media_alt=self.media_alt,
            media_transcript=self.media_transcript,
            media_blob_sha=self.media_blob_sha,
            origin=self.origin,
        )


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one file of a source; `source_index` counts the sources from 0."""

    source_index: int
    label: str
    outcome: Outcome
    section: SourceSection | None = None


@dataclass(slots=True)
class SourceCounts:
    """How many files of one source became what; bytes are those of the files."""

    path: str
    file_count: int = 0
    total_bytes: int = 0
    image_count: int = 0
    image_bytes: int = 0
    audio_count: int = 0
    audio_bytes: int = 0
    skipped: dict[Outcome, int] = field(default_factory=dict)

    @property
    def section_count(self) -> int:
        """Sections of any type."""
        return self.file_count + self.image_count + self.audio_count

    def add(self, outcome: FileOutcome) -> None:
        """Count one file."""
        section = outcome.section
        if section is None:
            self.skipped[outcome.outcome] = self.skipped.get(outcome.outcome, 0) + 1
        elif section.type == "image":
            self.image_count += 1
            self.image_bytes += section.facts.raw_bytes
        elif section.type == "audio":
            self.audio_count += 1
            self.audio_bytes += section.facts.raw_bytes
        else:
            self.file_count += 1
            self.total_bytes += section.facts.raw_bytes


class SourceScan:
    """Iterating reads the sources file by file and yields what became of each; stop iterating to stop reading.

    After the pass `counts`, `configs` and `weights` are complete. `bindings` maps folders, as in the side file, to the
    adapter that the files below them train. With `with_text` the sections carry their content; otherwise `memory` may
    answer for files that have not changed, and nothing that is read is kept. `with_media` gives image and audio files
    their sections, too. Raises DirectivePathError, DirectivePolicyError before anything is read.
    """

    def __init__(
        self,
        document: Document,
        *,
        bindings: Mapping[str, str] | None = None,
        with_text: bool = False,
        with_media: bool = False,
        memory: ScanMemory | None = None,
    ) -> None:
        self.warnings: list[str] = []
        self.warning_count = 0
        self.configs: list[FolderConfig] = []
        self._with_text, self._with_media, self._memory = with_text, with_media, memory
        self._strict = document.training.sources_policy == "strict"
        sources = document.training.sources or []
        if sources and document.path is None:
            raise DirectivePathError(sources[0].path, "a document that is no file has no folder to look in")
        base = base_folder(document.path or Path())
        self._roots = [
            resolve_source(source, index, base, strict=self._strict, warn=self._warn)
            for index, source in enumerate(sources)
        ]
        self.counts = [SourceCounts(source.path) for source in sources]
        bound = {str(resolve_below(folder, base)[1]): adapter for folder, adapter in (bindings or {}).items()}
        # The deepest folder decides.
        self._bound = sorted(bound.items(), key=lambda item: -len(item[0]))

    def __iter__(self) -> Iterator[FileOutcome]:
        for root in self._roots:
            counts = self.counts[root.index]
            for outcome in self._read_root(root, counts):
                counts.add(outcome)
                yield outcome

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Tag -> value -> factor of all folder configurations together."""
        return merged_weights(self.configs)

    def sections(self) -> Iterator[SourceSection]:
        """Run the pass and give only the sections."""
        return (outcome.section for outcome in self if outcome.section is not None)

    def _warn(self, text: str) -> None:
        self.warning_count += 1
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(printable(text))

    def _read_root(self, root: Root, counts: SourceCounts) -> Iterator[FileOutcome]:
        verdict = Verdict(root.source)
        limit = root.source.max_files
        if os.path.isfile(root.path):  # noqa: PTH113
            name = os.path.basename(root.path)  # noqa: PTH119
            yield self._read(root, Candidate(name, root.path, name, ()), verdict)
            return
        if not os.path.isdir(root.path):  # noqa: PTH112
            return
        walk = FolderWalk(root.path, strict=self._strict, warn=self._warn)
        for candidate in walk:
            if limit is not None and counts.section_count >= limit:
                walk.configs_only = True
                continue
            yield self._read(root, candidate, verdict)
        self.configs += walk.sorted_configs()

    def _read(self, root: Root, candidate: Candidate, verdict: Verdict) -> FileOutcome:
        label = candidate.label
        if candidate.error:
            self._warn(f"{label!r} of the source {root.source.path!r} is skipped: {candidate.error}")
            return FileOutcome(root.index, label, "unreadable")
        if not verdict.takes(candidate.judged_path, candidate.configs):
            return FileOutcome(root.index, label, "by_descent")
        if candidate.outside and self._strict:
            self._warn(f"{label!r} of the source {root.source.path!r} is skipped: the link leads out of the source")
            return FileOutcome(root.index, label, "outside")
        if not _is_utf8(label):
            self._warn(f"{label!r} of the source {root.source.path!r} is skipped: the name is not UTF-8")
            return FileOutcome(root.index, label, "name")
        try:
            found = self._ingest(root, candidate)
        except Unreadable as error:
            self._warn(f"{label!r} of the source {root.source.path!r} is skipped: {error}")
            found = "unreadable"
        if isinstance(found, SourceSection):
            return FileOutcome(root.index, label, "ingested", found)
        return FileOutcome(root.index, label, found)

    def _ingest(self, root: Root, candidate: Candidate) -> SourceSection | Outcome:
        try:
            fingerprint = Fingerprint.of(os.stat(candidate.real))  # noqa: PTH116
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None
        limit = min(root.source.max_bytes_per_file or MAX_FILE_BYTES, MAX_FILE_BYTES)
        if fingerprint.size > limit:
            return "over_size"
        suffix = PurePosixPath(candidate.label).suffix.lower()
        if suffix in IMAGE_SUFFIXES or suffix in AUDIO_SUFFIXES:
            return self._ingest_media(root, candidate, "image" if suffix in IMAGE_SUFFIXES else "audio", limit)
        return self._ingest_text(root, candidate, fingerprint, limit)

    def _ingest_text(
        self, root: Root, candidate: Candidate, fingerprint: Fingerprint, limit: int
    ) -> SourceSection | Outcome:
        content: str | None = None
        found: TextFacts | Outcome | None = None
        if self._memory is not None and not self._with_text:
            found = self._memory.recall(candidate.real, candidate.label, fingerprint)
        if found is None:
            data, fingerprint = read_regular(candidate.real, limit, head=_BINARY_WINDOW, stop_at=b"\0")
            if b"\0" in data[:_BINARY_WINDOW]:
                found = "binary"
            else:
                try:
                    content = section_content(candidate.label, data)
                    found = read_facts(content, len(data))
                except DlmEncodingError as error:
                    self._warn(f"{candidate.label!r} of the source {root.source.path!r} is skipped: {error.text}")
                    found = "encoding"
            if self._memory is not None:
                self._memory.keep(candidate.real, candidate.label, fingerprint, found)
        if not isinstance(found, TextFacts):
            return found
        return self._section(root, candidate, "prose", found, content=content if self._with_text else None)

    def _ingest_media(
        self, root: Root, candidate: Candidate, kind: Literal["image", "audio"], limit: int
    ) -> SourceSection | Outcome:
        if not self._with_media:
            return "image_no_store" if kind == "image" else "audio_no_store"
        transcript = self._transcript(root, candidate) if kind == "audio" else None
        if kind == "audio" and transcript is None:
            return "audio_no_transcript"
        data, _ = read_regular(candidate.real, limit)
        blob = hashlib.sha256(data).hexdigest()
        identity = section_id(kind, "", media_path=candidate.label, media_blob_sha=blob)
        facts = TextFacts(identity, hashlib.sha256(b"").hexdigest(), 0, len(data))
        alt = PurePosixPath(candidate.label).stem if kind == "image" else None
        return self._section(root, candidate, kind, facts, alt=alt, transcript=transcript, blob=blob)

    def _transcript(self, root: Root, candidate: Candidate) -> str | None:
        """The text beside a sound file, None where there is none that can be read."""
        path = os.path.realpath(Path(_place(root, candidate)).with_suffix(".txt"))
        if self._strict and not Path(path).is_relative_to(Path(root.path)):
            return None
        try:
            return decode(read_regular(path, MAX_FILE_BYTES)[0]).strip()
        except (Unreadable, DlmEncodingError):
            return None

    def _section(
        self,
        root: Root,
        candidate: Candidate,
        kind: Literal["prose", "image", "audio"],
        facts: TextFacts,
        *,
        content: str | None = None,
        alt: str | None = None,
        transcript: str | None = None,
        blob: str | None = None,
    ) -> SourceSection:
        origin = Origin(root.source.path, candidate.label, tuple(tags_of(candidate.configs).items()))
        path = _place(root, candidate)
        return SourceSection(kind, self._adapter_of(path), facts, origin, path, content, alt, transcript, blob)

    def _adapter_of(self, path: str) -> str | None:
        for folder, adapter in self._bound:
            if path == folder or path.startswith(folder.rstrip(os.sep) + os.sep):
                return adapter
        return None


def section_content(label: str, data: bytes) -> str:
    """The prose that a file becomes. Raises DlmEncodingError for bytes that are not UTF-8."""
    return f"# source: {label}\n\n{decode(data)}"


def read_facts(content: str, raw_bytes: int) -> TextFacts:
    """What to remember of a prose section and its file."""
    encoded = content.encode()
    digest = hashlib.sha256(encoded).hexdigest()
    return TextFacts(section_id("prose", content), digest, len(encoded), raw_bytes)


def expand_sources(
    document: Document, *, only_bound: bool = False, characters: int | None = None
) -> tuple[Document, SourceScan]:
    """The document with the sections of its sources behind its own, and the finished pass.

    Folders train the adapters that the side file binds them to. `only_bound` leaves out the sections that no folder
    binds, `characters` keeps no more of each text than that: what routes prompts needs neither. Raises
    DirectivePathError, DirectivePolicyError, SideFileError.
    """
    scan = SourceScan(document, bindings=source_bindings(document), with_text=True)
    ingested = [
        section.as_section(characters) for section in scan.sections() if section.adapter is not None or not only_bound
    ]
    return replace(document, sections=(*document.sections, *ingested)), scan


def load_for_routing(path: Path) -> Document:
    """The document with the texts of folders that are bound to adapters, as far as the gate reads them.

    Sources that cannot be read leave the document as it is: what was trained still answers. Raises what `load` raises.
    """
    document = load(path)
    try:
        return expand_sources(document, only_bound=True, characters=PROSE_PROBE_CHARS)[0]
    except (DirectiveError, SideFileError):
        return document


def _place(root: Root, candidate: Candidate) -> str:
    """The absolute path of a candidate as it was found, links not followed."""
    return root.path if candidate.real == root.path else f"{root.path.rstrip(os.sep)}{os.sep}{candidate.label}"


def _is_utf8(label: str) -> bool:
    try:
        label.encode()
    except UnicodeEncodeError:
        return False
    return True
