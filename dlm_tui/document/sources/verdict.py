"""Whether a file below a source is taken in (formats-2.md section 1.5)."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_tui.document.schema import Source
from dlm_tui.document.sources.defaults import DEFAULT_EXCLUDES
from dlm_tui.document.sources.folder_config import FolderConfig
from dlm_tui.document.sources.globs import compile_any

_default_excluded = compile_any(DEFAULT_EXCLUDES)


class Verdict:
    """The patterns of one source, ready to judge its files."""

    def __init__(self, source: Source) -> None:
        self._includes = compile_any(source.include)
        self._excludes = compile_any(source.exclude)

    def takes(self, path: str, configs: Sequence[FolderConfig]) -> bool:
        """Whether the file is ingested.

        `path` is relative to the source, `configs` are those of the folders around the file, outermost first.
        Include patterns, also those of a folder, are matched against the whole `path`.
        """
        includes = self._includes
        for config in configs:
            includes = config.includes or includes
        if not includes(path):
            return False
        excluded = self._excludes(path) or self._default_excludes(path, configs)
        excluded = excluded or any(
            config.excludes is not None and config.excludes(path[len(config.prefix) :]) for config in configs
        )
        for config in configs:
            inner = path[len(config.prefix) :]
            for negate, matches in config.judges:
                # Only rules that would change the outcome need to be looked at.
                if negate == excluded and matches(inner):
                    excluded = not negate
        return not excluded

    @staticmethod
    def _default_excludes(path: str, configs: Sequence[FolderConfig]) -> bool:
        # The nearest folder with a valid training.yaml decides, also where it does not mention the key.
        for config in reversed(configs):
            if config.training is not None:
                return config.training.exclude_defaults and _default_excluded(path)
        return _default_excluded(path)


def tags_of(configs: Sequence[FolderConfig]) -> dict[str, str]:
    """The metadata of the folders around a file, given outermost first; the deeper one wins per key."""
    tags: dict[str, str] = {}
    for config in configs:
        if config.training is not None:
            tags.update(config.training.metadata)
    return tags
