"""Declaring an adapter in a document's frontmatter without touching any other byte."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from dlm_tui.document.document import Document, parse_bytes
from dlm_tui.document.errors import DocumentError
from dlm_tui.document.identity import frontmatter_span
from dlm_tui.document.names import ADAPTER_NAME_RULE, is_adapter_name
from dlm_tui.document.schema import AdapterSettings
from dlm_tui.document.yaml_profile import BoundedLoader
from dlm_tui.errors import DlmTuiError, UsageError


def declare_adapter(data: bytes, name: str) -> bytes:
    """The same bytes with `name: {}` as the last entry of `training.adapters`.

    The text is unchanged when the adapter is declared already. Raises DocumentError if the document does not parse,
    UsageError for an illegal name, DlmTuiError where the frontmatter is written in a way that has no place for one
    more line (flow style, aliases): the sentence says what to add by hand.
    """
    if not is_adapter_name(name):
        raise UsageError(f"{name!r} is not an adapter name: {ADAPTER_NAME_RULE}")
    before = parse_bytes(data)
    if name in before.adapter_names:
        return data
    by_hand = DlmTuiError(f"add `{name}: {{}}` below `training.adapters` by hand: there is no safe place for it")
    text = data.decode()
    span = frontmatter_span(text)
    if span is None:
        raise by_hand
    start, end = span
    for at, inserted in _places(text[start:end], name):
        lines_end = "\r\n" if "\r\n" in text[start:end] else "\n"
        addition = inserted.replace("\n", lines_end)
        changed = (text[: start + at] + addition + text[start + at :]).encode()
        if _is_declared(before, changed, name):
            return changed
    raise by_hand


def _is_declared(before: Document, changed: bytes, name: str) -> bool:
    """Whether the changed bytes are the document before plus this one adapter with default settings."""
    try:
        after = parse_bytes(changed)
    except DocumentError:
        return False
    adapters = {**(before.training.adapters or {}), name: AdapterSettings()}
    training = before.training.model_copy(update={"adapters": adapters})
    expected = before.frontmatter.model_copy(update={"training": training})
    return after.frontmatter == expected and [s.section_id for s in after.sections] == [
        s.section_id for s in before.sections
    ]


def _places(frontmatter: str, name: str) -> Iterator[tuple[int, str]]:
    """Where one more line may go: (offset in the frontmatter, text with line feeds), best first."""
    loader = BoundedLoader(frontmatter)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    training = _value(root, "training")
    adapters = _value(training, "adapters")
    if isinstance(adapters, yaml.MappingNode) and not adapters.flow_style and adapters.value:
        indent = " " * int(adapters.value[0][0].start_mark.column)
        yield from _after(frontmatter, adapters.value[-1][1], f"{indent}{name}: {{}}")
    elif isinstance(training, yaml.MappingNode) and not training.flow_style and training.value:
        indent = " " * int(training.value[0][0].start_mark.column)
        yield from _after(frontmatter, training.value[-1][1], f"{indent}adapters:\n{indent}  {name}: {{}}")
    elif training is None and isinstance(root, yaml.MappingNode) and not root.flow_style:
        yield len(frontmatter), f"\ntraining:\n  adapters:\n    {name}: {{}}"


def _after(frontmatter: str, node: yaml.Node, lines: str) -> Iterator[tuple[int, str]]:
    """Behind the line on which `node` really ends; a block's end mark stands at the next token."""
    last = frontmatter[: int(node.end_mark.index)].rstrip()
    line_end = frontmatter.find("\n", len(last))
    if line_end < 0:
        yield len(frontmatter), f"\n{lines}"
    else:
        yield line_end + 1, f"{lines}\n"


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    found = [value for name, value in node.value if isinstance(name, yaml.ScalarNode) and name.value == key]
    return found[-1] if found else None
