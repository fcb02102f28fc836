"""From the `path` of a source to a place on disk, under the document's policy (formats-2.md section 1.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.errors import DirectivePathError, DirectivePolicyError
from dlm_tui.document.schema import Source
from dlm_tui.document.sources.folder_config import CONFIG_FOLDER


@dataclass(frozen=True, slots=True)
class Root:
    """A source and the absolute path, free of links, that it stands for."""

    index: int
    source: Source
    path: str


def base_folder(document_path: Path) -> Path:
    """The folder that relative sources start from: the document's, or the one around it if that is `.dlm`."""
    parent = document_path.absolute().parent
    return parent.parent if parent.name == CONFIG_FOLDER else parent


def resolve_source(source: Source, index: int, base: Path, *, strict: bool, warn: Callable[[str], None]) -> Root:
    """The place of one source. Raises DirectivePathError, or DirectivePolicyError under the strict policy."""
    unresolved, resolved = resolve_below(source.path, base)
    root = _resolve(base)
    inside = resolved == root or root in resolved.parents
    if strict and not inside:
        raise DirectivePolicyError(str(resolved), str(root))
    try:
        resolved.stat()
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        reason = "path does not exist" if missing else error.strerror or str(error)
        raise DirectivePathError(str(resolved), reason) from None
    if not inside and unresolved.is_relative_to(base):
        warn(f"the source {source.path!r} leads out of {base}, to {resolved}")
    return Root(index, source, str(resolved))


def resolve_below(text: str, base: Path) -> tuple[Path, Path]:
    """The absolute path that `text` is below `base`, before and after links and `..` are resolved.

    Raises DirectivePathError for a path that means nothing: an unknown `~user`, a circle of links, U+0000.
    """
    try:
        unresolved = Path(text).expanduser() if text.startswith("~") else base / text
    except RuntimeError:
        raise DirectivePathError(text, "there is no such user") from None
    return unresolved, _resolve(unresolved)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except ValueError:
        raise DirectivePathError(str(path), "not a possible path") from None
    except RuntimeError:
        raise DirectivePathError(str(path), "links that lead in a circle") from None
    except OSError as error:
        raise DirectivePathError(str(path), error.strerror or str(error)) from None
