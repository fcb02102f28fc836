"""Changing settings below `training` in a document's frontmatter without touching any other byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dlm_tui.document.document import Document, parse_bytes, read_document_bytes
from dlm_tui.document.errors import DocumentError, FileChanged
from dlm_tui.document.identity import frontmatter_span
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.document.replacing import save_document
from dlm_tui.document.schema import AdapterSettings
from dlm_tui.document.yaml_profile import BoundedLoader
from dlm_tui.errors import DlmTuiError, UsageError


def setting_paths(document: Document, path: str) -> list[str]:
    """The paths below `training` that `path` means: a setting of adapters without `adapters.NAME.` is that of each.

    Raises UsageError for a path that cannot be varied.
    """
    first, *rest = path.split(".")
    if rest or first not in AdapterSettings.model_fields:
        if not path or not all(part and part.isprintable() for part in (first, *rest)):
            raise UsageError(f"{path!r} is no path below training, such as learning_rate or gate.entropy_lambda")
        if first == "adapters" and rest:
            refuse_unknown_adapter(rest[0], document.routing_names)
        return [path]
    if not document.adapter_names:
        return [path]
    return [f"adapters.{name}.{path}" for name in document.adapter_names]


def with_settings(data: bytes, values: Mapping[str, str], path: Path | None = None) -> bytes:
    """The same bytes with every dotted path below `training` set to the YAML scalar `values` gives.

    A key that is there has its value replaced, one that is not gets a line (or an entry, in flow style). Raises
    DocumentError where the document does not take the value, UsageError for what is no scalar, and DlmTuiError where
    the frontmatter is written in a way that has no safe place for it: the sentence says what to write by hand.
    """
    for field, value in values.items():
        data = _with_setting(data, field, value, path)
    return data


def write_settings(path: Path, expected_sha256: str, values: Mapping[str, str]) -> str:
    """`with_settings` on a file; returns the new hash. Raises FileChanged if the file is another one by now."""
    data = read_document_bytes(path)
    before = parse_bytes(data, path)
    if before.sha256 != expected_sha256:
        raise FileChanged(f"{path} has changed since it was read; nothing was written")
    changed = with_settings(data, values, path)
    if changed != data:
        save_document(path, data, changed)
    return parse_bytes(changed, path).sha256


def _with_setting(data: bytes, field: str, value: str, path: Path | None) -> bytes:
    before = parse_bytes(data, path)
    if not value or any(character in value for character in "\n\r#[]{}&*!|>'\"%@`,:"):
        raise UsageError(f"{field}={value}: a value is a plain number or word")
    keys = ["training", *field.split(".")]
    text = data.decode()
    span = frontmatter_span(text)
    refused: DocumentError | None = None
    at, behind = span if span is not None else (0, 0)
    frontmatter = text[at:behind]
    line_end = "\r\n" if "\r\n" in frontmatter else "\n"
    for start, end, inserted in _places(frontmatter, keys, value):
        changed = (text[: at + start] + inserted.replace("\n", line_end) + text[at + end :]).encode()
        try:
            after = parse_bytes(changed, path)
        except DocumentError as error:
            refused = error
            continue
        if _only_differs(before, after, keys):
            return changed
    if refused is not None:
        raise refused
    raise DlmTuiError(f"write `{field}: {value}` below `training` by hand: there is no safe place for it")


def _only_differs(before: Document, after: Document, keys: list[str]) -> bool:
    """Whether the two documents are the same but for the value of one key."""
    trees: list[dict[str, Any]] = [item.frontmatter.model_dump() for item in (before, after)]
    for tree in trees:
        node: Any = tree
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return False
        node.pop(keys[-1], None)
    return trees[0] == trees[1] and [item.section_id for item in before.sections] == [
        item.section_id for item in after.sections
    ]


def _places(frontmatter: str, keys: list[str], value: str) -> Iterator[tuple[int, int, str]]:
    """What to put in place of what: (start, end, text with line feeds) in the frontmatter, best first."""
    loader = BoundedLoader(frontmatter)
    try:
        node: Any = loader.get_single_node()
    finally:
        loader.dispose()
    for depth, key in enumerate(keys):
        if not isinstance(node, yaml.MappingNode):
            return
        found = [item for name, item in node.value if isinstance(name, yaml.ScalarNode) and name.value == key]
        if not found:
            yield from _new_entry(frontmatter, node, keys[depth:], value)
            return
        node = found[-1]
        nothing = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
        if nothing and depth < len(keys) - 1:
            start, end = node.start_mark.index, node.end_mark.index
            yield start, end, ("" if end > start else " ") + _flow(keys[depth + 1 :], value)
            return
    if isinstance(node, yaml.ScalarNode):
        yield node.start_mark.index, node.end_mark.index, value


def _flow(keys: list[str], value: str) -> str:
    """The value inside one flow mapping per key."""
    for key in reversed(keys):
        value = f"{{{key}: {value}}}"
    return value


def _new_entry(frontmatter: str, node: yaml.MappingNode, keys: list[str], value: str) -> Iterator[tuple[int, int, str]]:
    entry = f"{keys[0]}: {_flow(keys[1:], value)}"
    if node.flow_style:
        end = int(node.end_mark.index) - 1
        bare = not node.value
        at = end if bare else int(node.value[-1][1].end_mark.index)
        yield at, at, entry if bare else f", {entry}"
        return
    if not node.value:
        return
    indent = " " * int(node.value[0][0].start_mark.column)
    # Behind the line on which the mapping really ends: a block's end mark stands at the next token.
    last = frontmatter[: int(node.value[-1][1].end_mark.index)].rstrip()
    line_end = frontmatter.find("\n", len(last))
    if line_end < 0:
        yield len(frontmatter), len(frontmatter), f"\n{indent}{entry}"
    else:
        yield line_end + 1, line_end + 1, f"{indent}{entry}\n"
