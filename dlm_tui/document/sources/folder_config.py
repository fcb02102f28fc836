"""The `.dlm` folder of a source folder: `training.yaml` and `ignore` (formats-2.md section 1.6)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from dlm_tui.document.errors import DocumentError, printable
from dlm_tui.document.schema import Block
from dlm_tui.document.sources.globs import Matches, compile_any
from dlm_tui.document.text import decode
from dlm_tui.document.yaml_profile import read_value

CONFIG_FOLDER = ".dlm"
CONFIG_NAME, IGNORE_NAME = "training.yaml", "ignore"
MAX_CONFIG_BYTES = 1 << 20
_MOST_COSTLY = 20_000
"""Rules of an ignore file that each file must be held against one by one; plain names are looked up at once."""


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


Weights = dict[str, dict[str, Annotated[float, AfterValidator(_not_negative)]]]


class TrainingConfig(Block):
    """`training.yaml`, all defaults filled in."""

    dlm_training_version: Literal[1] = 1
    include: list[str] = Field(default=[])
    exclude: list[str] = Field(default=[])
    exclude_defaults: bool = True
    metadata: dict[str, str] = Field(default={})
    weights: Weights = Field(default={})


@dataclass(frozen=True, slots=True)
class IgnoreRule:
    """One line of an ignore file."""

    pattern: str
    anchored: bool
    directory_only: bool
    negate: bool


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """What one folder says about the files below it.

    `anchor` is the folder's absolute path, `prefix` the same relative to the source with a slash behind it, empty for
    the source itself. `training` is None where there is no valid `training.yaml`. `judges` are the
    rules by the runs that say the same: whether they negate, and whether any matches a path relative to the folder.
    """

    anchor: str
    prefix: str
    training: TrainingConfig | None
    rules: tuple[IgnoreRule, ...]
    judges: tuple[tuple[bool, Matches], ...]
    includes: Matches | None
    excludes: Matches | None


def make_config(
    anchor: str, prefix: str, training: bytes | None, ignore: bytes | None, warn: Callable[[str], None]
) -> FolderConfig:
    """The configuration from the bytes of its two files; a file that is not well-formed is dropped with a warning."""
    config = None if training is None else _read_training(training, anchor, warn)
    rules = () if ignore is None else tuple(_read_ignore(ignore, anchor, warn))
    if _cost(rules) > _MOST_COSTLY:
        warn(
            f"{printable(anchor)}/{CONFIG_FOLDER}/{IGNORE_NAME} is not used: it has more than {_MOST_COSTLY} rules "
            "with * or ?, or changes between rules and exceptions; make it shorter"
        )
        rules = ()
    includes = compile_any(config.include) if config and config.include else None
    excludes = compile_any(config.exclude) if config and config.exclude else None
    return FolderConfig(anchor, prefix, config, rules, tuple(_judges(rules)), includes, excludes)


def _read_training(data: bytes, anchor: str, warn: Callable[[str], None]) -> TrainingConfig | None:
    place = f"{printable(anchor)}/{CONFIG_FOLDER}/{CONFIG_NAME}"
    try:
        value: Any = read_value(decode(data))
        return TrainingConfig.model_validate({} if value is None else value)
    except DocumentError as error:
        reason = error.text
        if error.line:
            place += f":{error.line}"
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(printable(str(part)) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else "the top level must be a mapping"
    warn(f"{place} is not used: {reason}")
    return None


def _read_ignore(data: bytes, anchor: str, warn: Callable[[str], None]) -> Iterator[IgnoreRule]:
    place = f"{printable(anchor)}/{CONFIG_FOLDER}/{IGNORE_NAME}"
    try:
        lines = decode(data).splitlines()
    except DocumentError as error:
        warn(f"{place} is not used: {error.text}")
        return
    for number, full_line in enumerate(lines, 1):
        line = full_line.rstrip()
        if not line or line.lstrip().startswith("#"):
            continue
        negate = line.startswith("!")
        line = line.removeprefix("!")
        anchored = line.startswith("/")
        line = line.removeprefix("/")
        directory_only = line.endswith("/")
        line = line.removesuffix("/")
        if not line:
            warn(f"{place}:{number} names nothing")
            continue
        yield IgnoreRule(line, anchored, directory_only, negate)


def _cost(rules: Sequence[IgnoreRule]) -> int:
    changes = sum(before.negate != after.negate for before, after in itertools.pairwise(rules))
    return changes + sum("*" in rule.pattern or "?" in rule.pattern for rule in rules)


def _judges(rules: Sequence[IgnoreRule]) -> Iterator[tuple[bool, Matches]]:
    """The rules that follow each other and say the same, as one: a file may hold a hundred thousand of them."""
    for negate, run in itertools.groupby(rules, lambda rule: rule.negate):
        yield negate, _any_rule(list(run))


def _any_rule(rules: Sequence[IgnoreRule]) -> Matches:
    # An anchored rule for folders never matches.
    whole = compile_any(rule.pattern for rule in rules if rule.anchored and not rule.directory_only)
    tails = compile_any(rule.pattern for rule in rules if not rule.anchored and not rule.directory_only)
    folders = compile_any(rule.pattern for rule in rules if not rule.anchored and rule.directory_only)
    return lambda path: (
        whole(path) or any(tails(tail) for tail in _tails(path)) or any(folders(part) for part in path.split("/")[:-1])
    )


def _tails(path: str) -> Iterator[str]:
    """The path, and what follows each of its slashes."""
    start = 0
    while True:
        yield path[start:]
        start = path.find("/", start) + 1
        if not start:
            return


def merged_weights(configs: Sequence[FolderConfig]) -> dict[str, dict[str, float]]:
    """One map of all configurations: tag -> value -> factor; the later entry wins."""
    merged: dict[str, dict[str, float]] = {}
    for config in configs:
        if config.training is not None:
            for tag, factors in config.training.weights.items():
                merged.setdefault(tag, {}).update(factors)
    return merged
