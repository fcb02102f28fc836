"""The files and folder configurations below a source, in the order of path components (formats-2.md section 1.3)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlm_tui.document.errors import printable
from dlm_tui.document.sources.folder_config import (
    CONFIG_FOLDER,
    CONFIG_NAME,
    IGNORE_NAME,
    MAX_CONFIG_BYTES,
    FolderConfig,
    make_config,
)
from dlm_tui.document.sources.reading import Unreadable, read_regular

Configs = tuple[FolderConfig, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A regular file, or a link to one.

    `label` is its path from the source, with slashes; `real` the absolute path free of links. It is judged by
    `judged_path` and `configs`: those of what a link points at, or the bare name and none where that lies outside the
    source. `error` says why it could not even be looked at.
    """

    label: str
    real: str
    judged_path: str
    configs: Configs
    outside: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Open:
    """A folder in which the walk is: its path from the source with a slash behind it, and what is still to see."""

    prefix: str
    configs: Configs
    entries: Iterator[os.DirEntry[str]]


class FolderWalk:
    """One pass over a folder. Links to folders are not entered, so it cannot run in circles.

    `root` is absolute and free of links. `configs` grows as the walk goes on and is complete at its end. With `strict`
    no configuration is read through a link that leaves the root.
    """

    def __init__(self, root: str, *, strict: bool, warn: Callable[[str], None]) -> None:
        self.root = root
        self.strict = strict
        self.warn = warn
        self.configs: list[FolderConfig] = []
        # Set by the reader once it wants no more files; the rest is only searched for configurations.
        self.configs_only = False
        self._by_prefix: dict[str, FolderConfig | None] = {}
        self._below = root if root.endswith(os.sep) else root + os.sep

    def __iter__(self) -> Iterator[Candidate]:
        """Every candidate, and an entry with an `error` for every folder or file that cannot be looked into."""
        stack: list[_Open] = []
        yield from self._enter("", (), stack)
        while stack:
            folder = stack[-1]
            entry = next(folder.entries, None)
            if entry is None:
                stack.pop()
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._enter(f"{folder.prefix}{entry.name}/", folder.configs, stack)
                elif not self.configs_only and entry.is_file():
                    yield self._candidate(entry, folder.prefix, folder.configs)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    yield self._failed(folder.prefix + entry.name, error)

    def sorted_configs(self) -> list[FolderConfig]:
        """The configurations in listing order: by length of the folder's path, then in path order."""
        ordered = sorted(self.configs, key=lambda config: config.prefix.split("/"))
        return sorted(ordered, key=lambda config: len(config.anchor))

    def _enter(self, prefix: str, outer: Configs, stack: list[_Open]) -> Iterator[Candidate]:
        """Put a folder on the stack; yields only what went wrong."""
        try:
            with os.scandir(self._below + prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield self._failed(prefix, error)
            return
        own = self._config(prefix)
        if own is not None:
            self.configs.append(own)
            outer = (*outer, own)
        stack.append(_Open(prefix, outer, iter(entries)))

    def _failed(self, label: str, error: OSError) -> Candidate:
        return Candidate(label, self._below + label, label, (), error=error.strerror or str(error))

    def _candidate(self, entry: os.DirEntry[str], prefix: str, configs: Configs) -> Candidate:
        label = prefix + entry.name
        if not entry.is_symlink():
            return Candidate(label, entry.path, label, configs)
        real = os.path.realpath(entry.path)
        if not real.startswith(self._below):
            return Candidate(label, real, entry.name, (), outside=True)
        target = real[len(self._below) :].replace(os.sep, "/")
        return Candidate(label, real, target, self._configs_around(target))

    def _configs_around(self, path: str) -> Configs:
        """The configurations of the folders around a file, outermost first, also of folders not yet walked."""
        slashes = [index + 1 for index, character in enumerate(path) if character == "/"]
        found = (self._config(path[:end]) for end in (0, *slashes))
        return tuple(config for config in found if config is not None)

    def _config(self, prefix: str) -> FolderConfig | None:
        if prefix not in self._by_prefix:
            self._by_prefix[prefix] = self._read_config(prefix)
        return self._by_prefix[prefix]

    def _read_config(self, prefix: str) -> FolderConfig | None:
        folder = self._below + prefix + CONFIG_FOLDER
        if not os.path.isdir(folder):  # noqa: PTH112
            return None
        anchor = (self._below + prefix).rstrip(os.sep) or os.sep
        training, ignore = (self._config_file(folder, name) for name in (CONFIG_NAME, IGNORE_NAME))
        return make_config(anchor, prefix, training, ignore, self.warn)

    def _config_file(self, folder: str, name: str) -> bytes | None:
        path = f"{folder}{os.sep}{name}"
        if not os.path.lexists(path):
            return None
        real = os.path.realpath(path)
        if self.strict and not real.startswith(self._below):
            self.warn(f"{printable(path)} is not used: it leads out of the source")
            return None
        try:
            return read_regular(real, MAX_CONFIG_BYTES)[0]
        except Unreadable as error:
            self.warn(f"{printable(path)} is not used: {error}")
            return None
