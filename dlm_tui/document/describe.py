"""Everything that reading a document gives, as plain JSON values in the shape of the conformance vectors."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from dlm_tui.document.document import Document
from dlm_tui.document.errors import (
    BodyError,
    DirectiveError,
    DlmEncodingError,
    DocumentError,
    SchemaValidationError,
    UnknownAdapterError,
    printable,
)
from dlm_tui.document.pairs import instruction_pairs, preference_triples
from dlm_tui.document.probes import gate_mode, gate_probes, gate_samples
from dlm_tui.document.routing import route_sections, training_rows
from dlm_tui.document.sections import Section
from dlm_tui.errors import DlmTuiError

LONG_CONTENT = 20_000
_ALWAYS = ("type", "adapter", "start_line", "section_id")
_INTERNAL = (*_ALWAYS, "content", "content_line", "origin")
_OPTIONAL = tuple((field.name, field.default) for field in fields(Section) if field.name not in _INTERNAL)
_DIRECTIVE = ("source_path", "reason", "resolved", "root")


def describe_document(document: Document) -> dict[str, object]:
    """`ok`, `frontmatter`, `sections`, `gate_probes`, `routing`, `training_rows`, and the gate's counts if
    enabled.

    `training_rows` is absent for documents with image or audio sections.
    """
    result: dict[str, object] = {
        "ok": True,
        "frontmatter": tagged_floats(document.frontmatter.model_dump()),
        "sections": [_describe_section(section) for section in document.sections],
        "gate_probes": [{"adapter": p.adapter, "prompt": p.prompt} for p in gate_probes(document)],
    }
    if document.gate_enabled:
        result["gate_samples"] = gate_samples(document)
        result["gate_mode"] = gate_mode(document)
    try:
        result["routing"] = route_sections(document)
    except UnknownAdapterError as error:
        result["routing_error"] = {
            "error": type(error).__name__,
            "section_start_line": error.line,
            "adapter": error.adapter,
        }
    if not any(section.is_media for section in document.sections):
        result.update(_describe_rows(document))
    return result


def describe_error(error: DlmTuiError) -> dict[str, object]:
    """`ok` false, the class name, and the place as far as the class has one."""
    result: dict[str, object] = {"ok": False, "error": type(error).__name__, "line": None, "col": None}
    if isinstance(error, DlmEncodingError):
        result["byte_offset"] = error.byte_offset
    elif isinstance(error, DocumentError):
        result.update(line=error.line, col=error.col)
    if isinstance(error, SchemaValidationError):
        result["fields"] = list(error.fields)
    if isinstance(error, DirectiveError):
        result.update((name, getattr(error, name)) for name in _DIRECTIVE if hasattr(error, name))
    result["message"] = printable(str(error))
    return result


def describe_path(path: Path) -> str:
    """The path as text that can always be encoded."""
    return printable(str(path))


def tagged_floats(value: Any) -> Any:
    """The same value with non-finite floats as {"$float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, dict):
        return {key: tagged_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tagged_floats(item) for item in value]
    return value


def _describe_section(section: Section) -> dict[str, object]:
    shown: dict[str, object] = {name: getattr(section, name) for name in _ALWAYS}
    if len(section.content) > LONG_CONTENT:
        shown["content_chars"] = len(section.content)
        shown["content_sha256"] = hashlib.sha256(section.content.encode()).hexdigest()
    else:
        shown["content"] = section.content
    for name, default in _OPTIONAL:
        value = getattr(section, name)
        if value != default:
            shown[name] = value
    kind = {"instruction": "instruction", "preference": "preference"}.get(section.type)
    if kind is None:
        return shown
    try:
        if kind == "instruction":
            shown["instruction_pairs"] = [pair._asdict() for pair in instruction_pairs(section)]
        else:
            shown["preference_turns"] = [triple._asdict() for triple in preference_triples(section)]
    except BodyError as error:
        shown[f"{kind}_error"] = {"error": type(error).__name__, "section_line": error.section_line}
    return shown


def _describe_rows(document: Document) -> dict[str, object]:
    pairs: list[list[Any]] = []
    for index in range(len(document.sections)):
        try:
            pairs += [[row.kind, row.section_index] for row in training_rows(document, [index])]
        except BodyError as error:
            return {
                "training_rows_error": {
                    "error": type(error).__name__,
                    "section": index,
                    "section_line": error.section_line,
                }
            }
    return {"training_rows": pairs}
