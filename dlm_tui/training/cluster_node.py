"""What a node of a cluster does: put the base's files on its disk once, load it once per process, call a function."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy
from filelock import FileLock

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import clear_scratch_of, remove, scratch_sibling, sync_tree
from dlm_tui.platform import sync_directory
from dlm_tui.progress import run_to_end
from dlm_tui.store.trained_on import other_base, recorded_key
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.held_out import FoldResult, FoldWork, JudgedRow, train_and_judge
from dlm_tui.training.phases import Diverged, Finetuned, OnStep
from dlm_tui.training.plan import PlannedRows
from dlm_tui.training.rows import AdapterRows

if TYPE_CHECKING:
    from dlm_tui.model import Base
    from dlm_tui.model.registry import BaseSource

_SENT = {".json", ".safetensors", ".model", ".txt", ".jinja"}
PLACE = "DLM_TUI_NODE_DIR"
"""The environment variable of a node that says where it keeps bases, instead of its temporary folder."""
_loaded: dict[str, Base] = {}


@dataclass(frozen=True)
class Shipped:
    """A base on its way: where it came from, what it is known by, and references to its files' bytes."""

    source: BaseSource
    record: Mapping[str, object]
    dtype: str
    files: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Names the base on a node's disk and in a process."""
        return f"{hashlib.sha256(recorded_key(self.record).encode()).hexdigest()[:36]}-{self.dtype}"


@dataclass(frozen=True)
class NodeFailed:
    """The node's system refused something, for example room on its disk."""

    node: str
    text: str


def shipped_files(base: Base) -> dict[str, numpy.ndarray[Any, Any]]:
    """The bytes of the base's files, uint8 each: weights, configuration, tokenizer. Nothing pickled, no code."""
    folder = base.source.path
    if folder is None:
        raise DlmTuiError("the base has no folder to send")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _SENT)
    return {path.name: numpy.fromfile(path, dtype=numpy.uint8) for path in paths}


def base_here(shipped: Shipped, fetch: Callable[[Any], numpy.ndarray[Any, Any]]) -> Base:
    """The base on this machine: its files are fetched by whoever comes first, and every process loads it once.

    Raises OSError where the disk refuses, DlmTuiError for a base that is another one here than at home.
    """
    from dlm_tui.model import load_base

    if shipped.key not in _loaded:
        folder = _folder(shipped, fetch)
        source = msgspec.structs.replace(shipped.source, path=folder)
        try:
            base = run_to_end(load_base(source, dtype=shipped.dtype))
        except DlmTuiError:
            if _is_whole(folder, shipped, fetch):
                raise
            remove(folder)  # a machine that went off, or a disk that failed, left other bytes
            source = msgspec.structs.replace(source, path=_folder(shipped, fetch))
            base = run_to_end(load_base(source, dtype=shipped.dtype))
        if other_base(shipped.record, base.identity) is not None:
            remove(folder)
            raise DlmTuiError(f"the base in {folder} is damaged; it was removed, try again")
        _loaded[shipped.key] = base
    return _loaded[shipped.key]


def _folder(shipped: Shipped, fetch: Callable[[Any], numpy.ndarray[Any, Any]]) -> Path:
    """The files on this machine's disk, complete or not there at all; they stay for the next time."""
    root = Path(os.environ.get(PLACE) or tempfile.gettempdir()) / "dlm-tui-bases"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / shipped.key
    with FileLock(root / f"{shipped.key}.lock"):
        clear_scratch_of(folder)
        if not folder.is_dir():
            scratch = scratch_sibling(folder)
            try:
                scratch.mkdir()
                for name, reference in shipped.files.items():
                    (scratch / name).write_bytes(fetch(reference).data)
                sync_tree(scratch)
                scratch.rename(folder)
                sync_directory(root)
            except BaseException as error:
                remove(scratch)
                if isinstance(error, OSError):  # a write that finds no room does not say where
                    raise OSError(error.errno, error.strerror or str(error), str(root)) from error
                raise
    return folder


def _is_whole(folder: Path, shipped: Shipped, fetch: Callable[[Any], numpy.ndarray[Any, Any]]) -> bool:
    """Whether the files are those that were sent, byte for byte."""
    for name, reference in shipped.files.items():
        try:
            here = numpy.fromfile(folder / name, dtype=numpy.uint8)
        except OSError:
            return False
        if not numpy.array_equal(here, fetch(reference)):
            return False
    return True


@dataclass(frozen=True)
class SharedRows:
    """What many trials have in common: an adapter's rows, as planned and as tokens, and those that it is judged on."""

    planned: PlannedRows
    tokens: AdapterRows
    judged: list[JudgedRow]

    def of(self, work: AdapterWork) -> AdapterWork:
        """The work with its rows."""
        return replace(work, adapter=replace(work.adapter, rows=self.planned), rows=self.tokens)


def without_rows(work: AdapterWork) -> AdapterWork:
    """The work without what `SharedRows` holds."""
    return replace(work, adapter=replace(work.adapter, rows=PlannedRows()), rows=AdapterRows())


def train_here(base: Base, work: AdapterWork, rows: SharedRows, on_step: OnStep) -> Finetuned:
    """One adapter."""
    return train_adapter(base, rows.of(work), on_step)


def fold_here(base: Base, work: FoldWork, rows: SharedRows, on_step: OnStep) -> FoldResult | str:
    """One piece of a sweep; the sentence where it diverged."""
    try:
        return train_and_judge(base, replace(work, work=rows.of(work.work), judged=rows.judged), on_step)
    except Diverged as error:
        return f"{work.name}: {error}"


def embed_here(base: Base, prompts: list[str], rows: None, on_step: OnStep) -> numpy.ndarray[Any, Any]:
    """Prompt embeddings float32 [n, H]."""
    from dlm_tui.gate.embedding import embed_prompts
    from dlm_tui.model import MixedModel

    work = embed_prompts(MixedModel(base, {}).backbone, base, prompts, hidden_size=base.hidden_size)
    return run_to_end(work).numpy()
