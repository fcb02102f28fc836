"""Documents: text to frontmatter and sections, what trains on them, appending a section, watching a file.

Names load on first use, so that importing the room costs nothing; nothing here needs torch or textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm_tui.lazy import load as load_name

if TYPE_CHECKING:
    from dlm_tui.document.append import AppendResult, append_section, preview_section, undo_append
    from dlm_tui.document.describe import describe_document, describe_error
    from dlm_tui.document.document import Document, load, parse_bytes, read_document_bytes
    from dlm_tui.document.errors import (
        BodyError,
        DlmEncodingError,
        DlmVersionError,
        DocumentError,
        FenceError,
        FileChanged,
        FrontmatterError,
        InstructionParseError,
        InvalidMixSpecError,
        MediaTrainingError,
        PreferenceParseError,
        SchemaValidationError,
        UnknownAdapterError,
        UnsupportedMigrationError,
    )
    from dlm_tui.document.identity import with_dlm_id
    from dlm_tui.document.mix import format_mix, parse_mix
    from dlm_tui.document.names import fresh_dlm_id, is_adapter_name, is_dlm_id
    from dlm_tui.document.pairs import (
        Pair,
        Triple,
        instruction_content,
        instruction_pairs,
        preference_triples,
    )
    from dlm_tui.document.probes import Probe, gate_mode, gate_probes, gate_samples
    from dlm_tui.document.problems import Problem, body_problems
    from dlm_tui.document.routing import Row, route_sections, split_side, training_rows
    from dlm_tui.document.schema import AdapterSettings, Frontmatter
    from dlm_tui.document.sections import Section, section_id
    from dlm_tui.document.watch import Change, watch_document

_HOME = {
    "append": ("AppendResult", "append_section", "preview_section", "undo_append"),
    "describe": ("describe_document", "describe_error"),
    "document": ("Document", "load", "parse_bytes", "read_document_bytes"),
    "errors": (
        "BodyError",
        "DlmEncodingError",
        "DlmVersionError",
        "DocumentError",
        "FenceError",
        "FileChanged",
        "FrontmatterError",
        "InstructionParseError",
        "InvalidMixSpecError",
        "MediaTrainingError",
        "PreferenceParseError",
        "SchemaValidationError",
        "UnknownAdapterError",
        "UnsupportedMigrationError",
    ),
    "identity": ("with_dlm_id",),
    "mix": ("format_mix", "parse_mix"),
    "names": ("fresh_dlm_id", "is_adapter_name", "is_dlm_id"),
    "pairs": ("Pair", "Triple", "instruction_content", "instruction_pairs", "preference_triples"),
    "probes": ("Probe", "gate_mode", "gate_probes", "gate_samples"),
    "problems": ("Problem", "body_problems"),
    "routing": ("Row", "route_sections", "split_side", "training_rows"),
    "schema": ("AdapterSettings", "Frontmatter"),
    "sections": ("Section", "section_id"),
    "watch": ("Change", "watch_document"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AdapterSettings",
    "AppendResult",
    "BodyError",
    "Change",
    "DlmEncodingError",
    "DlmVersionError",
    "Document",
    "DocumentError",
    "FenceError",
    "FileChanged",
    "Frontmatter",
    "FrontmatterError",
    "InstructionParseError",
    "InvalidMixSpecError",
    "MediaTrainingError",
    "Pair",
    "PreferenceParseError",
    "Probe",
    "Problem",
    "Row",
    "SchemaValidationError",
    "Section",
    "Triple",
    "UnknownAdapterError",
    "UnsupportedMigrationError",
    "append_section",
    "body_problems",
    "describe_document",
    "describe_error",
    "format_mix",
    "fresh_dlm_id",
    "gate_mode",
    "gate_probes",
    "gate_samples",
    "instruction_content",
    "instruction_pairs",
    "is_adapter_name",
    "is_dlm_id",
    "load",
    "parse_bytes",
    "parse_mix",
    "preference_triples",
    "preview_section",
    "read_document_bytes",
    "route_sections",
    "section_id",
    "split_side",
    "training_rows",
    "undo_append",
    "watch_document",
    "with_dlm_id",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULE_OF, name)
