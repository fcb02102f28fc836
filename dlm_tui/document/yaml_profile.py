"""The YAML that frontmatter may use: PyYAML's safe schema, with bounds on nesting, aliases and sizes.

The pure Python scanner is used on purpose: the C scanner accepts other texts and reports other columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dlm_tui.document.errors import FrontmatterError

MAX_CHARS = 1 << 20
MAX_DEPTH = 200
MAX_NODES = 50_000
MAX_INT_CHARS = 10_000
# Python refuses to print longer integers, so they could be read but never shown.
_INT_LIMIT = 10**4300

# No tag of a text can be this one.
_SELF_TAG = "\0self"
_RAW_ERRORS = (ValueError, TypeError, OverflowError, LookupError, AttributeError, RecursionError)


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses alias bombs and deep nesting before anything is expanded."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._anchored: dict[str | None, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            # An alias weighs as much as what it stands for; 0: still open, so it would contain itself.
            weight = self._anchored.get(event.anchor, 1)
            if weight == 0:
                self.get_event()  # type: ignore[no-untyped-call]
                return yaml.ScalarNode(_SELF_TAG, event.anchor, mark, mark)
            self._count(weight, mark)
            return super().compose_node(parent, index)
        start = self._nodes
        self._count(1, mark)
        if event.anchor is not None:
            self._anchored[event.anchor] = 0
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._anchored[event.anchor] = self._nodes - start
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _RAW_ERRORS as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"not a legal value ({error})", node.start_mark
            ) from None

    def construct_yaml_int(self, node: Any) -> int:
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_INT_CHARS:
            raise ValueError("the integer is too long")
        value: int = super().construct_yaml_int(node)
        if abs(value) >= _INT_LIMIT:
            raise ValueError("the integer has more than 4300 digits")
        return value

    def construct_yaml_float(self, node: Any) -> float:
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_INT_CHARS:
            raise ValueError("the number is too long")
        value: float = super().construct_yaml_float(node)
        return value

    def _count(self, weight: int, mark: Any) -> None:
        self._nodes += weight
        if self._nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_NODES} values, counting what aliases repeat", mark
            )


class SelfReference:
    """What stands where an alias would contain itself: a value of no type that any key takes."""

    def __repr__(self) -> str:
        return "a value that contains itself"


BoundedLoader.add_constructor(_SELF_TAG, lambda loader, node: SelfReference())
BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)
BoundedLoader.add_constructor("tag:yaml.org,2002:float", BoundedLoader.construct_yaml_float)


def read_mapping(text: str, path: Path | None = None) -> dict[Any, Any]:
    """The frontmatter as a mapping; white space only is an empty one.

    Raises FrontmatterError with the line in the file (frontmatter starts on line 2), or 0 where YAML gives
    none.
    """
    if not text.strip():
        return {}
    value = read_value(text, path, first_line=2)
    if not isinstance(value, dict):
        raise FrontmatterError(f"the frontmatter must be a mapping, not {type(value).__name__}", path=path, line=2)
    return value


def read_value(text: str, path: Path | None = None, *, first_line: int = 1) -> Any:
    """What the YAML text says, None where it says nothing; `first_line` is the number of its first line.

    Raises FrontmatterError with the line in the file, or 0 where YAML gives none.
    """
    if len(text) > MAX_CHARS:
        raise FrontmatterError(f"the YAML is longer than {MAX_CHARS} characters", path=path, line=1, col=1)
    try:
        return _construct(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part) or "unreadable"
        line, col = (mark.line + first_line, mark.column + 1) if mark is not None else (0, 0)
        raise FrontmatterError(f"invalid YAML: {reason}", path=path, line=line, col=col) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", None) or "unreadable"
        raise FrontmatterError(f"invalid YAML: {reason}", path=path) from None
    except _RAW_ERRORS as error:
        raise FrontmatterError(f"invalid YAML: not a legal value ({error})", path=path) from None


def key_as_written(text: str, above: Sequence[int | str], key: Any) -> str | None:
    """How a key that YAML does not read as text (`on`, `2024`) is written below the keys `above`; None if it is not."""
    loader = BoundedLoader(text)
    try:
        node = loader.get_single_node()
        for part in above:
            node = next((value for name, value in _pairs(node) if getattr(name, "value", None) == part), None)
        for name in (name for name, _ in _pairs(node) if isinstance(name, yaml.ScalarNode)):
            read = loader.construct_object(name)
            if type(read) is type(key) and read == key:
                return str(name.value)
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()
    return None


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _construct(text: str) -> Any:
    loader = BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
