"""A section of a document, and its identity (formats.md sections 7 and 9)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dlm_tui.document.names import MEDIA_TYPES
from dlm_tui.document.text import lf_only


def section_id(
    section_type: str, content: str, *, media_path: str | None = None, media_blob_sha: str | None = None
) -> str:
    """16 hex digits that name a section by type and content (media: type, path and file hash).

    Adapter, markers and position do not count.
    """
    if section_type in MEDIA_TYPES:
        text = f"{section_type}\n{media_path or ''}"
        if media_blob_sha is not None:
            text += f"\n{media_blob_sha}"
    else:
        text = f"{section_type}\n{lf_only(content)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an ingested section comes from: the source's path as written, the file's path below it, its tags."""

    source: str
    label: str
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """One piece of training text.

    `start_line` is the line of the fence (of the body for opening prose), `content_line` that of the first
    line of `content`, both counted from 1 in the file. Marker and media fields are None or False where
    there is none. Sections that come from a file of `training.sources` have an `origin` and both lines 0.
    """

    type: str
    content: str
    start_line: int
    content_line: int
    section_id: str
    adapter: str | None = None
    media_path: str | None = None
    media_alt: str | None = None
    media_transcript: str | None = None
    media_blob_sha: str | None = None
    auto_harvest: bool = False
    harvest_source: str | None = None
    auto_mined: bool = False
    judge_name: str | None = None
    judge_score_chosen: float | None = None
    judge_score_rejected: float | None = None
    mined_at: str | None = None
    mined_run_id: int | None = None
    auto_synth: bool = False
    synth_teacher: str | None = None
    synth_strategy: str | None = None
    synth_at: str | None = None
    source_section_id: str | None = None
    origin: Origin | None = None

    @property
    def is_media(self) -> bool:
        """Image and audio sections."""
        return self.type in MEDIA_TYPES
