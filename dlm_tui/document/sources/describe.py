"""What a pass over the sources found, as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

from dlm_tui.counting import counted
from dlm_tui.document.describe import tagged_floats
from dlm_tui.document.document import Document
from dlm_tui.document.errors import printable
from dlm_tui.document.schema import Source
from dlm_tui.document.sources.folder_config import FolderConfig
from dlm_tui.document.sources.scan import Outcome, SourceCounts, SourceScan, SourceSection

# Those of the other tool are always told; the rest, which it does not know, only where there were any.
_ALWAYS_TOLD = (
    "binary",
    "encoding",
    "over_size",
    "by_descent",
    "image_no_store",
    "audio_no_store",
    "audio_no_transcript",
)
_REASONS: dict[Outcome, str] = {
    "by_descent": "not included",
    "over_size": "too large",
    "image_no_store": "images",
    "audio_no_store": "sounds",
    "audio_no_transcript": "sounds without a transcript",
    "binary": "binary",
    "encoding": "not UTF-8",
    "unreadable": "unreadable",
    "outside": "links that lead out",
    "name": "with a name that is not UTF-8",
}
_SHORT = ("path", "file_count", "total_bytes", "skipped_binary", "skipped_encoding", "skipped_over_size")


def describe_scan(scan: SourceScan) -> dict[str, object]:
    """Run a pass: `ingested` sections in order, counters per source under `sources`, `discovered` folder
    configurations, merged `weights`, `warnings`.
    """
    ingested = [describe_section(section) for section in scan.sections()]
    return {
        "ingested": ingested,
        "sources": [describe_counts(counts) for counts in scan.counts],
        "discovered": [_describe_config(config) for config in scan.configs],
        "weights": tagged_floats(scan.weights),
        "warnings": list(scan.warnings),
        "warning_count": scan.warning_count,
    }


def describe_section(section: SourceSection) -> dict[str, object]:
    """One ingested section; media fields only where it has any."""
    shown: dict[str, object] = {
        "type": section.type,
        "adapter": section.adapter,
        "section_id": section.facts.section_id,
        "label": section.origin.label,
        "content_sha256": section.facts.content_sha256,
        "tags": dict(section.origin.tags),
    }
    if section.type != "prose":
        shown["media_path"] = section.origin.label
        shown["media_alt"] = section.media_alt
        shown["media_transcript"] = section.media_transcript
        shown["media_blob_sha"] = section.media_blob_sha
    return shown


def describe_counts(counts: SourceCounts) -> dict[str, object]:
    """The counters of one source under the other tool's names."""
    shown = {key: value for key, value in asdict(counts).items() if key != "skipped"}
    shown["path"] = printable(counts.path)
    for outcome in get_args(Outcome)[1:]:
        if outcome in _ALWAYS_TOLD or outcome in counts.skipped:
            shown[f"skipped_{outcome}"] = counts.skipped.get(outcome, 0)
    return shown


def describe_short(counts: SourceCounts) -> dict[str, object]:
    """The counters that a run's summary records."""
    return {key: value for key, value in describe_counts(counts).items() if key in _SHORT}


def count_words(counts: SourceCounts) -> str:
    """One source in a sentence: files, size, and what was skipped for which reason."""
    text = f"{printable(counts.path)}: {counted(counts.file_count, 'file')}, {counts.total_bytes / 1e6:.1f} MB"
    skipped = ", ".join(f"{count} {_REASONS[outcome]}" for outcome, count in counts.skipped.items())
    return f"{text}; skipped: {skipped}" if skipped else text


def describe_for_show(document: Document, scan: SourceScan | None) -> dict[str, object]:
    """`training_sources` and `discovered_training_configs` as `show` tells them; each absent if there is none.

    `scan` is a finished pass, or None where the sources could not be read: then only what the document says is told.
    """
    sources = document.training.sources
    if not sources:
        return {}
    told = [_declared(source) for source in sources]
    shown: dict[str, object] = {"training_sources": told}
    if scan is not None:
        for declared, counts in zip(told, scan.counts, strict=True):
            declared.update(describe_short(counts))
        if scan.configs:
            shown["discovered_training_configs"] = [_config_for_show(config) for config in scan.configs]
    return shown


def _declared(source: Source) -> dict[str, object]:
    return {
        "path": printable(source.path),
        "include": list(source.include),
        "exclude": list(source.exclude),
        "max_files": source.max_files,
        "max_bytes_per_file": source.max_bytes_per_file,
    }


def _describe_config(config: FolderConfig) -> dict[str, object]:
    keys = ("include", "exclude", "exclude_defaults", "metadata", "weights")
    rules = ("pattern", "anchored", "directory_only", "negate")
    training = config.training
    return {
        "anchor": printable(config.anchor),
        "has_training_yaml": training is not None,
        "ignore_rules": [{key: getattr(rule, key) for key in rules} for rule in config.rules],
        "config": None if training is None else {key: tagged_floats(getattr(training, key)) for key in keys},
    }


def _config_for_show(config: FolderConfig) -> dict[str, object]:
    training = config.training
    return {
        "anchor": printable(config.anchor),
        "has_training_yaml": training is not None,
        "has_ignore": bool(config.rules),
        "include": list(training.include) if training else [],
        "exclude": list(training.exclude) if training else [],
        "exclude_defaults": training.exclude_defaults if training else True,
        "metadata": dict(training.metadata) if training else {},
        "ignore_rules": len(config.rules),
    }
